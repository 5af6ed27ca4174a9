"""Observers of opens, and readahead: if a process opens the clips of a class in order, the next ones are fetched."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from kinetics_fs.catalog import Catalog, Clip, Entry
from kinetics_fs.store import Store
from kinetics_fs.vfs.opens import Fetcher, OnOpen, OpenPhase

_log = logging.getLogger(__name__)

_MAX_STRIDE = 4
"""Maximum distance in the listing between two opens of one sequential read: several processes may share a directory."""


class OpenObserver:
    """Passes opens on to listeners in a thread of its own, so that an open only pays for a queue entry.

    Args:
        listeners: called in turn for each open; see `OnOpen`.
    """

    def __init__(self, listeners: Sequence[OnOpen]) -> None:
        self._listeners = listeners
        self._queue: queue.SimpleQueue[tuple[Entry, OpenPhase] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="open-observer", daemon=True)
        self._thread.start()

    def on_open(self, entry: Entry, phase: OpenPhase) -> None:
        """Queue an open for the listeners."""
        self._queue.put((entry, phase))

    def close(self) -> None:
        """Call the listeners for all queued opens and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            for listener in self._listeners:
                try:
                    listener(*event)
                except Exception:
                    _log.exception("%s: unexpected error in an observer of opens", event[0].clip.key)


class Readahead:
    """Fetches the next clips of a class while a process opens its clips in the order of the listing.

    Args:
        catalog: the order of the clips.
        store: the clips that need no fetch.
        fetcher: fetches the others.
        clips: number of clips to fetch ahead.
    """

    def __init__(self, catalog: Catalog, store: Store, fetcher: Fetcher, clips: int) -> None:
        self._catalog = catalog
        self._store = store
        self._fetcher = fetcher
        self._clips = clips
        self._last: dict[int, int] = {}
        """Inode number of a directory → position of the last open in it."""

    def on_open(self, entry: Entry, phase: OpenPhase) -> None:
        """Fetch the next clips if this open continues a sequential read; also while the open still waits."""
        directory = self._catalog.directory(entry.directory)
        if directory is None:
            return
        position = self._catalog.position(entry)
        last = self._last.get(entry.directory)
        self._last[entry.directory] = position
        if last is not None and 0 < position - last <= _MAX_STRIDE:
            self._fetch([ahead.clip for ahead in self._catalog.entries(directory, position + 1, self._clips)])

    def _fetch(self, clips: list[Clip]) -> None:
        known = self._store.sizes([clip.key for clip in clips])
        for clip in clips:
            if not (clip.key in known and known[clip.key].cached) or self._fetcher.wants_longer(clip):
                self._fetcher.fetch_ahead(clip)
