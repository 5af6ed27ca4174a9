"""Mounts that fetch nothing, or only as much as their budget allows."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import MountFactory
from tests.support.command_line import Mounted, reason, run_command
from tests.support.mounts import CLASS, cached_file, clip_path, open_errno, short_clips, state, used_files

CLIPS = sorted(short_clips(1))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_clips(mounted: Mounted, clips: Iterable[Clip]) -> None:
    for clip in clips:
        clip_path(mounted, clip).read_bytes()


def test_only_cached_shows_the_cached_clips_and_fetches_nothing(
    mount: MountFactory, annotations: Path, cache: Path, site: VideoSite
) -> None:
    here = [CLIPS[3], CLIPS[8], CLIPS[5]]
    with_all = mount("--annotations", annotations)
    read_clips(with_all, here)
    number = clip_path(with_all, CLIPS[8]).stat().st_ino
    with_all.end()
    asked = len(site.requests)

    shown = mount("--annotations", annotations, "--only", "cached", "--readahead", "2")
    names = sorted(clip.name for clip in here)
    assert listing(shown.root) == {".kinetics", "val", "validation"}
    assert listing(shown.root / "validation") == {CLASS}
    assert listing(shown.root / "validation" / CLASS) == set(names)
    listed = (shown.root / ".kinetics/validation.csv").read_text().splitlines()
    assert [line.split("/")[-1].split()[0] for line in listed] == names
    labels = (shown.root / ".kinetics/classes.txt").read_text().splitlines()
    assert int(listed[0].rsplit(" ", 1)[1]) == labels.index(CLASS), "class indexes are those of the whole"
    assert clip_path(shown, CLIPS[8]).stat().st_ino == number
    assert used_files(shown.root) == shown.status()["clips"] == 3
    for clip in here:
        assert clip_path(shown, clip).read_bytes() == cached_file(cache, clip).read_bytes()

    with Store(cache) as store:
        store.remove(CLIPS[5])
    assert open_errno(clip_path(shown, CLIPS[5])) == errno.EIO
    assert "--only cached" in reason(clip_path(shown, CLIPS[5]))
    assert len(site.requests) == asked
    assert run_command("failures", "list", "--json", "--cache-dir", cache).stdout.strip() == "[]"
    made = set(CacheLayout(cache).catalogs.glob("*.sqlite"))
    shown.end()
    assert len(made - set(CacheLayout(cache).catalogs.glob("*.sqlite"))) == 1, "its catalog goes with it"


def test_only_cached_fails_with_an_empty_cache(mount: MountFactory, annotations: Path) -> None:
    with pytest.raises(RuntimeError, match="none of them is in the cache"):
        mount("--annotations", annotations, "--only", "cached")


def test_open_returns_edquot_after_max_fetches(
    mount: MountFactory, annotations: Path, cache: Path, site: VideoSite
) -> None:
    mounted = mount("--annotations", annotations, "--max-fetches", "2")
    read_clips(mounted, CLIPS[:2])
    assert open_errno(clip_path(mounted, CLIPS[2])) == open_errno(clip_path(mounted, CLIPS[3])) == errno.EDQUOT
    assert "--max-fetches" in reason(clip_path(mounted, CLIPS[2]))
    assert state(clip_path(mounted, CLIPS[2])) == "absent", "it says nothing of the clip"
    read_clips(mounted, CLIPS[:2])
    assert mounted.status()["budget"]["fetches"] == 2
    assert "  limits    2 of 2 fetches started\n" in run_command("status", mounted.root).stdout
    assert mounted.log.read_text().count("--max-fetches") == 1
    # The limit is for opens: a prefetch is asked for, and no scan causes it.
    assert run_command("prefetch", mounted.root, "--class", CLASS, "--max-samples", "4").returncode == 0
    done = run_command("jobs", "wait", mounted.root)
    assert done.returncode == 0, done.stderr
    read_clips(mounted, CLIPS[:4])
    read_clips(mount("--annotations", annotations), CLIPS[4:5])


def test_open_returns_edquot_after_max_fetch_bytes(mount: MountFactory, annotations: Path) -> None:
    mounted = mount("--annotations", annotations, "--max-fetch-bytes", "1kB")
    read_clips(mounted, CLIPS[:1])
    assert open_errno(clip_path(mounted, CLIPS[1])) == errno.EDQUOT
    assert " of 1.0 kB fetched\n" in run_command("status", mounted.root).stdout
    assert "--max-fetch-bytes" in reason(clip_path(mounted, CLIPS[1]))


def test_remembered_failures_do_not_count_as_fetches(mount: MountFactory) -> None:
    mounted = mount("--max-fetches", "1")
    gone = mounted.root / "validation/passing American football (in game)" / f"{GONE}_000005_000015.mp4"
    for _ in range(3):
        assert open_errno(gone) == errno.EIO
    assert reason(gone).startswith("gone: ")
    assert mounted.status()["budget"]["fetches"] == 1


def test_error_of_a_due_failure_is_the_budget(mount: MountFactory, annotations: Path, cache: Path) -> None:
    with Store(cache) as store:
        store.failures.remember(CLIPS[1], FetchError(FailureKind.LOCAL, "disk full"))
    mounted = mount("--annotations", annotations, "--max-fetches", "1")
    assert reason(clip_path(mounted, CLIPS[1])) == "local: disk full"
    read_clips(mounted, CLIPS[:1])
    assert open_errno(clip_path(mounted, CLIPS[1])) == errno.EDQUOT
    assert "--max-fetches" in reason(clip_path(mounted, CLIPS[1]))
    assert state(clip_path(mounted, CLIPS[1])) == "failed"
