"""Counts and rates of the fetches of one process."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.control.status import FailedFetch, FetchRate, FetchRates
from kinetics_fs.errors import FailureKind

_LAST_FAILURES = 5
_MOMENT, _MINUTE, _HOUR = 5.0, 60.0, 3600.0
"""Periods in seconds."""
_SLOTS = 60


class FetchObserver(Protocol):
    """A receiver of the result of each request to a source. Called from the threads of the fetcher."""

    def on_fetched(self, source: str, size: int, seconds: float | None) -> None:
        """Handle a clip that was stored: its size in bytes, and the seconds since its source was asked.

        The time is None for a clip that was stored from the download of another one.
        """

    def on_undelivered(self, source: str, kind: FailureKind) -> None:
        """Handle a source that did not deliver a clip."""


class RecentRate:
    """The speed of fetching over a sliding period. Callers serialize access.

    The period is divided into 60 slots, which a ring holds.

    Args:
        seconds: length of the period.
        clock: returns the time in seconds.
        least: shortest time to divide by, in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, *, least: float = _MINUTE) -> None:
        self._seconds = seconds
        self._least = least
        self._clock = clock
        self._started = clock()
        self._ring = [(-1, 0, 0)] * _SLOTS

    def add(self, *, clips: int = 0, size: int = 0) -> None:
        """Add clips that were fetched, and bytes that were received."""
        now = self._current_slot()
        slot, earlier_clips, earlier_size = self._ring[now % _SLOTS]
        if slot == now:
            clips, size = clips + earlier_clips, size + earlier_size
        self._ring[now % _SLOTS] = (now, clips, size)

    def rate(self) -> FetchRate:
        """Return the speed over the period; over the time since the start if that is shorter, but at least `least`."""
        now = self._current_slot()
        recent = [(clips, size) for slot, clips, size in self._ring if now - _SLOTS < slot <= now]
        seconds = min(self._seconds, max(self._least, self._clock() - self._started))
        return FetchRate(
            clips_per_minute=round(sum(clips for clips, _ in recent) * 60 / seconds, 2),
            bytes_per_second=round(sum(size for _, size in recent) / seconds),
        )

    def _current_slot(self) -> int:
        return int(self._clock() * _SLOTS / self._seconds)


class FetchStats:
    """The results of the fetches since the fetcher was created. Safe for threads.

    Attributes:
        fetched: number of clips fetched, siblings from the same download included.
        failed: number of clips that no source delivered.
        requests: number of clips that were requested from each source.
        observer: receives each result; set it before the first request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fetched = 0
        self.failed = 0
        self.requests: Counter[str] = Counter()
        self.observer: FetchObserver | None = None
        self._last_failures = deque[FailedFetch](maxlen=_LAST_FAILURES)
        self._now = RecentRate(_MOMENT, least=1.0)
        self._last_minute, self._last_hour = RecentRate(_MINUTE), RecentRate(_HOUR)

    def record_fetched(self, source: str, size: int, seconds: float | None = None) -> None:
        """Record a clip of `size` bytes that was stored.

        Args:
            source: name of the source that delivered it.
            size: bytes.
            seconds: time since the source was asked; None if the clip was stored from the download of another one.
        """
        with self._lock:
            self.fetched += 1
            self._last_minute.add(clips=1)
            self._last_hour.add(clips=1)
        if self.observer is not None:
            self.observer.on_fetched(source, size, seconds)

    def record_request(self, source: str) -> None:
        """Record that a source was asked for a clip."""
        with self._lock:
            self.requests[source] += 1

    def record_received(self, size: int) -> None:
        """Record bytes that have arrived, while the clip that they belong to is under way."""
        with self._lock:
            for rate in (self._now, self._last_minute, self._last_hour):
                rate.add(size=size)

    def record_undelivered(self, source: str, kind: FailureKind) -> None:
        """Record a source that did not deliver a clip; the next source may."""
        if self.observer is not None:
            self.observer.on_undelivered(source, kind)

    def record_failed(self, clip: Clip, source: str, kind: FailureKind, reason: str, retry_at: float | None) -> None:
        """Record a clip that no source delivered. The arguments are those of `FailedFetch`."""
        with self._lock:
            self.failed += 1
            self._last_failures.append(FailedFetch(clip.key, "", source, kind, reason, time.time(), retry_at))

    def last_failures(self) -> list[FailedFetch]:
        """Return the last failed clips, latest first."""
        with self._lock:
            return list(reversed(self._last_failures))

    def bytes_per_second(self) -> int:
        """Return the speed at the moment, in bytes per second."""
        with self._lock:
            return self._now.rate().bytes_per_second

    def rates(self) -> FetchRates:
        """Return the speed in the last minute and in the last hour."""
        with self._lock:
            return FetchRates(self._last_minute.rate(), self._last_hour.rate())
