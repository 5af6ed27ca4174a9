"""A reader of the soak: `python -m benchmarks.soak_reader`, one of several that read the same clips.

The process takes a JSON object from its standard input (the arguments of `_Reader`). It reads for the given time,
prints every fault to its standard error, and at the end prints a JSON object with its counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.demo.dataset import expected_frames
from kinetics_fs.demo.media import frame_numbers

_FAVOURITES = 6
_FAVOURITES_FOR = 10.0  # seconds
_OTHERS = 0.05  # of all turns
_MAX_PAUSE = 1.0  # seconds, in the middle of a slow read


class _Reader:
    """A reader that takes random turns and checks every content that it reads.

    The numbers on the frames must be those of the clip, and the digest must be the one that the store has computed for
    it. A content that any reader has checked is known by its digest.

    Args:
        root: of the mount.
        paths: of all its clips, below the root.
        proofs: folder that all readers share, with an empty file `<clip>.<digest>` for each checked content.
        seconds: duration.
        seed: of the random turns.
    """

    def __init__(self, root: str, paths: list[str], proofs: str, seconds: float, seed: int) -> None:
        self._paths = [Path(root, path) for path in paths]
        self._names: dict[Path, set[str]] = defaultdict(set)
        for path in self._paths:
            self._names[path.parent].add(path.name)
        self._proofs = Path(proofs)
        self._seconds = seconds
        self._draw = random.Random(seed)
        self._sizes: dict[Path, set[int]] = defaultdict(set)
        """Sizes of the contents that this reader has checked."""
        self._opens = 0
        self._wrong = 0
        self._errors: Counter[str] = Counter()
        self._cached: list[float] = []
        """Microseconds that the opens of cached clips took."""

    def run(self) -> dict[str, Any]:
        turns = [self._read, self._read_slowly, self._map, self._decode, self._look]
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            [turn] = self._draw.choices(turns, weights=(6, 1, 2, 1, 4))
            path = self._pick()
            try:
                turn(path)
            except ValueError as error:  # PyAV raises it for invalid data
                self._wrong += 1
                print(f"{turn.__name__} {path}: {error}", file=sys.stderr)
            except OSError as error:
                self._errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
                print(f"{turn.__name__} {path}: {error}", file=sys.stderr)
        return {
            "opens": self._opens,
            "wrong": self._wrong,
            "errors": self._errors,
            "cached": self._cached,
        }

    def _pick(self) -> Path:
        """Return mostly one of a few clips that all readers prefer at the moment. Former favourites get evicted."""
        if self._draw.random() < _OTHERS:
            return self._draw.choice(self._paths)
        favourites = random.Random(int(time.monotonic() / _FAVOURITES_FOR)).sample(self._paths, _FAVOURITES)
        return self._draw.choice(favourites)

    # Turns

    def _read(self, path: Path) -> None:
        with self._opened(path) as fd:
            self._check(path, _rest(fd), os.fstat(fd).st_size)

    def _read_slowly(self, path: Path) -> None:
        """Read with a pause in the middle, long enough for the clip to be evicted."""
        with self._opened(path) as fd:
            size = os.fstat(fd).st_size
            content = os.read(fd, size // 2)
            time.sleep(self._draw.uniform(0, _MAX_PAUSE))
            self._check(path, content + _rest(fd), size)

    def _map(self, path: Path) -> None:
        with self._opened(path) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
            self._check(path, mapped[:], os.fstat(fd).st_size)

    def _decode(self, path: Path) -> None:
        self._opens += 1
        _check_frames(path, path.name)

    def _look(self, path: Path) -> None:
        size = path.stat().st_size
        if self._sizes[path] and size not in self._sizes[path]:
            raise ValueError(f"stat returns {size} bytes, the clip has {self._sizes[path]}")
        if set(os.listdir(path.parent)) != self._names[path.parent]:  # noqa: PTH208  # only names are needed
            raise ValueError(f"the listing of {path.parent} is wrong")

    # ------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        """Open a clip; take the time if it was cached just before."""
        cached = os.getxattr(path, "user.kinetics.state") == b"cached"
        started = time.perf_counter()
        fd = os.open(path, os.O_RDONLY)
        if cached:
            self._cached.append((time.perf_counter() - started) * 1e6)
        self._opens += 1
        try:
            yield fd
        finally:
            os.close(fd)

    def _check(self, path: Path, content: bytes, size: int) -> None:
        if size != len(content):
            raise ValueError(f"{len(content)} bytes were read, fstat returns {size}")
        digest = hashlib.sha256(content).hexdigest()
        proof = self._proofs / f"{path.name}.{digest}"
        if not proof.exists():
            with NamedTemporaryFile(suffix=".mp4") as copy:
                Path(copy.name).write_bytes(content)
                _check_frames(Path(copy.name), path.name)
            # Some damage leaves the numbers on the frames legible, but changes the digest.
            stored = _stored_digest(path)
            if stored is None:
                return
            if stored != digest:
                raise ValueError(f"{digest} was read, {stored} was stored")
            proof.touch()
        self._sizes[path].add(size)


def _stored_digest(path: Path) -> str | None:
    """Return the digest of a clip in the store; None if the clip was evicted."""
    try:
        return os.getxattr(path, "user.kinetics.sha256").decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def _rest(fd: int) -> bytes:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall()


def _check_frames(file: Path, name: str) -> None:
    clip = parse_clip_name(name)
    assert clip is not None
    found = frame_numbers(file)
    if found != expected_frames(clip):
        raise ValueError(f"it has the frames {found}")


def main() -> None:
    """Read as a request on standard input asks, and print the counts."""
    print(json.dumps(_Reader(**json.load(sys.stdin)).run()))


if __name__ == "__main__":
    main()
