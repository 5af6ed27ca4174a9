"""A training loop over a mount of remote clips, next to the same loop over files on the disk.

The clips are in an indexed archive, behind nginx and a link with a round-trip time of 50 ms. The loop reads and decodes
one clip after the other in a shuffled order, and sleeps after each, as a process does that waits for an accelerator.
The cache is empty at the beginning of each epoch but the last one:

- the mount prefetches the order of the loop (`prefetch MOUNTPOINT --list`)
- the same, with space for a quarter of the clips
- the mount does not know the order
- a second epoch, with all clips in the cache
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.archives import NAME, QUICK, ROUND_TRIP, Scale, make_archive
from benchmarks.report import Row
from kinetics_fs.catalog import Clip
from tests.support.link import Link
from tests.support.servers import find_nginx, nginx

_FULL = Scale(24, 120, 3, 1, 1, 60)
_STEP = 0.25
"""Seconds that the loop sleeps after each clip."""

_LOOP = """
import sys, time
import av
began = time.perf_counter()
for path in sys.stdin.read().splitlines():
    with av.open(path) as container:
        assert sum(1 for _ in zip(range(64), container.decode(video=0))) == 64
    time.sleep(float(sys.argv[1]))
print(time.perf_counter() - began)
"""


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure, in about four minutes; with `quick` in less than one."""
    scale = QUICK if quick else _FULL
    if find_nginx() is None:
        return [Row("training: not measured, nginx is not installed", None)]
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-benchmark-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        clips = make_archive(folder, scale)
        size = sum(path.stat().st_size for path in clips.values())
        (folder / "nginx").mkdir()
        seconds: dict[str, list[float]] = {}
        with nginx(folder, folder / "nginx") as url, Link(int(url.rsplit(":", 1)[1]), rtt=ROUND_TRIP) as link:
            loop = _TrainingLoop(folder, clips, f"{link.url}/archives")
            for number in range(scale.rounds):
                order = random.Random(number).sample(sorted(clips), len(clips))
                for name, took in loop.measure(order, size):
                    seconds.setdefault(name, []).append(took)
    peer = median(seconds.pop("files"))
    names = {
        "known": "order known",
        "known, small": "order known, space for a quarter",
        "unknown": "order unknown",
        "cached": "all cached",
    }
    return [Row(f"an epoch, {names[name]}: s", median(took), peer, "files") for name, took in seconds.items()]


class _TrainingLoop:
    def __init__(self, folder: Path, clips: dict[Clip, Path], base: str) -> None:
        self._folder = folder
        self._clips = clips
        self._arguments = ("--archive-url", base, "--source", "archive", "--min-free", "0")
        self._annotations = folder / "annotations.csv"
        rows = [f"juggling,{clip.youtube_id},{clip.start},{clip.end},train" for clip in clips]
        self._annotations.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
        self._index = folder / "index"
        cache = folder / "first"
        _kinetics_fs("index", "build", "--archive", NAME, "--archive-url", base, "--cache-dir", cache)
        _kinetics_fs("index", "export", self._index, "--cache-dir", cache)
        shutil.rmtree(cache)

    def measure(self, order: list[Clip], size: int) -> Iterator[tuple[str, float]]:
        yield "files", _epoch([self._clips[clip] for clip in order])
        for name, limit in (("known", None), ("known, small", size // 4), ("unknown", None)):
            with self._mounted(limit) as root:
                paths = [root / "train/juggling" / clip.name for clip in order]
                if name != "unknown":
                    _kinetics_fs("prefetch", root, "--list", "-", lines=[str(path) for path in paths])
                yield name, _epoch(paths)
                if name == "unknown":
                    yield "cached", _epoch(paths)

    @contextmanager
    def _mounted(self, limit: int | None) -> Iterator[Path]:
        cache, root = self._folder / "cache", self._folder / "mount"
        _kinetics_fs("index", "import", self._index, "--cache-dir", cache)
        try:
            _kinetics_fs(
                "mount",
                *("--annotations", self._annotations, "--cache-dir", cache, "--log-file", self._folder / "log"),
                *self._arguments,
                *([] if limit is None else ["--cache-size", f"{limit}B", "--small-cache"]),
                root,
            )
            yield root
        finally:
            subprocess.run(["umount", "-l", root], capture_output=True, check=False)
            shutil.rmtree(cache, ignore_errors=True)


def _epoch(paths: Sequence[Path]) -> float:
    """Return the seconds that the loop takes."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, str(_STEP)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _kinetics_fs(*arguments: str | Path, lines: Sequence[str] = ()) -> None:
    subprocess.run(
        [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *map(str, arguments)],
        input="\n".join(lines),
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
