"""Hours of use in ten minutes: many readers of far more clips than the cache can hold, with every read checked.

The mount fetches clips from a site on this machine, evicts them, and fetches them again, while eight processes
(`benchmarks.soak_reader`) read, map, decode, stat and list them. The numbers on the frames, and the digest in the
extended attributes, tell whether a clip is right. At the end the mount is unmounted during fetches, and no process and
no temporary file may remain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.mounts import Mounted, Ours, ending_by_signal, resident
from benchmarks.report import Row, Target
from kinetics_fs.demo.dataset import make_dataset
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import has_ended, kinetics_fs
from tests.support.mounts import CLASS, command_line, descendants, incoming, reading, short_clips, state, wait_until

_FULL, _QUICK = 600.0, 20.0  # seconds
_READERS = 8
_WORKERS = 2
_LIMIT = 6_000_000  # size of the cache in bytes; the clips together have eleven times as many
_CLIP_SECONDS = (2, 3, 4)
_EARLY = 0.1  # part of the time after which memory must not grow any more
_POLL_INTERVAL = 0.5
_READERS_END_WITHIN = 60.0
_MOUNT_ENDS_WITHIN = 20.0
_NONE = Target("ours", "<=", 0)


@dataclass
class _Seen:
    """The reports of the readers, and observations of the mount from outside."""

    opens: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cached: list[float] = field(default_factory=list)
    contents_beyond_the_first: int = 0
    lost_readers: int = 0
    memory: list[float] = field(default_factory=list)
    memory_of_workers: list[float] = field(default_factory=list)
    over_limit: int = 0
    evictions: int = 0
    descriptors: list[int] = field(default_factory=list)
    descriptors_of_clips: int = 0
    left_processes: int = 0
    left_files: int = 0


def run(*, quick: bool = False, passthrough: bool = True) -> Sequence[Row]:
    """Measure, for ten minutes; with `quick` for twenty seconds. Without `passthrough` the mount answers every read."""
    kernel_log = _kernel_log()
    with ending_by_signal(), tempfile.TemporaryDirectory(prefix="kinetics-fs-soak-") as made:
        mode, seen = _soak(Path(made), _QUICK if quick else _FULL, [] if passthrough else ["--no-passthrough"])
    news = None if kernel_log is None else [line for line in _kernel_log() or [] if line not in kernel_log]
    for line in news or []:
        print(line, file=sys.stderr)
    # There are no times if the mount broke at once; then the other rows show it.
    percentiles = quantiles(seen.cached, n=100) if len(seen.cached) > 1 else [None] * 99
    by_errno = ", ".join(f"{name} {number}" for name, number in seen.errors.most_common())
    early, before = "after a tenth of it", "before the first read"
    rows = [
        Row("opens", seen.opens),
        Row("evictions", seen.evictions, target=Target("ours", ">=", 1)),  # without evictions, the run proves nothing
        Row("wrong contents, sizes, listings", seen.wrong, target=_NONE),
        # The same input gives the same clip. A second content is damage by fetching that spared the numbers on frames.
        Row("contents beyond a clip's first", seen.contents_beyond_the_first, target=_NONE),
        Row(f"errors{by_errno and f' ({by_errno})'}", seen.errors.total(), target=_NONE),
        Row("readers that died or hung", seen.lost_readers, target=_NONE),
        Row("open of a cached clip, median, µs", percentiles[49]),
        Row("open of a cached clip, p99, µs", percentiles[98]),
        Row("bytes in the cache beyond the limit, maximum", seen.over_limit, target=_NONE),
        Row("resident memory of the mount, MB", seen.memory[-1], seen.memory[0], early, Target("ratio", "<=", 1.2)),
        Row(
            "resident memory of the fetching processes, MB",
            seen.memory_of_workers[-1],
            seen.memory_of_workers[0],
            early,
        ),
        Row("open descriptors at the end", seen.descriptors[-1], seen.descriptors[0], before),
        Row("open descriptors of clips at the end", seen.descriptors_of_clips, target=_NONE),
        Row("new lines of the kernel's log about fuse", None if news is None else len(news), target=_NONE),
        Row("processes left after umount", seen.left_processes, target=_NONE),
        Row("files left of fetches", seen.left_files, target=_NONE),
    ]
    return [Row(f"{row.name}: {mode}", row.ours, row.peer, row.peer_name, row.target) for row in rows]


def _kernel_log() -> list[str] | None:
    """Return the lines about FUSE in the log of the kernel; None if this user may not read it."""
    with suppress(OSError):
        done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return [line for line in done.stdout.splitlines() if "fuse" in line.lower()]
    return None


def _soak(folder: Path, seconds: float, arguments: list[str]) -> tuple[str, _Seen]:
    cache = folder / "cache"
    videos, mountpoint, proofs = folder / "videos", folder / "mountpoint", folder / "proofs"
    for needed in (videos, mountpoint, proofs):
        needed.mkdir()
    make_dataset(videos, find_ffmpeg())
    clips = [clip for length in _CLIP_SECONDS for clip in short_clips(length)]
    annotations = write_annotations(folder / "clips.csv", [Labelled(CLASS, clip, "train") for clip in clips])
    paths = [f"train/{CLASS}/{clip.name}" for clip in clips]
    seen = _Seen()
    with VideoSite(videos) as site:
        limits = [
            "--cache-dir",
            cache,
            "--cache-size",
            f"{_LIMIT}B",
            "--small-cache",
            "--min-free",
            0,
            "--workers",
            _WORKERS,
        ]
        fetched_from = ["--annotations", annotations, "--video-url", site.url_template]
        with Ours("soak", ["--frontend", "native", *arguments, *fetched_from, *limits]).mounted(mountpoint) as mounted:
            mode = mounted.status()["frontend"]["mode"]
            seen.descriptors.append(len(_descriptors(mounted)))
            request = {"root": str(mountpoint), "paths": paths, "proofs": str(proofs), "seconds": seconds}
            with _readers(request) as readers:
                _watch(mounted, seconds, seen)
                for reader in readers:
                    _take_report(reader, seen)
            proved = [proof.stem for proof in proofs.iterdir()]
            seen.contents_beyond_the_first = len(proved) - len(set(proved))
            status = mounted.status()
            seen.evictions = status["fetch"]["fetched"] - status["cache"]["clips"]
            _count_descriptors(mounted, cache, seen)
            _end_amid_fetches(mounted, [mountpoint / path for path in paths], cache, seen)
    return mode, seen


@contextmanager
def _readers(request: dict[str, Any]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that read at the same time; all are killed at the end of the block."""
    readers: list[subprocess.Popen[str]] = []
    try:
        for seed in range(_READERS):
            command = [sys.executable, "-m", "benchmarks.soak_reader"]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            readers.append(reader)
            assert reader.stdin is not None
            json.dump({**request, "seed": seed}, reader.stdin)
            reader.stdin.close()
            reader.stdin = None
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def _take_report(reader: subprocess.Popen[str], seen: _Seen) -> None:
    try:
        printed, _ = reader.communicate(timeout=_READERS_END_WITHIN)
    except subprocess.TimeoutExpired:
        printed = ""
    if not printed:
        seen.lost_readers += 1
        return
    report: dict[str, Any] = json.loads(printed)
    seen.opens += report["opens"]
    seen.wrong += report["wrong"]
    seen.errors.update(report["errors"])
    seen.cached += report["cached"]


def _watch(mounted: Mounted, seconds: float, seen: _Seen) -> None:
    """Observe the mount until the readers are about to end."""
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        used = mounted.status()["cache"]["bytes"]
        seen.over_limit = max(seen.over_limit, used - _LIMIT)
        if not seen.memory and elapsed >= seconds * _EARLY:
            _weigh(mounted, seen)
        time.sleep(_POLL_INTERVAL)
    _weigh(mounted, seen)


def _weigh(mounted: Mounted, seen: _Seen) -> None:
    seen.memory.append(mounted.memory())
    # Only workers: an ffmpeg can end before its memory is read.
    workers = [pid for pid in descendants(mounted.pid) if "kinetics_fs.fetch.worker" in command_line(pid)]
    seen.memory_of_workers.append(sum(map(resident, workers)))


def _descriptors(mounted: Mounted) -> list[str]:
    """Return the targets of the open file descriptors of the mount."""
    found = []
    for link in Path(f"/proc/{mounted.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))  # noqa: PTH115  # some targets are not paths
    return found


def _count_descriptors(mounted: Mounted, cache: Path, seen: _Seen) -> None:
    """Count open descriptors after the last read. The kernel reports a close some time after it."""

    def of_clips() -> list[str]:
        return [target for target in _descriptors(mounted) if target.startswith(f"{cache}/clips/") and ".mp4" in target]

    with suppress(TimeoutError):
        wait_until(lambda: not of_clips(), within=5)
    seen.descriptors_of_clips = len(of_clips())
    seen.descriptors.append(len(_descriptors(mounted)))


def _end_amid_fetches(mounted: Mounted, paths: list[Path], cache: Path, seen: _Seen) -> None:
    """Unmount while clips are fetched for readers that have gone, and count the remaining processes and files."""
    absent = [path for path in paths if state(path) == "absent"][:_WORKERS]
    with reading(absent):
        wait_until(lambda: len(incoming(cache)) == _WORKERS)
    processes = {mounted.pid, *descendants(mounted.pid)}
    done = kinetics_fs("umount", mounted.root)
    if done.returncode:
        raise RuntimeError(f"cannot unmount: {done.stderr}")
    end = time.monotonic() + _MOUNT_ENDS_WITHIN
    left = {pid for pid in processes if not has_ended(pid, within=max(0, end - time.monotonic()))}
    # A process may have started since. Every process that works on a clip has the cache folder in its command.
    pids = [int(process.name) for process in Path("/proc").glob("[0-9]*")]
    left |= {pid for pid in pids if str(cache) in command_line(pid)}
    seen.left_processes = len(left)
    seen.left_files = sum(1 for path in CacheLayout(cache).incoming.rglob("*"))
