"""How long a prefetch will take, and which setting limits its speed."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich import filesize

from kinetics_fs.fetch.fetcher import YOUTUBE, Fetcher
from kinetics_fs.fetch.stats import RecentRate
from kinetics_fs.store import Store, usable_limit
from kinetics_fs.util.text import count

_PERIOD = 300.0
"""Seconds over which the speed of a prefetch is measured."""
_LEAST = 0.01
"""Clips that must have arrived before an estimate is made."""
_ESTIMATE_TTL = 1.0
"""Seconds for which an estimate is used: it reads the state database."""
_NEAR = 0.7
"""Share of the bandwidth limit from which on the limit counts as the reason of the speed."""


class Estimate(NamedTuple):
    """The future of a prefetch; the fields are those of `PrefetchProgress`."""

    seconds_left: float | None
    limit: str | None


class PrefetchPace:
    """Measures one prefetch. Callers serialize access.

    Args:
        fetcher: fetches the clips.
        store: the store that the fetcher fetches into.
    """

    def __init__(self, fetcher: Fetcher, store: Store) -> None:
        self._fetcher = fetcher
        self._store = store
        self._rate = RecentRate(_PERIOD, least=1.0)
        self._started = time.monotonic()
        self._ended = 0
        self._requests_before = fetcher.stats.requests[YOUTUBE]
        self._estimate = Estimate(None, None)
        self._estimated_at = -_ESTIMATE_TTL

    def add(self) -> None:
        """Count a clip that was requested, and was fetched or is unavailable."""
        self._rate.add(clips=1)
        self._ended += 1

    def estimate(self, clips_left: float, in_progress: float) -> Estimate:
        """Return the time to the end, and what limits the speed.

        Args:
            clips_left: number of clips to request, or in progress.
            in_progress: see `PrefetchProgress`.
        """
        if time.monotonic() - self._estimated_at >= _ESTIMATE_TTL:
            self._estimate, self._estimated_at = self._new_estimate(clips_left, in_progress), time.monotonic()
        return self._estimate

    def _new_estimate(self, clips_left: float, in_progress: float) -> Estimate:
        by_speed, by_limit = self._seconds_by_speed(clips_left, in_progress), self._seconds_by_limit(clips_left)
        if by_limit and (self._fetcher.is_rate_limited or by_limit > (by_speed or 0.0)):
            return Estimate(by_limit, f"{count(self._fetcher.max_fetches_per_hour or 0, 'fetch')} an hour")
        bandwidth = self._fetcher.max_bandwidth
        is_near = bandwidth is not None and self._fetcher.stats.bytes_per_second() > _NEAR * bandwidth
        limit = f"--max-bandwidth of {filesize.decimal(round(bandwidth))}/s" if bandwidth and is_near else None
        return Estimate(by_speed, limit)

    def _seconds_by_speed(self, clips_left: float, in_progress: float) -> float | None:
        seconds = min(_PERIOD, max(1.0, time.monotonic() - self._started))
        recent = self._rate.rate().clips_per_minute * seconds / 60 + in_progress
        return max(0.0, clips_left - in_progress) * seconds / recent if recent >= _LEAST else None

    def _seconds_by_limit(self, clips_left: float) -> float | None:
        """Return the time for which the hourly limit makes the prefetch last; None if that is unknown, or no limit."""
        limit, is_only = self._fetcher.max_fetches_per_hour, self._fetcher.sources.order == (YOUTUBE,)
        if limit is None or not (self._ended or is_only or self._fetcher.is_rate_limited):
            return None
        asked = self._fetcher.stats.requests[YOUTUBE] - self._requests_before
        share = min(1.0, asked / self._ended) if self._ended and not is_only else 1.0
        hourly = usable_limit(limit, urgent=False)
        over = clips_left * share - max(0, hourly - self._store.throttle.fetches_last_hour(YOUTUBE))
        return max(0.0, over) / hourly * 3600
