"""Clips that are known to be unavailable and therefore not listed (`--hide-unavailable`)."""

from __future__ import annotations

import logging
import math
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import KineticsError
from kinetics_fs.store import FailureLog, LastingFailure

_log = logging.getLogger(__name__)

_POLL_INTERVAL = 2.0
"""Seconds between two checks for failures that other processes have recorded."""

_MAX_AT_START = 1000
"""Unavailable clips that are looked up in other sources before a mount is ready. More of them appear later."""

_NO_POSITIONS: Sequence[int] = ()


class Name(NamedTuple):
    """A name that appeared or disappeared, and the inode number of its directory."""

    directory: int
    name: str


class HiddenClips(NamedTuple):
    """The hidden clips at one moment; immutable.

    Args:
        keys: `Clip.key` of the clips, whether the catalog has them or not.
        positions: inode number of a directory → hidden positions in its complete listing, ascending.
        total: number of these positions.
    """

    keys: frozenset[str] = frozenset()
    positions: Mapping[int, Sequence[int]] = MappingProxyType({})
    total: int = 0

    def in_directory(self, directory: int) -> Sequence[int]:
        """Return the hidden positions of a directory, ascending."""
        return self.positions.get(directory, _NO_POSITIONS)

    def between(self, directory: int, begin: int, end: int) -> Sequence[int]:
        """Return the hidden positions of a directory from `begin` to before `end`."""
        positions = self.in_directory(directory)
        return positions[bisect_left(positions, begin) : bisect_left(positions, end)]

    def position(self, directory: int, index: int) -> int:
        """Return the position in the complete listing of the visible name number `index`; both count from 0."""
        positions = self.in_directory(directory)
        # `positions[i] - i` visible names come before the i-th hidden one.
        return index + bisect_right(range(len(positions)), index, key=lambda i: positions[i] - i)


class HiddenIndex:
    """Keeps `hidden` up to date: the clips with a lasting failure, not in the cache, whose next retry is not due.

    Clips that another source has when they are found to be unavailable are not hidden.

    Args:
        catalog: the clips of the mount.
        failures: the remembered failures.
        elsewhere: returns those of some keys (`Clip.key`) whose clips a folder or an archive has.

    Attributes:
        hidden: replaced by another object whenever the set changes.

    Raises:
        StoreError: the failures cannot be read; also from `refresh`.
        CatalogError: the catalog is damaged; also from `refresh`.
    """

    def __init__(
        self, catalog: Catalog, failures: FailureLog, elsewhere: Callable[[Collection[str]], Collection[str]]
    ) -> None:
        self._catalog = catalog
        self._failures = failures
        self._elsewhere = elsewhere
        self._unchecked_limit: float = _MAX_AT_START
        self._checked: set[str] = set()
        self._found_elsewhere: set[str] = set()
        self._due = math.inf
        self.hidden = HiddenClips()
        self.refresh()
        self._unchecked_limit = math.inf

    def refresh(self, clips: Collection[Clip] | None = None) -> list[Name]:
        """Update `hidden` from the remembered failures. Call it from one thread at a time.

        Args:
            clips: check these clips only; None checks all.

        Returns:
            The names that appeared or disappeared.
        """
        before = self.hidden
        if clips is None:
            unavailable = self._without_others(self._failures.unavailable())
            self._due = min(unavailable.values(), default=math.inf)
            changed = unavailable.keys() ^ before.keys
        else:
            unavailable = self._without_others(self._failures.unavailable([clip.key for clip in clips]))
            self._due = min(self._due, *unavailable.values(), math.inf)
            changed = unavailable.keys() - before.keys
        if not changed:
            return []
        found = self._catalog.positions(changed)
        by_directory: dict[int, set[int]] = defaultdict(set)
        for clip in found:
            by_directory[clip.directory].add(clip.position)
        positions = dict(before.positions)
        for directory, some in by_directory.items():
            positions[directory] = array("I", sorted(some.symmetric_difference(before.in_directory(directory))))
        self.hidden = HiddenClips(before.keys ^ changed, positions, sum(map(len, positions.values())))
        return [Name(clip.directory, f"{clip.key}.mp4") for clip in found]

    def _without_others(self, unavailable: dict[str, LastingFailure]) -> dict[str, float]:
        """Return when those clips are due that no other source has."""
        local = {key for key, clip in unavailable.items() if clip.source == "folder"}  # the folder has them, but broken
        unchecked = unavailable.keys() - self._checked - local
        if len(unchecked) <= self._unchecked_limit:
            self._found_elsewhere.update(self._elsewhere(unchecked))
            self._checked |= unchecked
        visible = self._found_elsewhere - local
        return {key: clip.retry_at for key, clip in unavailable.items() if key not in visible}

    @property
    def is_due(self) -> bool:
        """True if the next retry of a hidden clip is due, so that its name must appear again."""
        return time.time() >= self._due


class HiddenWatcher(threading.Thread):
    """Refreshes a `HiddenIndex` every two seconds, and at once for clips passed to `check_soon`.

    Args:
        index: from now on refreshed by this thread only.
        failures: the index is refreshed only after these have changed.
        on_change: called in this thread for each name that appeared or disappeared; may block.
    """

    def __init__(self, index: HiddenIndex, failures: FailureLog, on_change: Callable[[Name], None]) -> None:
        super().__init__(name="hidden-watcher", daemon=True)
        self._index = index
        self._failures = failures
        self._on_change = on_change
        self._urgent: deque[Clip] = deque()
        self._wake = threading.Event()
        self._stopping = False

    def check_soon(self, clip: Clip) -> None:
        """Have a clip checked without delay; may be called from any thread."""
        self._urgent.append(clip)
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end after the current `on_change`; do not wait for it."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        while not self._stopping:
            try:
                self._watch()
            except KineticsError as error:
                _log.error("cannot update the hidden clips: %s; the next attempt is in %g s", error, _POLL_INTERVAL)
                self._wake.wait(_POLL_INTERVAL)

    def _watch(self) -> None:
        next_check = 0.0
        with self._failures.watched() as has_changed:
            while not self._stopping:
                if urgent := [self._urgent.popleft() for _ in range(len(self._urgent))]:
                    self._report(self._index.refresh(urgent))
                if time.monotonic() >= next_check:
                    next_check = time.monotonic() + _POLL_INTERVAL
                    if has_changed() or self._index.is_due:
                        self._report(self._index.refresh())
                self._wake.wait(max(0.0, next_check - time.monotonic()))
                self._wake.clear()

    def _report(self, names: list[Name]) -> None:
        for name in names:
            if self._stopping:
                return
            self._on_change(name)
