"""Three minutes of crashes and network faults, in which no clip may be wrong.

A mount and a prefetch share a cache and fetch from a fake YouTube, by the real extractor, while readers check every
clip that they get. At random, worker processes, their ffmpeg, the prefetch and the mount are killed (SIGKILL; the mount
is mounted again each time), and the media and the player API give wrong answers. At the end all processes are killed at
once, and every clip on the disk is checked to the frame, by the numbers burned into its frames.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mounts import Mounted, Ours, ending_by_signal
from benchmarks.report import Row, Target
from kinetics_fs.catalog import Clip
from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.store import CacheLayout, Store
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import ENVIRONMENT
from tests.support.mounts import CLASS, command_line, descendants, state
from tests.support.videos import RATE, Videos, make_videos
from tests.support.youtube import MEDIA_FAULTS, FakeYouTube

_FULL, _QUICK = 180.0, 30.0  # seconds
_READERS = 6
_WORKERS = 2  # of the mount, and of the prefetch
_VIDEO_SECONDS = 60
_SHAPES = ("progressive", "index_last", "adaptive", "hls", "progressive", "adaptive")
_STARTS = range(0, _VIDEO_SECONDS - 3, 3)
_LIMIT = 10_000_000  # size of the cache in bytes: about a third of all clips
_LIFE = (4.0, 12.0)  # seconds that a mount lives
_PAUSE = (0.1, 0.8)  # seconds between two faults
_FORGIVE_EVERY = 1.0  # seconds
_TIMEOUT = 12  # seconds for a clip
_SCENARIOS = ("http-429", "http-500", "http-503", "reset", "html", "rate-limit")
_VICTIMS = ("mount", "prefetch", "worker", "ffmpeg")
_ENDED_WITHIN = 20.0
_AFTERWARDS = 8
_NONE = Target("ours", "<=", 0)
_SOME = Target("ours", ">=", 1)  # a run without any proves nothing

_OF_A_FETCH = {errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}
"""Errnos of a failed fetch; never ENOSPC, because there is space."""
_OF_A_DEAD_MOUNT = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ENOENT}
"""Errnos of a dead mount, and of the folder below it until the next mount."""


@dataclass
class _Seen:
    """Counts of faults and of their effects."""

    exact: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unfitting: int = 0
    stuck: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    left_processes: int = 0
    left_files: int = 0
    stored: int = 0
    wrong_stored: int = 0
    disagreements: int = 0
    lost_afterwards: int = 0


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure, in three and a half minutes; with `quick` in one."""
    with ending_by_signal(), tempfile.TemporaryDirectory(prefix="kinetics-fs-chaos-") as made:
        seen = _Chaos(Path(made)).run(_QUICK if quick else _FULL)
    by_errno = ", ".join(f"{name} {number}" for name, number in seen.errors.most_common())
    return [
        Row("opens that gave the exact clip", seen.exact, target=_SOME),
        Row(f"opens that failed{by_errno and f' ({by_errno})'}", seen.errors.total()),
        *(
            Row(f"killed: {name}", seen.killed[name], target=_SOME)
            for name in ("mount", "prefetch", "worker", "ffmpeg")
        ),
        Row("faults of the network", seen.faults, target=_SOME),
        Row("clips read that were wrong", seen.wrong, target=_NONE),
        Row("errnos that do not fit", seen.unfitting, target=_NONE),
        Row("readers stuck", seen.stuck, target=_NONE),
        Row("processes left", seen.left_processes, target=_NONE),
        Row("files in incoming/ after a restart", seen.left_files, target=_NONE),
        Row("clips in the store", seen.stored, target=_SOME),
        Row("clips in the store that are wrong", seen.wrong_stored, target=_NONE),
        Row("differences between database, table and files", seen.disagreements, target=_NONE),
        Row("clips unavailable after all faults have ended", seen.lost_afterwards, target=_NONE),
    ]


class _Chaos:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache = folder / "cache"
        self._mountpoint = folder / "mountpoint"
        self._mountpoint.mkdir()
        self._draw = random.Random()
        self._seen = _Seen()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._proved: set[tuple[Clip, str]] = set()
        self._started: dict[int, str] = {}
        """Start time of every descendant process by id, because the kernel reuses ids."""
        self._lives = 0
        """Number of starts and ends of the mount: odd while it is mounted."""
        self._prefetching: subprocess.Popen[bytes] | None = None

    def run(self, seconds: float) -> _Seen:
        shapes = self._folder / "videos"
        shapes.mkdir()
        videos = make_videos(shapes, seconds=_VIDEO_SECONDS)
        with FakeYouTube() as self._youtube:
            self._ids = [_publish(self._youtube, videos, number, shape) for number, shape in enumerate(_SHAPES)]
            self._clips = [Clip(video, start, start + 2 + start % 2) for video in self._ids for start in _STARTS]
            arguments = self._arguments()
            self._system = Ours("chaos", ["--frontend", "native", *arguments], config=self._folder / "config.toml")
            self._prefetch = [sys.executable, "-m", "kinetics_fs", "--config", str(self._folder / "config.toml")]
            self._prefetch += ["prefetch", *map(str, arguments)]
            readers = [threading.Thread(target=self._read, daemon=True) for _ in range(_READERS)]
            for reader in readers:
                reader.start()
            try:
                self._live(seconds)
            finally:
                self._over.set()
                self._end_prefetch()
            self._judge(readers)
        return self._seen

    def _arguments(self) -> list[object]:
        annotations = write_annotations(
            self._folder / "clips.csv", [Labelled(CLASS, clip, "train") for clip in self._clips]
        )
        options = {
            **self._youtube.ytdlp_options,
            "socket_timeout": 1,
            "retries": 1,
            "fragment_retries": 1,
            "extractor_retries": 1,
        }
        table = "".join(_toml(options))
        (self._folder / "config.toml").write_text(f"[youtube]\nprograms = true\n\n[youtube.ytdlp]\n{table}")
        return [
            *("--annotations", annotations, "--cache-dir", self._cache, "--min-free", 0),
            *("--cache-size", f"{_LIMIT}B", "--small-cache"),
            *("--workers", _WORKERS, "--timeout", _TIMEOUT, "--max-fetches-per-hour", 0),
        ]

    # Faults

    def _live(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._system.mounted(self._mountpoint) as mounted:
                self._lives += 1
                self._inject_faults(mounted, min(end, time.monotonic() + self._draw.uniform(*_LIFE)))
                last = time.monotonic() >= end
                if last:
                    self._end_prefetch()
                self._note(mounted)
                self._lives += 1
                self._kill(mounted.pid, "mount")

    def _inject_faults(self, mounted: Mounted, until: float) -> None:
        faults = [self._kill_one_below, self._kill_one_below, self._break, self._break, self._mend, self._kill_prefetch]
        weights = (3, 3, 4, 4, 4, 1)
        forgiven = 0.0
        while time.monotonic() < until:
            if self._prefetching is None or self._prefetching.poll() is not None:
                # It ends when all clips are fetched, or when the source rate-limits it.
                self._prefetching = subprocess.Popen(
                    self._prefetch, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            if time.monotonic() > forgiven + _FORGIVE_EVERY:
                # Without this, every clip would soon wait for the end of a rate limit or for its next try.
                with Store(self._cache) as store:
                    store.throttle.reset_blocks()
                    store.failures.forget()
                forgiven = time.monotonic()
            self._note(mounted)
            [fault] = self._draw.choices(faults, weights)
            fault(mounted)
            time.sleep(self._draw.uniform(*_PAUSE))

    def _kill_one_below(self, mounted: Mounted) -> None:
        name = self._draw.choice(["worker", "ffmpeg"])
        for _ in range(20 if name == "ffmpeg" else 1):  # an ffmpeg runs for a short time
            below = [pid for pid in self._below(mounted) if _is(pid, name)]
            if below:
                return self._kill(self._draw.choice(below), name)
            time.sleep(0.05)
        return None

    def _kill_prefetch(self, _: Mounted) -> None:
        if self._prefetching is not None and self._prefetching.poll() is None:
            self._kill(self._prefetching.pid, "prefetch")
            self._prefetching.wait()

    def _end_prefetch(self) -> None:
        if self._prefetching is not None and self._prefetching.poll() is None:
            self._prefetching.kill()
            self._prefetching.wait()

    def _break(self, _: Mounted) -> None:
        video = self._draw.choice(self._ids)
        if self._draw.random() < 0.3:
            self._youtube.set_scenario(video, self._draw.choice(_SCENARIOS))
        else:
            fault = self._draw.choice(sorted(MEDIA_FAULTS))
            self._youtube.media_fault[video] = fault if self._draw.random() < 0.5 else ["ok", fault]
        self._seen.faults += 1

    def _mend(self, _: Mounted) -> None:
        for video in self._ids if self._draw.random() < 0.3 else [self._draw.choice(self._ids)]:
            self._youtube.media_fault.pop(video, None)
            self._youtube.set_scenario(video, "ok")

    def _kill(self, pid: int, name: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._seen.killed[name] += 1

    def _below(self, mounted: Mounted) -> set[int]:
        """Return the descendants of the mount and of the prefetch."""
        roots = [mounted.pid, *([self._prefetching.pid] if self._prefetching is not None else [])]
        return {pid for root in roots for pid in descendants(root)}

    def _note(self, mounted: Mounted) -> None:
        for pid in {mounted.pid, *self._below(mounted)}:
            if (started := _started(pid)) is not None:
                self._started[pid] = started

    # Checks

    def _read(self) -> None:
        draw = random.Random()
        while not self._over.is_set():
            clip, life = draw.choice(self._clips), self._lives
            try:
                content = (self._mountpoint / "train" / CLASS / clip.name).read_bytes()
            except OSError as error:
                same_life = life == self._lives and life % 2
                with self._lock:
                    self._seen.errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
                    if error.errno not in (_OF_A_FETCH if same_life else _OF_A_FETCH | _OF_A_DEAD_MOUNT):
                        self._seen.unfitting += 1
                        print(f"{clip.key}: {error}", file=sys.stderr)
                time.sleep(0.1)
                continue
            right = self._is_exact(clip, content)
            with self._lock:
                self._seen.exact += right
                self._seen.wrong += not right

    def _is_exact(self, clip: Clip, content: bytes) -> bool:
        digest = hashlib.sha256(content).hexdigest()
        if (clip, digest) in self._proved:
            return True
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".mp4") as copy:
            copy.write(content)
            copy.flush()
            try:
                found = frame_numbers(Path(copy.name))
            except ValueError as error:  # PyAV raises it for invalid data
                print(f"{clip.key}: {error}", file=sys.stderr)
                return False
        if found != list(range(clip.start * RATE, clip.end * RATE)):
            print(f"{clip.key}: {len(found)} frames, {found[:2]} to {found[-2:]}", file=sys.stderr)
            return False
        self._proved.add((clip, digest))
        return True

    def _judge(self, readers: list[threading.Thread]) -> None:
        for reader in readers:
            reader.join(_ENDED_WITHIN)
        self._seen.stuck = sum(reader.is_alive() for reader in readers)
        end = time.monotonic() + _ENDED_WITHIN
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.2)
        for pid in left:
            print(f"left: {pid} {command_line(pid)}", file=sys.stderr)
        self._seen.left_processes = len(left)
        with Store(self._cache):
            self._seen.left_files = sum(1 for _ in CacheLayout(self._cache).incoming.rglob("*"))
        self._check_store()
        self._youtube.media_fault.clear()
        for video in self._ids:
            self._youtube.set_scenario(video, "ok")
        with Store(self._cache) as store:
            store.throttle.reset_blocks()
            store.failures.forget()
        with self._system.mounted(self._mountpoint):
            paths = [self._mountpoint / "train" / CLASS / clip.name for clip in self._clips]
            absent = [path for path in paths if state(path) == "absent"][:_AFTERWARDS]
            for path in absent:
                clip = parse_clip_name(path.name)
                assert clip is not None
                try:
                    self._seen.lost_afterwards += not self._is_exact(clip, path.read_bytes())
                except OSError as error:
                    print(f"afterwards: {error}", file=sys.stderr)
                    self._seen.lost_afterwards += 1

    def _left(self) -> set[int]:
        """Return the noted processes that still run, and all that work in the cache folder."""
        found = {pid for pid, started in self._started.items() if _started(pid) == started}
        for process in Path("/proc").glob("[0-9]*"):
            pid = int(process.name)
            with suppress(OSError):
                if str(process.joinpath("cwd").readlink()).startswith(f"{self._cache}/"):
                    found.add(pid)
            if str(self._cache) in command_line(pid):
                found.add(pid)
        return found

    def _check_store(self) -> None:
        """Check that the table, the database and the files agree, and that each file is its clip."""
        with closing(sqlite3.connect(CacheLayout(self._cache).clip_table)) as db:
            table = {key: (filename, json.loads(tag)) for key, filename, tag in db.execute(
                "SELECT key, filename, tag FROM Cache"
            )}  # fmt: skip
            counted = dict(db.execute("SELECT key, value FROM Settings WHERE key IN ('count', 'size')"))
        with closing(sqlite3.connect(CacheLayout(self._cache).state_database)) as db:
            database = {key: (size, digest) for key, size, digest in db.execute(
                "SELECT key || '.' || profile, size, sha256 FROM clip WHERE cached"
            )}  # fmt: skip
            [(fetches,)] = db.execute("SELECT count(*) FROM fetch")
        clips = CacheLayout(self._cache).clips
        files = {str(path.relative_to(clips)) for path in clips.glob("*/*")}
        different = [
            *(database.keys() ^ table.keys()),
            *(files ^ {filename for filename, _ in table.values()}),
            *(
                ["counts"]
                if counted != {"count": len(table), "size": sum(size for size, _ in database.values())}
                else []
            ),
            *(["fetches"] if fetches else []),
        ]
        for key, (filename, record) in table.items():
            content = (clips / filename).read_bytes()
            clip = parse_clip_name(f"{key.partition('.')[0]}.mp4")
            assert clip is not None
            truth = (len(content), hashlib.sha256(content).hexdigest())
            if truth != (record["size"], record["sha256"]) or database.get(key) != truth:
                different.append(key)
            self._seen.stored += 1
            self._seen.wrong_stored += not self._is_exact(clip, content)
        for one in different:
            print(f"different: {one}", file=sys.stderr)
        self._seen.disagreements = len(different)


def _publish(youtube: FakeYouTube, videos: Videos, number: int, shape: str) -> str:
    video = f"chaos_{number:05d}"
    youtube.add_video(video, duration=videos.seconds, **videos.formats(shape))
    return video


def _toml(table: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml(value, f"{before}{key}.")
        else:
            yield f"{before}{key} = {json.dumps(value)}\n"


def _is(pid: int, name: str) -> bool:
    command = command_line(pid)
    return "kinetics_fs.fetch.worker" in command if name == "worker" else Path(command.split(" ")[0]).name == name


def _started(pid: int) -> str | None:
    """Return the start time of a process; None if it has ended."""
    with suppress(OSError):
        # proc_pid_stat(5): the name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
