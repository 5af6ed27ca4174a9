"""Helpers of the tests of mounts: short clips, paths and states of clips, processes that read, process trees."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout, FailureReport, Store
from tests.support.command_line import Mounted

CLASS = "short clips"
"""The class of `short_clips`."""


def short_clips(seconds: int) -> list[Clip]:
    """Return every clip of this length in the videos of the demo: many clips that are fetched quickly."""
    return [
        Clip(video, start, start + seconds)
        for video, length in VIDEOS.items()
        for start in range(int(length) - seconds + 1)
    ]


def write_clips(folder: Path, clips: Iterable[Clip]) -> Path:
    """Make a folder of clips, for tests of reads that need no fetch.

    All clips show the same picture, but no two have the same bytes.
    """
    folder.mkdir()
    videos: dict[int, bytes] = {}
    for clip in clips:
        path = folder / clip.name
        seconds = clip.end - clip.start
        if seconds not in videos:
            make_video(path, seconds=seconds, ffmpeg=find_ffmpeg())
            videos[seconds] = path.read_bytes()
        # A free space box, which every reader skips (ISO/IEC 14496-12, 8.1.2).
        note = clip.key.encode()
        path.write_bytes(videos[seconds] + (8 + len(note)).to_bytes(4) + b"free" + note)
    return folder


def clip_path(mounted: Mounted, clip: Clip) -> Path:
    """Return the path of one of the `short_clips` in a mount."""
    return mounted.root / "validation" / CLASS / clip.name


def open_errno(path: Path) -> int | None:
    """Open a file and read it; return the errno, or None if that succeeds."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def mark_gone(store: Store, clips: Iterable[Clip], at: float | None = None) -> None:
    """Record that clips are gone, as another process does.

    Args:
        store: the store to record it in.
        clips: the clips.
        at: time of the failure, in seconds since the epoch; None for now.
    """
    at = time.time() if at is None else at
    store.failures.import_reports(
        FailureReport(clip, FailureKind.GONE, "removed", "youtube", at, at, 1) for clip in clips
    )


def cached_file(cache: Path, clip: Clip | str) -> Path:
    """Return the file of a clip, given as such or by its key, in the cache directory."""
    key = clip if isinstance(clip, str) else clip.key
    [path] = CacheLayout(cache).clips.glob(f"*/{key}.*.mp4")
    return path


def incoming(cache: Path) -> list[Path]:
    """Return the folders that fetches, running or dead, have in the cache directory."""
    return list(CacheLayout(cache).incoming.iterdir())


def state(path: Path) -> str:
    """Return the state of a clip: `absent`, `fetching`, `cached` or `failed`."""
    return os.getxattr(path, "user.kinetics.state").decode()


def wait_until(condition: Callable[[], object], *, within: float = 60) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it is not true within `within` seconds.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition is not true within {within} s")
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """Return the living descendants of a process."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # proc_pid_stat(5): the name in parentheses can contain any character.
            status, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if status != "Z":
                parents[int(folder.name)] = int(parent)
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= new
    return found


def open_paths(pid: int) -> list[str]:
    """Return what the descriptors of a process refer to. Those that it closes meanwhile are left out."""
    paths = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            paths.append(os.readlink(link))  # noqa: PTH115  # not all of them are paths
    return paths


def command_line(pid: int) -> str:
    """Return the command line of a process; an empty string if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def reading(paths: Iterable[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a process for each path that copies the file to its standard output; the context ends them all."""
    readers: list[subprocess.Popen[bytes]] = []
    try:
        for path in paths:
            readers.append(subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        yield readers
    finally:
        for reader in readers:
            if reader.poll() is None:
                reader.send_signal(signal.SIGKILL)
            reader.communicate()


def used_files(root: Path) -> int:
    """Return the number of used files of a mount, as `df -i` computes it."""
    statistics = os.statvfs(root)
    return statistics.f_files - statistics.f_ffree
