"""What a fetcher counts, for whoever wants to see how it is doing."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind

FETCHED = "fetched"
"""The outcome of a clip that came; that of another is its `FailureKind`."""

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Of the classes that fetches are counted in by their seconds; there is one more, for those above."""

_LAST_FAILURES = 5
_MINUTE, _HOUR = 60.0, 3600.0
_SLOTS = 60


class LastFailure(NamedTuple):
    """A clip that could not be had. Times are seconds since the epoch; no `retry_at` if that is up to its source."""

    clip: str
    source: str
    kind: FailureKind
    reason: str
    at: float
    retry_at: float | None


class Durations:
    """How long fetches took, in seconds: `counts` has how many in each class of `BOUNDS`."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Recent:
    """Clips and bytes of the last seconds: a ring of counts, each of a sixtieth of that time.

    Args:
        seconds: how far back.
        clock: tells the time, in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began = clock()
        self._ring = [(-1, 0, 0)] * _SLOTS

    def add(self, size: int) -> None:
        """A clip of so many bytes."""
        now = self._slot()
        slot, clips, total = self._ring[now % _SLOTS]
        self._ring[now % _SLOTS] = (now, clips + 1, total + size) if slot == now else (now, 1, size)

    def rates(self) -> dict[str, float]:
        """Clips a minute and bytes a second; at first over the time that there was, but no less than a minute."""
        now = self._slot()
        counted = [(clips, size) for slot, clips, size in self._ring if now - _SLOTS < slot <= now]
        seconds = min(self._seconds, max(_MINUTE, self._clock() - self._began))
        return {
            "clips_per_minute": round(sum(clips for clips, _ in counted) * 60 / seconds, 2),
            "bytes_per_second": round(sum(size for _, size in counted) / seconds),
        }

    def _slot(self) -> int:
        return int(self._clock() * _SLOTS / self._seconds)


class FetchStats:
    """What a fetcher did since it was made. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fetched = 0
        """Clips that came, those included that came with others."""
        self.failed = 0
        """Clips that could not be had."""
        self.outcomes = Counter[tuple[str, str]]()
        """What became of what sources were asked for: by source and outcome."""
        self.bytes = Counter[str]()
        """Bytes of the clips that came, by source."""
        self.durations: dict[str, Durations] = {}
        """From asking the source to the clip in the store, by source; without those that came with others."""
        self._last_failures = deque[LastFailure](maxlen=_LAST_FAILURES)
        self._last_minute, self._last_hour = Recent(_MINUTE), Recent(_HOUR)

    def came(self, source: str, size: int, seconds: float | None = None) -> None:
        """A clip of so many bytes is in the store, after so many seconds; None if it came with another."""
        with self._lock:
            self.fetched += 1
            self.outcomes[source, FETCHED] += 1
            self.bytes[source] += size
            if seconds is not None:
                self.durations.setdefault(source, Durations()).add(seconds)
            self._last_minute.add(size)
            self._last_hour.add(size)

    def refused(self, source: str, kind: FailureKind) -> None:
        """A source could not give a clip; another may."""
        with self._lock:
            self.outcomes[source, str(kind)] += 1

    def could_not_be_had(self, clip: Clip, source: str, kind: FailureKind, reason: str, retry_at: float | None) -> None:
        """No source could give a clip."""
        with self._lock:
            self.failed += 1
            self._last_failures.append(LastFailure(clip.key, source, kind, reason, time.time(), retry_at))

    def last_failures(self) -> list[LastFailure]:
        """The latest first."""
        with self._lock:
            return list(reversed(self._last_failures))

    def rates(self) -> dict[str, dict[str, float]]:
        """How fast clips came of late."""
        with self._lock:
            return {"last_minute": self._last_minute.rates(), "last_hour": self._last_hour.rates()}
