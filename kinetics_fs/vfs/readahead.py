"""What readers do, noticed beside their opens: who walks through a folder is fetched ahead for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from kinetics_fs.catalog import Catalog, Clip, Entry
from kinetics_fs.fetch import Fetcher, Priority
from kinetics_fs.store import Store

_log = logging.getLogger(__name__)

_STRIDE = 4
"""Places in the listing from one open to the next, for both to be steps of a walk: several readers may share one."""


class OpenObserver:
    """Takes note of opens, in a thread of its own: an open costs no more than putting it there.

    Args:
        listeners: told of each open of a clip: False when it must be waited for, True when it is done.
    """

    def __init__(self, listeners: Sequence[Callable[[Entry, bool], None]]) -> None:
        self._listeners = listeners
        self._queue: queue.SimpleQueue[tuple[Entry, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        self._thread.start()

    def notice(self, entry: Entry, done: bool) -> None:
        """A clip is being opened."""
        self._queue.put((entry, done))

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (noticed := self._queue.get()) is not None:
            for listener in self._listeners:
                try:
                    listener(*noticed)
                except Exception:
                    _log.exception("%s: unexpected error beside an open", noticed[0].clip.key)


class Readahead:
    """Fetches the next clips of a folder for who opens its clips in the order of the listing.

    Args:
        catalog: tells what is next.
        store: tells what is here.
        fetcher: gets the others.
        clips: how many to be ahead.
    """

    def __init__(self, catalog: Catalog, store: Store, fetcher: Fetcher, clips: int) -> None:
        self._catalog = catalog
        self._store = store
        self._fetcher = fetcher
        self._clips = clips
        self._last: dict[int, int] = {}
        """The place of the last open in each folder."""

    def notice(self, entry: Entry, done: bool) -> None:
        """A clip is being opened: what comes next is fetched while that is waited for, too."""
        folder = self._catalog.directory(entry.directory)
        if folder is None:
            return
        place = self._catalog.position(entry)
        last = self._last.get(entry.directory)
        self._last[entry.directory] = place
        if last is not None and 0 < place - last <= _STRIDE:
            self._fetch([ahead.clip for ahead in self._catalog.entries(folder, place + 1, self._clips)])

    def _fetch(self, clips: list[Clip]) -> None:
        known = self._store.sizes([clip.key for clip in clips])
        for clip in clips:
            if not (clip.key in known and known[clip.key].cached) and not self._fetcher.is_fetching(clip):
                self._fetcher.request(clip, Priority.SOON)
