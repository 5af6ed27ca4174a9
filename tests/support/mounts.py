"""Helpers of the tests of mounts: short clips, paths and states of clips, processes that read, process trees."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout, FailureReport, Store
from tests.support.command_line import Mounted

CLASS = "short clips"
"""The class of `short_clips`."""


class Labelled(NamedTuple):
    """A row of an annotation file."""

    label: str
    clip: Clip
    split: str


def short_clips(seconds: int) -> list[Clip]:
    """Every clip of so many seconds that the demo's videos have: quick to fetch, and there are many."""
    return [
        Clip(video, start, start + seconds)
        for video, length in VIDEOS.items()
        for start in range(int(length) - seconds + 1)
    ]


def write_annotations(path: Path, rows: Iterable[Labelled]) -> Path:
    """Writes an annotation file in the form of the Kinetics crawlers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([row.label, *row.clip, row.split] for row in rows)
    return path


def write_clips(folder: Path, clips: Iterable[Clip]) -> Path:
    """Makes a folder of clips, for mounts that are about how clips are read and not how they are fetched.

    They show the same, and no two have the same bytes.
    """
    folder.mkdir()
    videos: dict[int, bytes] = {}
    for clip in clips:
        path = folder / clip.name
        seconds = clip.end - clip.start
        if seconds not in videos:
            make_video(path, seconds=seconds, ffmpeg=find_ffmpeg())
            videos[seconds] = path.read_bytes()
        # A box of the kind that every reader skips (ISO/IEC 14496-12, 8.1.2).
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


def cached_file(cache: Path, clip: Clip) -> Path:
    """The file in the cache folder that holds a clip."""
    [path] = CacheLayout(cache).clips.glob(f"*/{clip.key}.*.mp4")
    return path


def incoming(cache: Path) -> list[Path]:
    """What fetches under way, or dead ones, have in the cache folder."""
    return list(CacheLayout(cache).incoming.iterdir())


def state(path: Path) -> str:
    """What the mount says of a clip: `absent`, `fetching`, `cached` or `failed`."""
    return os.getxattr(path, "user.kinetics.state").decode()


def wait_until(condition: Callable[[], object], *, within: float = 60) -> None:
    """Waits for something to become true.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {within} s")
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """The living processes below a process."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # proc_pid_stat(5): the name, in parentheses, may hold anything.
            status, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if status != "Z":
                parents[int(folder.name)] = int(parent)
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= new
    return found


def command_line(pid: int) -> str:
    """The command of a process, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def reading(paths: Iterable[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process for each path, which copies it to its standard output; none of them outlives the context."""
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
