"""Opens that wait: one fetch for all, no delay for others, and an end with the reader, the mount or a worker."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts
from kinetics_fs.store import CacheLayout
from tests.conftest import MountFactory
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import ENVIRONMENT, Mounted, has_ended, run_command
from tests.support.mounts import (
    cached_file,
    clip_path,
    command_line,
    descendants,
    incoming,
    reading,
    short_clips,
    state,
    used_files,
    wait_until,
)

AGES = 600.0
"""Seconds: longer than any test waits."""

CLIP = Clip("-demo_video", 3, 4)
READY = Clip("demo-video2", 5, 6)


def is_waiting(mounted: Mounted, clip: Clip) -> bool:
    return state(clip_path(mounted, clip)) == "fetching"


@pytest.fixture
def slow(mount: MountFactory, site: VideoSite, annotations: Path) -> Mounted:
    """A mount with one cached clip; the fetch of any other takes ages."""
    mounted = mount("--annotations", annotations)
    clip_path(mounted, READY).read_bytes()
    site.delay.update(dict.fromkeys(VIDEOS, AGES))
    return mounted


@pytest.fixture
def stuck_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put an ffmpeg that sleeps for ages first in the path; return its command line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nsleep {AGES + 11:.0f}\n")
    program.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{folder}:{os.environ['PATH']}")
    return f"sleep {AGES + 11:.0f}"


Stuck = tuple[Mounted, subprocess.Popen[bytes]]
"""A mount and a process that reads a clip from it, whose ffmpeg does not end."""


@pytest.fixture
def stuck(stuck_ffmpeg: str, mount: MountFactory, annotations: Path) -> Iterator[Stuck]:
    """Start a reader whose fetch waits for `stuck_ffmpeg`."""
    mounted = mount("--annotations", annotations)
    with reading([clip_path(mounted, CLIP)]) as [reader]:
        wait_until(lambda: any(stuck_ffmpeg in command_line(pid) for pid in descendants(mounted.pid)))
        yield mounted, reader


# Once -------------------------------------------------------------------------------------------------------------


def test_twenty_processes_that_open_a_clip_cause_one_fetch(
    mount: MountFactory, site: VideoSite, annotations: Path, cache: Path
) -> None:
    mounted = mount("--annotations", annotations)
    site.delay[CLIP.youtube_id] = 3  # time enough for all of them to come
    with reading([clip_path(mounted, CLIP)] * 20) as readers:
        contents = [reader.communicate(timeout=60)[0] for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * 20
    assert set(contents) == {cached_file(cache, CLIP).read_bytes()}
    assert site.video_fetches(CLIP.youtube_id) == 1


def test_two_mounts_and_a_prefetch_cause_one_fetch(
    mount: MountFactory, site: VideoSite, tmp_path: Path, cache: Path
) -> None:
    only = write_annotations(tmp_path / "only.csv", [Labelled("only", CLIP, "validate")])
    mounts = [mount("--annotations", only) for _ in range(2)]
    site.delay[CLIP.youtube_id] = 3
    paths = [mounted.root / "validation/only" / CLIP.name for mounted in mounts]
    prefetch: list[str | Path] = [
        "prefetch",
        "--annotations",
        only,
        "--class",
        "only",
        "--cache-dir",
        cache,
        "--min-free",
        "0",
    ]
    prefetch += ["--video-url", site.url_template, "--json"]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *prefetch],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        reading(paths * 5) as readers,
    ):
        contents = [reader.communicate(timeout=60)[0] for reader in readers]
        said, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, (said, complaint)
    assert set(contents) == {cached_file(cache, CLIP).read_bytes()}
    assert site.video_fetches(CLIP.youtube_id) == 1


def test_the_same_clip_in_two_classes_is_fetched_once(
    mount: MountFactory, site: VideoSite, tmp_path: Path, cache: Path
) -> None:
    rows = [Labelled("one", CLIP, "validate"), Labelled("two", CLIP, "train")]
    mounted = mount("--annotations", write_annotations(tmp_path / "twice.csv", rows))
    paths = [mounted.root / "validation/one" / CLIP.name, mounted.root / "train/two" / CLIP.name]
    assert paths[0].read_bytes() == paths[1].read_bytes() == cached_file(cache, CLIP).read_bytes()
    assert paths[0].stat().st_ino != paths[1].stat().st_ino
    assert site.video_fetches(CLIP.youtube_id) == 1


def test_all_waiting_opens_fail_if_their_fetch_fails(mount: MountFactory, site: VideoSite, annotations: Path) -> None:
    mounted = mount("--annotations", annotations)
    site.delay[CLIP.youtube_id] = 3
    site.fail[CLIP.youtube_id] = 500
    with reading([clip_path(mounted, CLIP)] * 10) as readers:
        said = {reader.communicate(timeout=60)[1] for reader in readers}
        assert [reader.returncode for reader in readers] == [1] * 10
    [line] = said
    assert os.strerror(errno.EIO).encode() in line
    assert site.video_fetches(CLIP.youtube_id) == 1


# In nobody's way --------------------------------------------------------------------------------------------------


def test_thirty_waiting_opens_do_not_delay_other_requests(slow: Mounted, site: VideoSite) -> None:
    clips = [clip for clip in short_clips(1) if clip != READY][:30]
    with reading([clip_path(slow, clip) for clip in clips]) as readers:
        wait_until(lambda: all(is_waiting(slow, clip) for clip in clips))
        ready = clip_path(slow, READY)
        assert ready.read_bytes()
        assert [len(names) for _, _, names in os.walk(slow.root) if names]
        assert all(clip_path(slow, clip).stat().st_size > 0 for clip in clips)
        assert clip_path(slow, short_clips(1)[-1]).stat().st_size > 0
        assert used_files(slow.root) > 30
        assert os.listxattr(ready)
        assert len((slow.root / ".kinetics/validation.csv").read_text().splitlines()) > 30
        assert slow.status()["fetch"]["pending"] == 30
        listed = subprocess.run(["ls", "-lR", slow.root], capture_output=True, check=True, timeout=60)
        assert listed.stdout.count(b".mp4") > 30
        status = run_command("status", slow.root)
        assert "30 pending" in status.stdout
        assert [reader.poll() for reader in readers] == [None] * 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_waiting_open_can_be_interrupted(slow: Mounted, number: signal.Signals) -> None:
    with reading([clip_path(slow, CLIP)] * 2) as [first, second]:
        wait_until(lambda: is_waiting(slow, CLIP))
        wait_until(lambda: waits_for_us(first) and waits_for_us(second))
        first.send_signal(number)
        assert first.wait(timeout=30) == -number
        # The fetch goes on for the other.
        assert second.poll() is None
        assert is_waiting(slow, CLIP)
    assert clip_path(slow, READY).read_bytes()


def waits_for_us(reader: subprocess.Popen[bytes]) -> bool:
    """Whether a reader waits for an answer of the filesystem, and no longer starts up."""
    return "request_wait_answer" in Path(f"/proc/{reader.pid}/wchan").read_text()


def test_fetch_continues_after_its_open_was_interrupted(slow: Mounted, site: VideoSite, cache: Path) -> None:
    site.delay[CLIP.youtube_id] = 4
    with reading([clip_path(slow, CLIP)]) as [reader]:
        wait_until(lambda: is_waiting(slow, CLIP))
        reader.kill()
        reader.wait(timeout=30)
    wait_until(lambda: state(clip_path(slow, CLIP)) == "cached")
    assert clip_path(slow, CLIP).read_bytes() == cached_file(cache, CLIP).read_bytes()
    assert site.video_fetches(CLIP.youtube_id) == 1


def test_alarm_signal_interrupts_a_waiting_open(slow: Mounted) -> None:
    """A handler of the reader's runs at once, as at any slow device."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))\n"
        "signal.setitimer(signal.ITIMER_REAL, 1)\n"
        "os.open(sys.argv[1], os.O_RDONLY)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, clip_path(slow, CLIP)], timeout=60, check=False)
    assert done.returncode == 7


# The end of the mount ---------------------------------------------------------------------------------------------


@contextmanager
def many_waiting(mounted: Mounted) -> Iterator[list[subprocess.Popen[bytes]]]:
    clips = [clip for clip in short_clips(1) if clip != READY][:8]
    with reading([clip_path(mounted, clip) for clip in clips]) as readers:
        wait_until(lambda: all(is_waiting(mounted, clip) for clip in clips))
        wait_until(lambda: len(descendants(mounted.pid)) >= 4)
        yield readers


def assert_gone(mounted: Mounted, below: set[int], cache: Path) -> None:
    """Assert that the mount, its process, the processes below it and their temporary files are gone."""
    assert has_ended(mounted.pid, within=30)
    assert mounted.root not in find_mounts()
    assert [command_line(pid) for pid in below if not has_ended(pid, within=30)] == []
    assert incoming(cache) == []
    assert list(CacheLayout(cache).process_locks.iterdir()) == []
    assert list(mounted.root.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_mount_while_opens_wait(slow: Mounted, cache: Path, number: signal.Signals) -> None:
    with many_waiting(slow) as readers:
        below = descendants(slow.pid)
        os.kill(slow.pid, number)
        assert_gone(slow, below, cache)
        for reader in readers:
            assert reader.wait(timeout=30) != 0
    assert "Traceback" not in slow.log.read_text()


def test_lazy_umount_lets_waiting_opens_finish(slow: Mounted, site: VideoSite, cache: Path) -> None:
    site.delay.update(dict.fromkeys(VIDEOS, 2))
    with reading([clip_path(slow, CLIP)]) as [reader]:
        wait_until(lambda: is_waiting(slow, CLIP))
        below = descendants(slow.pid)
        done = run_command("umount", "--lazy", slow.root)
        assert (done.returncode, done.stderr) == (0, "")
        assert slow.root not in find_mounts()
        content, complaint = reader.communicate(timeout=60)
        assert (reader.returncode, complaint) == (0, b"")
    assert content == cached_file(cache, CLIP).read_bytes()
    assert_gone(slow, below, cache)


def test_lazy_umount_ends_the_mount_when_the_waiting_opens_end(slow: Mounted, cache: Path) -> None:
    with many_waiting(slow):
        below = descendants(slow.pid)
        assert run_command("umount", "--lazy", slow.root).returncode == 0
    assert_gone(slow, below, cache)


def test_umount_fails_as_in_use_while_an_open_waits(slow: Mounted, site: VideoSite, cache: Path) -> None:
    site.delay.update(dict.fromkeys(VIDEOS, 4))
    with reading([clip_path(slow, CLIP)]) as [reader]:
        wait_until(lambda: is_waiting(slow, CLIP))
        done = run_command("umount", slow.root)
        assert done.returncode == 1
        assert "is in use" in done.stderr
        assert reader.communicate(timeout=60)[0] == cached_file(cache, CLIP).read_bytes()
    below = descendants(slow.pid)
    done = run_command("umount", slow.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert_gone(slow, below, cache)


def test_umount_succeeds_while_only_a_fetch_runs(slow: Mounted, cache: Path) -> None:
    with reading([clip_path(slow, CLIP)]) as [reader]:
        wait_until(lambda: is_waiting(slow, CLIP))
        reader.kill()
        reader.wait(timeout=30)
        below = descendants(slow.pid)
        done = run_command("umount", slow.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert_gone(slow, below, cache)


def test_end_of_the_mount_ends_ffmpeg(stuck: Stuck, cache: Path) -> None:
    mounted, reader = stuck
    below = descendants(mounted.pid)
    os.kill(mounted.pid, signal.SIGTERM)
    assert_gone(mounted, below, cache)
    assert reader.wait(timeout=30) != 0


# Sudden deaths ----------------------------------------------------------------------------------------------------


def workers(pid: int) -> list[int]:
    return [child for child in descendants(pid) if "kinetics_fs.fetch.worker" in command_line(child)]


@contextmanager
def eventually_dead(pids: Callable[[], set[int]]) -> Iterator[set[int]]:
    """Note processes that must have ended at the end; kill those that have not."""
    noted = pids()
    yield noted
    alive = {pid: command_line(pid) for pid in noted if not has_ended(pid, within=30)}
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert alive == {}


def test_open_returns_eio_when_its_worker_dies(slow: Mounted, site: VideoSite, cache: Path) -> None:
    with reading([clip_path(slow, CLIP)]) as [reader]:
        wait_until(lambda: site.video_fetches(CLIP.youtube_id))
        assert is_waiting(slow, CLIP)
        for worker in workers(slow.pid):
            os.kill(worker, signal.SIGKILL)
        complaint = reader.communicate(timeout=60)[1]
    assert os.strerror(errno.EIO).encode() in complaint
    assert state(clip_path(slow, CLIP)) == "failed"
    assert os.getxattr(clip_path(slow, CLIP), "user.kinetics.error").startswith(b"transient: ")
    assert incoming(cache) == []
    site.delay.clear()
    assert clip_path(slow, READY).read_bytes()
    assert clip_path(slow, Clip("demo_video4", 1, 2)).read_bytes()  # by a new worker
    assert run_command("failures", "clear", "--all", "--cache-dir", cache).returncode == 0
    assert clip_path(slow, CLIP).read_bytes() == cached_file(cache, CLIP).read_bytes()


def test_open_succeeds_after_an_idle_worker_died(slow: Mounted, site: VideoSite) -> None:
    site.delay.clear()
    [worker] = workers(slow.pid)
    os.kill(worker, signal.SIGKILL)
    assert clip_path(slow, CLIP).read_bytes()


def test_death_of_a_worker_ends_its_ffmpeg(stuck: Stuck, cache: Path) -> None:
    mounted, reader = stuck
    with eventually_dead(lambda: descendants(mounted.pid)):
        [worker] = workers(mounted.pid)
        os.kill(worker, signal.SIGKILL)
        assert os.strerror(errno.EIO).encode() in reader.communicate(timeout=60)[1]
    assert incoming(cache) == []


def test_death_of_the_mount_leaves_nothing_running(stuck: Stuck, cache: Path) -> None:
    mounted, reader = stuck
    with eventually_dead(lambda: descendants(mounted.pid)):
        os.kill(mounted.pid, signal.SIGKILL)
    assert reader.wait(timeout=30) == 1


def test_mount_clears_a_dead_mount(
    slow: Mounted, frontend: tuple[str, ...], site: VideoSite, annotations: Path, cache: Path
) -> None:
    with many_waiting(slow) as readers, eventually_dead(lambda: descendants(slow.pid)):
        os.kill(slow.pid, signal.SIGKILL)
        for reader in readers:
            assert reader.wait(timeout=30) == 1
    assert slow.root in find_mounts()
    with pytest.raises(OSError) as caught:
        os.statvfs(slow.root)  # of which a kernel keeps nothing
    assert caught.value.errno == errno.ENOTCONN
    assert incoming(cache)

    status = run_command("status", slow.root)
    assert f"kinetics-fs umount {shlex.quote(str(slow.root))}" in status.stdout

    site.delay.clear()
    again = Mounted(
        slow.root,
        *frontend,
        *("--annotations", annotations, "--video-url", site.url_template, "--cache-dir", cache, "--min-free", "0"),
    )
    with again:
        assert again.pid != slow.pid
        assert incoming(cache) == []
        assert len(list(CacheLayout(cache).process_locks.iterdir())) == 1
        assert clip_path(again, READY).read_bytes() == cached_file(cache, READY).read_bytes()
        assert clip_path(again, CLIP).read_bytes() == cached_file(cache, CLIP).read_bytes()
        assert again.status()["cache"]["reserved"] == 0


def test_dead_mount_can_be_unmounted(slow: Mounted) -> None:
    os.kill(slow.pid, signal.SIGKILL)
    assert has_ended(slow.pid, within=30)
    done = run_command("umount", slow.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert slow.root not in find_mounts()


def test_another_mount_of_the_cache_works_beside_a_dead_one(
    slow: Mounted, mount: MountFactory, site: VideoSite, annotations: Path, cache: Path
) -> None:
    other = mount("--annotations", annotations)
    with reading([clip_path(slow, CLIP)]):
        wait_until(lambda: site.video_fetches(CLIP.youtube_id))
        with reading([clip_path(other, CLIP)]) as [reader]:
            wait_until(lambda: is_waiting(other, CLIP))
            site.delay.clear()
            os.kill(slow.pid, signal.SIGKILL)
            content = reader.communicate(timeout=60)[0]
    assert content == cached_file(cache, CLIP).read_bytes()
