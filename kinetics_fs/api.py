"""Kinetics from Python, and the way from settings to all that works on them: the command line is built on this.

::

    from kinetics_fs import Library

    with Library(release="600", split="validation", classes=["surfing water"], max_samples=10) as library:
        library.prefetch()
        for path in library.paths():                # validation/surfing water/-a1B2c3D4e5_000010_000020.mp4
            with library.open(path) as file:        # fetched if it is not here
                ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

from kinetics_fs.app import make_fetcher, open_selected_catalog, open_store
from kinetics_fs.catalog import (
    Catalog,
    ClassNames,
    Clip,
    class_name,
    parse_clip_name,
)
from kinetics_fs.config import Settings
from kinetics_fs.control.status import PrefetchProgress, StoreStatus
from kinetics_fs.errors import CatalogError, FailureKind
from kinetics_fs.store import ActivityCounts, Failure, HistoryRecorder, PinCounts, Pinned, Store
from kinetics_fs.store.coverage import Coverage, UnavailableClip, measure_coverage, unavailable_clips

if TYPE_CHECKING:
    from kinetics_fs.fetch import Fetcher


class Library:
    """A selection of Kinetics: its clips, those of them that are cached, and the means to fetch the others.

    The annotations are read, and the cache directory is opened, when a method first needs them. Use a library as a
    context, or call `close`. It is safe for threads, but not across a fork: make one in each process. Any number of
    libraries and mounts may share a cache directory.

    Args:
        settings: all settings, as the command line has them; None for the defaults.
        values: single settings that replace those, by the names of their flags with `_` for `-`; `classes` is
            `--class`. If a flag may be repeated, its value is a list, a tuple or one item. The environment and the
            configuration file are not read.

    Attributes:
        settings: the settings in effect.

    Raises:
        TypeError: there is no setting of that name.
        SettingError: the value of a setting is invalid.
    """

    def __init__(self, settings: Settings | None = None, **values: Any) -> None:
        self.settings = (settings or Settings()).with_values(**values)
        self._lock = threading.RLock()
        self._opened = ExitStack()
        self._catalog: Catalog | None = None
        self._store: Store | None = None
        self._fetcher: Fetcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all fetches of this library, and close the catalog and the store."""
        with self._lock, self._opened:
            self._catalog = self._store = self._fetcher = None

    @property
    def catalog(self) -> Catalog:
        """The catalog of the selection.

        Raises:
            CatalogError: the annotations cannot be downloaded or read, or the selection matches nothing.
        """
        with self._lock:
            if self._catalog is None:
                self._catalog = self._opened.enter_context(open_selected_catalog(self.settings))
            return self._catalog

    @property
    def store(self) -> Store:
        """The clips in the cache directory.

        Raises:
            StoreError: the cache directory cannot be used.
        """
        with self._lock:
            if self._store is None:
                self._store = self._opened.enter_context(open_store(self.settings))
            return self._store

    @property
    def fetcher(self) -> Fetcher:
        """The fetcher into the store, with the worker processes that fetch.

        Raises:
            SettingError: an address or a folder is invalid, or none of the sources can be used.
        """
        with self._lock:
            if self._fetcher is None:
                fetcher = make_fetcher(self.settings, self.store, self.catalog.path)
                self._fetcher = self._opened.enter_context(closing(fetcher))
            return self._fetcher

    def clips(self) -> Iterator[Clip]:
        """The clips of the selection, in the order of splits, classes and names."""
        return (entry.clip for entry in self.catalog.clips())

    def paths(self) -> Iterator[str]:
        """The same as paths, as a mount shows them: `split/class/clip.mp4`."""
        style = ClassNames(self.settings.class_names)
        for entry in self.catalog.clips():
            place = self.catalog.directory(entry.directory)
            assert place is not None
            yield f"{place.split}/{class_name(place.label or '', style)}/{entry.clip.name}"

    def held(self, clip: Clip | str) -> bool:
        """Whether a clip is here: one of `clips`, or of `paths`, or any path that ends with its name."""
        return self.store.is_cached(_clip(clip))

    def open(self, clip: Clip | str) -> BinaryIO:
        """Opens a clip, and fetches it first if it is not here. What is open stays readable, evicted or not.

        Args:
            clip: as for `held`.

        Raises:
            FetchError: it cannot be had; says why.
            CatalogError: it is not in the selection.
        """
        clip = _clip(clip)
        if not self.catalog.locate(clip):
            raise CatalogError(f"cannot open the clip {clip.key}: it is not in the selection")
        while (stored := self.store.open(clip)) is None:
            self.fetcher.request(clip).result()
        return os.fdopen(stored.fd, "rb")

    def prefetch(self, changed: Callable[[PrefetchProgress], None] = lambda progress: None) -> PrefetchProgress:
        """Fetches all clips of the selection that are not here.

        Args:
            changed: told how it is going, often, and from any thread.

        Returns:
            The state and the number of clips by result.
        """
        from kinetics_fs.fetch.prefetch import Prefetch

        fetcher = self.fetcher
        prefetch = Prefetch(
            fetcher,
            self.store,
            self.clips(),
            self.catalog.clip_count,
            window=2 * self.settings.workers,
            changed=lambda: changed(prefetch.progress()),
        )
        stats = fetcher.stats
        with HistoryRecorder(self.store.history, lambda: ActivityCounts(stats.fetched, stats.failed)):
            try:
                prefetch.run()
            finally:
                prefetch.cancel()
        return prefetch.progress()

    def status(self) -> StoreStatus:
        """Return the size and limits of the cache, the state of the sources, and the number of remembered failures."""
        return self.store.status()

    def coverage(self) -> Coverage:
        """Measure how many clips of the selection are cached, and why others are unavailable; uses no network."""
        return measure_coverage(self.catalog, self.store)

    def unavailable(self) -> Iterator[UnavailableClip]:
        """Yield the clips of the selection that are not cached and failed to be fetched, with the failure."""
        return unavailable_clips(self.catalog, self.store)

    def failures(
        self, kinds: Collection[FailureKind] = (), clips: Collection[Clip] = (), *, whole_cache: bool = False
    ) -> Iterator[Failure]:
        """Yield the remembered failures, the latest first.

        Args:
            kinds: kinds to include; all if empty.
            clips: clips to include; all if empty.
            whole_cache: include clips outside the selection. The annotations are not read then.
        """
        wanted = set(clips)
        catalog = None if whole_cache else self.catalog
        for failure in self.store.failure_log.all(kinds):
            if (not wanted or failure.clip in wanted) and (catalog is None or catalog.locate(failure.clip)):
                yield failure

    def pin(self) -> Pinned:
        """Pin the clips of the selection: eviction spares them, whether they are cached already or come later."""
        return self.store.pins.add(self.clips())

    def unpin(self) -> PinCounts:
        """Unpin the clips of the selection; they stay cached until eviction needs their space."""
        return self.store.pins.remove(self.clips())

    def pins(self) -> Iterator[ClassPins]:
        """Yield the pinned clips of the selection, counted for each class of each split that has any."""
        for split in self.catalog.splits():
            for directory in self.catalog.classes(split):
                counts = self.store.pins.of([entry.clip.key for entry in self.catalog.entries(directory)])
                if counts.clips:
                    yield ClassPins(directory.split, directory.label or "", counts)


class ClassPins(NamedTuple):
    """Number of pinned clips of a class in a split, the cached ones among them, and their bytes."""

    split: str
    label: str
    counts: PinCounts


def _clip(clip: Clip | str) -> Clip:
    if isinstance(clip, Clip):
        return clip
    parsed = parse_clip_name(clip.rpartition("/")[2])
    if parsed is None:
        raise CatalogError(f"cannot find the clip {clip!r}: its name has not the form <YouTube id>_<start>_<end>.mp4")
    return parsed
