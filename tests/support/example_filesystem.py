"""A small filesystem: a catalog, a store, and a fetcher that tests control."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kinetics_fs.catalog import Catalog, Clip, compile_catalog, find_release
from kinetics_fs.errors import FetchError
from kinetics_fs.store import Store
from kinetics_fs.vfs import ROOT, Filesystem, FilesystemOptions
from tests.support.annotations import csv_text, youtube_id

FULL = "abseiling"
"""A class with many clips, in training and in validation."""
ODD = "massaging person's head, “often”"
"""A class with a name that is longer in bytes than in letters."""
CLIPS = [Clip(youtube_id(number), number, number + 10) for number in range(400)]
"""The clips of `FULL` in training, in the order of their numbers; the first `TWICE` are also in validation."""
TWICE = 5


def content(clip: Clip, size: int = 10_000, version: int = 1) -> bytes:
    """Return the bytes of a clip, different for each clip and version."""
    return Random(f"{clip.key} {version}").randbytes(size)


def write_rows(folder: Path) -> Path:
    """Write the annotation file."""
    rows = [f"{FULL},{clip.youtube_id},{clip.start},{clip.end},train" for clip in CLIPS]
    rows += [f"{FULL},{clip.youtube_id},{clip.start},{clip.end},validate" for clip in CLIPS[:TWICE]]
    rows += [f'"{ODD}",{clip.youtube_id},{clip.start},{clip.end},train' for clip in CLIPS[:3]]
    path = folder / "rows.csv"
    path.write_text(csv_text(rows))
    return path


def put(store: Store, clip: Clip, data: bytes) -> None:
    """Publish a clip in a store."""
    claim = store.claim(clip)
    assert claim is not None
    with claim:
        path = claim.folder / "clip.mp4"
        path.write_bytes(data)
        claim.publish(path, "test")


class FakeFetcher:
    """A fetcher whose fetches end when a test calls `deliver` or `fail`, or completes their futures.

    Attributes:
        fetches: the clip and the future of each request, without those that `deliver` and `fail` have ended.
    """

    def __init__(self, store: Store) -> None:
        self.fetches: list[tuple[Clip, Future[None]]] = []
        self._store = store
        self._lock = threading.Lock()

    def request(self, clip: Clip) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            self.fetches.append((clip, future))
        return future

    def fetch_ahead(self, clip: Clip) -> None:
        self.request(clip)

    def known_failure(self, clip: Clip) -> FetchError | None:
        return None

    def wants_longer(self, clip: Clip) -> bool:
        return False

    def is_fetching(self, clip: Clip) -> bool:
        with self._lock:
            return any(requested == clip and not future.done() for requested, future in self.fetches)

    def deliver(self, clip: Clip, data: bytes) -> None:
        """Publish a clip in the store, and complete all requests for it."""
        put(self._store, clip, data)
        for future in self._take(clip):
            future.set_result(None)

    def fail(self, clip: Clip, error: FetchError) -> None:
        """Fail all requests for a clip."""
        for future in self._take(clip):
            future.set_exception(error)

    def _take(self, clip: Clip) -> list[Future[None]]:
        """Remove the requests for a clip; return the futures of those that wait."""
        with self._lock:
            taken = [future for requested, future in self.fetches if requested == clip]
            self.fetches = [(requested, future) for requested, future in self.fetches if requested != clip]
        waiting = [future for future in taken if future.cancelled() or not future.done()]
        return [future for future in waiting if future.set_running_or_notify_cancel()]


@dataclass
class ExampleFilesystem:
    """A filesystem with its store and its fetcher, and inode numbers in it."""

    fs: Filesystem
    store: Store
    fetcher: FakeFetcher

    def directory(self, split: str = "train", name: str = FULL) -> int:
        """Return the inode number of a class directory."""
        return self.fs.lookup(self.fs.lookup(ROOT, split), name)

    def ino(self, clip: Clip, split: str = "train") -> int:
        """Return the inode number of a clip in the class `FULL`."""
        return self.fs.lookup(self.directory(split), clip.name)

    def control(self, name: str) -> int:
        """Return the inode number of a file in `.kinetics`."""
        return self.fs.lookup(self.fs.lookup(ROOT, ".kinetics"), name)

    def open_clips(self) -> int:
        """Return the number of descriptors of this process on files of clips, evicted ones included."""
        return sum(link.startswith(str(self.store.folder)) and ".mp4" in link for link in descriptors())


@contextmanager
def example_filesystem(folder: Path, options: FilesystemOptions | None = None) -> Iterator[ExampleFilesystem]:
    """Make an `ExampleFilesystem` in an empty folder."""
    with (
        Catalog(compile_catalog([write_rows(folder)], find_release("600"), folder / "catalogs")) as catalog,
        Store(folder / "cache") as store,
    ):
        fetcher = FakeFetcher(store)
        yield ExampleFilesystem(Filesystem(catalog, store, fetcher, options), store, fetcher)


def descriptors() -> list[str]:
    """Return the targets of the descriptors of this process."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115  # some are not paths
    return found
