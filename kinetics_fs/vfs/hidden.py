"""Clips that are known to be gone, and therefore left out of a mount."""

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
from kinetics_fs.store import FailureLog

_log = logging.getLogger(__name__)

_LOOK_EVERY = 2.0
"""Seconds between two looks at what other processes found out."""

_NO_POSITIONS: Sequence[int] = ()


class Name(NamedTuple):
    """A name that came or went, and the inode number of its directory."""

    directory: int
    name: str


class HiddenClips(NamedTuple):
    """What is left out at one moment; never changed.

    Args:
        keys: `Clip.key` of the clips, whether the catalog has them or not.
        positions: inode number of a directory → the places in its whole listing that are left out, ascending.
        total: how many places these are.
    """

    keys: frozenset[str] = frozenset()
    positions: Mapping[int, Sequence[int]] = MappingProxyType({})
    total: int = 0

    def of(self, directory: int) -> Sequence[int]:
        """The places that are left out of a directory, ascending."""
        return self.positions.get(directory, _NO_POSITIONS)

    def between(self, directory: int, begin: int, end: int) -> Sequence[int]:
        """Those of them from `begin` on and before `end`."""
        places = self.of(directory)
        return places[bisect_left(places, begin) : bisect_left(places, end)]

    def place(self, directory: int, number: int) -> int:
        """Where the `number`-th of the names that are left stands in the whole listing, both from 0 on."""
        places = self.of(directory)
        # Before the i-th that is left out there are `places[i] - i` others.
        return number + bisect_right(range(len(places)), number, key=lambda i: places[i] - i)


class HiddenIndex:
    """Keeps `hidden` up to date: the clips that are known to be gone, are not here, and not due for another try.

    Args:
        catalog: whose clips are left out.
        failures: what is known of clips.

    Raises:
        StoreError: what is known cannot be read; also from `look`.
        CatalogError: the catalog is damaged; also from `look`.
    """

    def __init__(self, catalog: Catalog, failures: FailureLog) -> None:
        self._catalog = catalog
        self._failures = failures
        self._due = math.inf
        self.hidden = HiddenClips()
        self.look()

    def look(self, clips: Collection[Clip] | None = None) -> list[Name]:
        """Finds out what is gone now, of these clips or of all; by one thread at a time.

        Returns:
            The names that came or went.
        """
        before = self.hidden
        if clips is None:
            gone = self._failures.gone()
            self._due = min(gone.values(), default=math.inf)
            changed = gone.keys() ^ before.keys
        else:
            gone = self._failures.gone([clip.key for clip in clips])
            self._due = min(self._due, *gone.values(), math.inf)
            changed = gone.keys() - before.keys
        if not changed:
            return []
        places = self._catalog.positions(changed)
        by_directory: dict[int, set[int]] = defaultdict(set)
        for place in places:
            by_directory[place.directory].add(place.position)
        positions = dict(before.positions)
        for directory, some in by_directory.items():
            positions[directory] = array("I", sorted(some.symmetric_difference(before.of(directory))))
        self.hidden = HiddenClips(before.keys ^ changed, positions, sum(map(len, positions.values())))
        return [Name(place.directory, f"{place.key}.mp4") for place in places]

    @property
    def is_due(self) -> bool:
        """Whether the wait of one of them is over."""
        return time.time() >= self._due


class HiddenWatcher(threading.Thread):
    """Looks every two seconds whether clips came or went, and at once at those that it is told of.

    Args:
        unavailable: what is kept up to date; from now on by this thread alone.
        failures: is looked at only after it has changed.
        tell: told each name that came or went, in this thread; it may take its time.
    """

    def __init__(self, unavailable: HiddenIndex, failures: FailureLog, tell: Callable[[Name], None]) -> None:
        super().__init__(name="unavailable", daemon=True)
        self._unavailable = unavailable
        self._failures = failures
        self._tell = tell
        self._found: deque[Clip] = deque()
        self._woken = threading.Event()
        self._ending = False

    def found(self, clip: Clip) -> None:
        """Has a clip looked at without delay; from any thread."""
        self._found.append(clip)
        self._woken.set()

    def stop(self) -> None:
        """Ends the thread soon: when what it is telling has been told. Does not wait for that."""
        self._ending = True
        self._woken.set()

    def run(self) -> None:
        while not self._ending:
            try:
                self._watch()
            except KineticsError as error:
                _log.error("not known what is gone: %s", error)
                self._woken.wait(_LOOK_EVERY)

    def _watch(self) -> None:
        next_look = 0.0
        with self._failures.watched() as has_changed:
            while not self._ending:
                if found := [self._found.popleft() for _ in range(len(self._found))]:
                    self._tell_all(self._unavailable.look(found))
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LOOK_EVERY
                    if has_changed() or self._unavailable.is_due:
                        self._tell_all(self._unavailable.look())
                self._woken.wait(max(0.0, next_look - time.monotonic()))
                self._woken.clear()

    def _tell_all(self, names: list[Name]) -> None:
        for name in names:
            if self._ending:
                return
            self._tell(name)
