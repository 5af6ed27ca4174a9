"""Prefetches by a mount: in the background, after opens, ahead of a reader, and resumed after a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.control import connect
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import Store
from tests.conftest import MountFactory
from tests.support.command_line import Mounted, has_ended, run_command
from tests.support.mounts import CLASS, clip_path, short_clips, state, wait_until

CLIPS = sorted(short_clips(1))


@pytest.fixture
def mounted(mount: MountFactory, annotations: Path) -> Mounted:
    return mount("--annotations", annotations, "--workers", "2")


def cached(mounted: Mounted, clips: Iterable[Clip]) -> list[bool]:
    return [state(clip_path(mounted, clip)) == "cached" for clip in clips]


def jobs(mounted: Mounted) -> list[dict[str, object]]:
    done = run_command("jobs", "list", mounted.root, "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert isinstance(listed, list)
    return listed


def listing(path: Path, clips: Iterable[Clip]) -> Path:
    path.write_text("".join(f"validation/{CLASS}/{clip.name} 0\n" for clip in clips))
    return path


def test_prefetch_by_the_mount_can_be_waited_for(mounted: Mounted, site: VideoSite) -> None:
    selection = ("--split", "validation", "--class", CLASS, "--max-samples", "3")
    started = run_command("prefetch", mounted.root, *selection)
    assert started.stdout.startswith("Job 1: the mount prefetches 3 clips. To follow it: kinetics-fs jobs wait ")
    done = run_command("jobs", "wait", mounted.root, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    [job] = json.loads(done.stdout)
    assert (job["state"], job["clips"], job["fetched"], job["failed"]) == ("done", 3, 3, 0)
    assert job["selection"] == f"validation; {CLASS}; at most 3 of each split"
    assert sum(cached(mounted, CLIPS)) == 3
    assert [job["id"] for job in mounted.status()["prefetches"]] == [job["id"]]

    number = json.loads(run_command("prefetch", mounted.root, *selection, "--json").stdout)["id"]
    again = run_command("jobs", "wait", mounted.root, str(number))
    assert again.stdout == (
        f"2, done: 3 of 3 clips; 0 fetched, 3 already cached; validation; {CLASS}; at most 3 of each split\n"
    )
    idle = run_command("jobs", "wait", mounted.root)
    assert (idle.returncode, idle.stdout) == (0, "No running jobs.\n")


def test_a_list_without_clips_of_the_mount_starts_no_job(mounted: Mounted, tmp_path: Path) -> None:
    elsewhere = [Clip("-aaaaaaaaaa", 0, 10)]
    for clips in ([], elsewhere):
        done = run_command("prefetch", mounted.root, "--list", listing(tmp_path / "list", clips))
        assert (done.returncode, done.stdout) == (1, "")
        assert "cannot prefetch the list: it names no clip that the mount shows; " in done.stderr
    assert jobs(mounted) == []


def test_cancel_ends_a_prefetch(mounted: Mounted, site: VideoSite) -> None:
    site.delay = {clip.youtube_id: 0.3 for clip in CLIPS}
    begun = run_command("prefetch", mounted.root, "--class", CLASS, "--json")
    number = json.loads(begun.stdout)["id"]
    # The same once more is the same prefetch.
    assert json.loads(run_command("prefetch", mounted.root, "--class", CLASS, "--json").stdout)["id"] == number
    ended = run_command("jobs", "cancel", mounted.root, str(number))
    assert "cancelled" in ended.stdout
    assert [job["state"] for job in jobs(mounted)] == ["cancelled"]
    wait_until(lambda: mounted.status()["fetch"]["pending"] == 0)
    assert sum(cached(mounted, CLIPS)) < len(CLIPS)


def test_opens_are_fetched_before_prefetches(mounted: Mounted, site: VideoSite) -> None:
    site.delay = {clip.youtube_id: 0.2 for clip in CLIPS}
    last = CLIPS[-1]
    run_command("prefetch", mounted.root, "--class", CLASS)
    clip_path(mounted, last).read_bytes()
    assert not all(cached(mounted, CLIPS[:-1])), "it did not wait for all the others"


def test_prefetch_resumes_after_the_mount_was_killed(
    mount: MountFactory, annotations: Path, site: VideoSite, tmp_path: Path
) -> None:
    few = CLIPS[:6]
    arguments = ("--annotations", annotations, "--workers", "2")
    first = mount(*arguments)
    site.delay = {clip.youtube_id: 0.4 for clip in CLIPS}
    begun = run_command("prefetch", first.root, "--list", listing(tmp_path / "list", few))
    assert begun.returncode == 0, begun.stderr
    wait_until(lambda: any(cached(first, few)))
    os.kill(first.pid, signal.SIGKILL)
    assert has_ended(first.pid, within=20)
    subprocess.run(["umount", "-l", first.root], check=True)
    first.pid = 0

    site.delay = {}
    again = Mounted(first.root, *arguments, "--video-url", site.url_template, "--cache-dir", tmp_path / "cache")
    with again:
        wait_until(lambda: all(cached(again, few)))
        wait_until(lambda: jobs(again)[0]["state"] == "done")
        assert not list((tmp_path / "cache/prefetches").rglob("*.*"))


def test_prefetch_class_starts_with_the_mount(mount: MountFactory, annotations: Path) -> None:
    mounted = mount("--annotations", annotations, "--prefetch-class", "short_clips")
    wait_until(lambda: any(cached(mounted, CLIPS)))


def test_readahead_fetches_the_next_clips(mount: MountFactory, annotations: Path) -> None:
    mounted = mount("--annotations", annotations, "--readahead", "3")
    for clip in (CLIPS[20], CLIPS[10], CLIPS[30]):
        clip_path(mounted, clip).read_bytes()
    assert mounted.status()["fetch"]["fetched"] == 3, "no walk"
    for clip in CLIPS[:2]:
        clip_path(mounted, clip).read_bytes()
    wait_until(lambda: all(cached(mounted, CLIPS[2:5])))
    assert not cached(mounted, CLIPS[6:7])[0]


def test_list_stays_ahead_of_its_reader_in_a_small_cache(
    mount: MountFactory, annotations: Path, site: VideoSite, tmp_path: Path
) -> None:
    """In two epochs in different orders, with space for a few clips, each clip arrives once, before it is read."""
    scout = mount("--annotations", annotations)
    first = [*CLIPS[:12:2], *CLIPS[1:12:2]]
    second = list(reversed(first))
    size = max(len(clip_path(scout, clip).read_bytes()) for clip in first)
    scout.end()
    with Store(tmp_path / "cache") as store:
        for clip in first:
            store.remove(clip)  # their sizes stay known
    mounted = mount("--annotations", annotations, "--cache-size", f"{5 * size}B")
    asked = len(site.requests)

    done = run_command("prefetch", mounted.root, "--list", listing(tmp_path / "list", [*first, *second]))
    assert done.returncode == 0, done.stderr
    for clip in [*first, *second]:
        wait_until(lambda clip=clip: cached(mounted, [clip])[0])  # type: ignore[misc]
        clip_path(mounted, clip).read_bytes()
    assert mounted.status()["opens"]["not_in_cache"] == 0
    # Those in the middle of both epochs are read twice in a row.
    pages = [path for path, _ in site.requests[asked:] if path.startswith("/watch/")]
    assert len(pages) <= len(first) + len(second)


def test_prefetch_continues_after_an_unavailable_clip(mount: MountFactory) -> None:
    mounted = mount("--workers", "2")
    assert run_command("prefetch", mounted.root, "--split", "validation").returncode == 0
    done = run_command("jobs", "wait", mounted.root, "1", "--json")
    assert done.returncode == 3
    [job] = json.loads(done.stdout)
    assert (job["state"], job["fetched"], job["failures"]) == ("done", 6, {"gone": 1})


def test_invalid_prefetch_requests_are_refused(mounted: Mounted, tmp_path: Path) -> None:
    lists = tmp_path / "list"
    lists.write_text("nothing\n/etc/passwd\n")
    for arguments, code, said in (
        (("--class", "surfing watr"), 1, "no class"),
        (("--release", "400"), 2, "cannot set --release"),
        (("--cache-dir", "/tmp"), 2, "cannot set --cache-dir"),
        (("--list", lists, "--class", CLASS), 2, "exclude each other"),
        (("--list", lists), 1, "it names no clip that the mount shows"),
        (("--list", tmp_path / "missing"), 1, "cannot read the list"),
    ):
        done = run_command("prefetch", mounted.root, *arguments)
        assert (done.returncode, said in done.stderr, done.stdout) == (code, True, ""), done.stderr
    for command in ("cancel", "wait"):
        done = run_command("jobs", command, mounted.root, "77")
        assert (done.returncode, "cannot find the job 77" in done.stderr, done.stdout) == (1, True, ""), done.stderr
    done = run_command("jobs", "list", tmp_path)
    assert done.returncode == 1
    assert f"cannot find a mount on {tmp_path}: it is not a mount of kinetics-fs" in done.stderr
    assert run_command("jobs", "wait").returncode == 2


def test_mount_ends_on_the_control_request_umount(mounted: Mounted) -> None:
    connection = connect(mounted.root)
    assert connection is not None
    with connection:
        assert connection.pid == mounted.pid
        assert connection.request("umount") is None
    assert has_ended(mounted.pid, within=20)
    assert connect(mounted.root) is None
