"""Thumbnails of some cached clips, spread evenly over the classes."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from kinetics_fs.catalog import Catalog, Clip, Directory
from kinetics_fs.errors import FetchError
from kinetics_fs.media.checker import Checker
from kinetics_fs.store import Store, class_pages

_WIDTH = 208


class Picture(NamedTuple):
    """A thumbnail of a clip."""

    split: str
    label: str
    clip: Clip
    size: int
    source: str
    jpeg: bytes
    """Empty if the clip cannot be decoded."""
    fault: str
    """Why it cannot be decoded; empty if it can."""

    @property
    def address(self) -> str:
        """The thumbnail as a `data:` URL."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def pictures(catalog: Catalog, store: Store, cached: Mapping[tuple[str, str], int], count: int) -> Iterator[Picture]:
    """Yield thumbnails of cached clips, without updating the access times of the clips.

    Args:
        catalog: the selection.
        store: the cache.
        cached: number of cached clips for each pair of split and label.
        count: maximum number of thumbnails.
    """
    directories = [
        (directory, cached[split.split, directory.label or ""])
        for split in catalog.splits()
        for directory in catalog.classes(split)
        if cached.get((split.split, directory.label or ""))
    ]
    with Checker() as checker:
        for directory, wanted in _evenly(directories, count).items():
            for clip in islice(_cached_clips(catalog, store, directory), wanted):
                if (picture := _thumbnail(store, checker, directory, clip)) is not None:
                    yield picture


def _evenly(directories: Sequence[tuple[Directory, int]], count: int) -> Counter[Directory]:
    """Distribute `count` thumbnails over the directories, none more than it has clips; in the order given."""
    if len(directories) > count:
        directories = [directories[turn * len(directories) // count] for turn in range(count)]
    turns = (directory for turn in range(count) for directory, most in directories if turn < most)
    shares = Counter(islice(turns, count))
    return Counter({directory: shares[directory] for directory, _ in directories if shares[directory]})


def _cached_clips(catalog: Catalog, store: Store, directory: Directory) -> Iterator[Clip]:
    for page in class_pages(catalog, store, directory):
        yield from (entry.clip for entry in page.entries if page.is_cached(entry))


def _thumbnail(store: Store, checker: Checker, directory: Directory, clip: Clip) -> Picture | None:
    jpeg, fault = b"", ""
    size, source = 0, ""
    try:
        found = store.peek(clip)
        if found is None:  # evicted in the meantime
            return None
        size, source = found.size, found.record.source
        with os.fdopen(found.fd, "rb") as file:
            jpeg = checker.thumbnail(file.fileno(), _WIDTH)
    except FileNotFoundError:
        fault = "the file is missing"
    except FetchError as error:
        fault = error.reason
    return Picture(directory.split, directory.label or "", clip, size, source, jpeg, fault)
