"""Tasks of a process that reads from a tree of files: `python -m benchmarks.readers`.

The process takes a JSON object from its standard input (the arguments of `_Reader`, and `tasks`, names of its methods),
and prints a JSON object with all measurements.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from statistics import median, quantiles

_BUFFER = 4 << 20
_STACK = 128 << 10  # of a thread that does nothing but wait


class _Reader:
    """Tasks; each returns numbers by name.

    Args:
        root: of the tree.
        clips: paths of clips to read, below the root.
        videos: paths of clips that can be decoded.
        folders: paths of folders to pack.
        seconds: maximum duration of a task; rates are of the part that was done by then.
        opens: number of opens to time.
    """

    def __init__(
        self, root: str, clips: list[str], videos: list[str], folders: list[str], seconds: float, opens: int
    ) -> None:
        self._root = root
        self._clips = [f"{root}/{clip}" for clip in clips]
        self._videos = [f"{root}/{video}" for video in videos]
        self._folders = folders
        self._seconds = seconds
        self._opens = opens
        self._found: list[str] = []
        self._buffer = bytearray(_BUFFER)

    def walk(self) -> dict[str, float]:
        """Walk the tree with `os.walk`, which calls scandir for every folder."""
        entries = 0
        clock = _Clock(self._seconds)
        for folder, folders, files in os.walk(self._root):
            if folder == self._root and ".kinetics" in folders:
                folders.remove(".kinetics")  # other systems have no such folder
            entries += len(folders) + len(files)
            self._found += [f"{folder}/{file}" for file in files]
            if clock.is_over():
                break
        return {"walk": entries / clock.elapsed(), "entries": entries}

    def stat(self) -> dict[str, float]:
        """Stat every file that `walk` found, in that order."""
        done = 0
        clock = _Clock(self._seconds)
        while done < len(self._found) and not clock.is_over():
            some = self._found[done : done + 1000]
            for path in some:
                os.stat(path)  # noqa: PTH116  # pathlib doubles the cost
            done += len(some)
        return {"stat": done / clock.elapsed()}

    def latency(self) -> dict[str, float]:
        """Open and close clips in random order; all of them were open once before."""
        for path in self._clips:
            os.close(os.open(path, os.O_RDONLY))
        draw = random.Random(1)
        times = []
        for path in draw.choices(self._clips, k=self._opens):
            started = time.perf_counter()
            os.close(os.open(path, os.O_RDONLY))
            times.append(time.perf_counter() - started)
        return {"open": median(times) * 1e6, "open p99": quantiles(times, n=100)[98] * 1e6}

    def read(self) -> dict[str, float]:
        """Read whole clips, one after the other, into one buffer: no reader is faster."""
        return {"read": self._read_clips()}

    def read_again(self) -> dict[str, float]:
        """Read the same clips again."""
        return {"read again": self._read_clips()}

    def read_cold(self) -> dict[str, float]:
        """Read the clips after their pages were evicted."""
        return {"read cold": self._read_clips()}

    def _read_clips(self) -> float:
        size = 0
        clock = _Clock(self._seconds)
        for path in self._clips:
            fd = os.open(path, os.O_RDONLY)
            while got := os.readv(fd, [self._buffer]):
                size += got
            os.close(fd)
            if clock.is_over():
                break
        return size / clock.elapsed() / 1e6

    def evict(self) -> dict[str, float]:
        """Drop the pages of the clips in this filesystem from memory."""
        for path in self._clips:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        return {}

    def tar(self) -> dict[str, float]:
        """Run `tar c` into a pipe: tar reads nothing when its output is /dev/null."""
        clock = _Clock(self._seconds)
        with subprocess.Popen(
            ["tar", "-c", "-C", self._root, *self._folders], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as packing:
            assert packing.stdout is not None
            size = 0
            while got := os.readv(packing.stdout.fileno(), [self._buffer]):
                size += got
                if clock.is_over():
                    packing.kill()
                    break
            elapsed = clock.elapsed()
        return {"tar": size / elapsed / 1e6}

    def load(self) -> dict[str, float]:
        """Decode every frame in two processes, as the workers of a training loader do."""
        with ProcessPoolExecutor(2, get_context("fork")) as workers:
            # Both processes have loaded the decoder before the time is taken.
            list(workers.map(_frames, self._videos[:2]))
            clock = _Clock(self._seconds)
            frames = sum(workers.map(_frames, self._videos))
            return {"decode": frames / clock.elapsed()}

    def wait(self) -> dict[str, float]:
        """Open every clip at the same time, each in a thread, until the process is killed."""
        threading.stack_size(_STACK)
        for path in self._clips:
            threading.Thread(target=_open_in_vain, args=(path,), daemon=True).start()
        signal.pause()
        return {}


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._started = time.perf_counter()
        self._seconds = seconds

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def is_over(self) -> bool:
        return self.elapsed() >= self._seconds


def _frames(path: str) -> int:
    import av  # in this task only, because loading it takes longer than most tasks

    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def _open_in_vain(path: str) -> None:
    with suppress(OSError):
        os.close(os.open(path, os.O_RDONLY))


def main() -> None:
    """Run the tasks of a request on standard input."""
    request = json.load(sys.stdin)
    tasks = request.pop("tasks")
    reader = _Reader(**request)
    measured: dict[str, float] = {}
    for task in tasks:
        method: Callable[[], dict[str, float]] = getattr(reader, task)
        measured |= method()
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
