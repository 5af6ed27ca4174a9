"""The position of a process that opens clips in a known order, such as a sampler's."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from kinetics_fs.catalog import Clip
from kinetics_fs.store import Store

_CAPACITY_TTL = 1.0
"""Seconds for which the capacity of the store is remembered: to compute it, the store goes through all pins."""


class AccessCursor:
    """How far a process has come that opens clips in a known order. Safe for threads.

    The store evicts the clips that were used longest ago. The cursor makes that order fit the reader: clips that the
    reader has not reached yet are protected by the time at which they were fetched, and clips that it has passed count
    as never used. The reader used those last, but in its order it needs them later than all that follow.

    Args:
        store: the store that has the clips.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._ahead: deque[tuple[Clip, float]] = deque()
        """Clips that the reader has not reached, in its order, and when each was added."""
        self._repeats: Counter[Clip] = Counter()
        """How often each clip is in `_ahead`."""
        self._overtaken: set[Clip] = set()
        """Clips opened while `_ahead` was empty. The reader may be faster than the prefetch and not come back to them.
        """
        self._sizes: dict[Clip, int] = {}
        """Estimated size of each clip in `_ahead`, in bytes."""
        self._bytes = 0
        """Sum of `_sizes`."""
        self._capacity, self._capacity_read_at = 0, -math.inf
        self._on_move: Callable[[], None] = lambda: None

    def watch(self, on_move: Callable[[], None]) -> None:
        """Have `on_move` called whenever the reader has moved on."""
        self._on_move = on_move

    def has_space_for(self, clip: Clip) -> bool:
        """Return whether the cache can hold a clip beside all clips that the reader has not reached."""
        if not self._ahead or clip in self._sizes:
            return True
        if time.monotonic() - self._capacity_read_at > _CAPACITY_TTL:
            self._capacity, self._capacity_read_at = self._store.capacity(), time.monotonic()
        return self._bytes + self._store.expected_size(clip) <= self._capacity

    def append(self, clip: Clip) -> None:
        """Add the next clip in the order of the reader, unless the reader has opened it already."""
        size = self._store.expected_size(clip)
        with self._lock:
            if clip in self._overtaken:
                self._overtaken.remove(clip)
                return
            self._ahead.append((clip, time.time()))
            if clip not in self._sizes:
                self._sizes[clip] = size
                self._bytes += size
            self._repeats[clip] += 1

    def advance(self, clip: Clip) -> None:
        """Move to a clip that the reader has opened, past all clips before it. Ignore a clip outside the order."""
        with self._lock:
            if not self._ahead:
                self._overtaken.add(clip)
            if not self._repeats[clip]:
                return
            self._overtaken.clear()
            passed = None
            while passed != clip:
                passed, _ = self._ahead.popleft()
                self._repeats[passed] -= 1
                if self._repeats[passed]:
                    self._store.touch(passed)
                else:
                    del self._repeats[passed]
                    self._bytes -= self._sizes.pop(passed)
                    self._store.mark_unused(passed)
        self._on_move()

    def protect_used_since(self) -> float:
        """Return the time, in seconds since the epoch, since which clips were used that the reader has not reached."""
        with self._lock:
            return self._ahead[0][1] if self._ahead else time.time()
