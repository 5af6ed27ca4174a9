"""Protection of sources: a circuit breaker and a rate limit, both shared by all processes that use a cache.

Both are kept in the state database, so that all mounts and prefetches on one cache obey them together and a restart
forgets nothing. `Throttle` applies the two in one transaction.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from datetime import datetime
from typing import NamedTuple

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store.database import StateDatabase

_log = logging.getLogger(__name__)

_HOUR = 3600.0

_FIRST_PAUSE = 60.0
"""Seconds without requests after a block that does not say how long to wait. Doubles with each further block."""
_MAX_PAUSE = 24 * _HOUR
_RECOVERED_AFTER = 6 * _HOUR
"""Seconds without a block after which the next block counts as the first."""

_PROBE_TIMEOUT = 600.0
"""Seconds after which a probe without an outcome counts as lost, for example because its process died."""

_RESERVE = 0.2
"""The part of the budget that is kept for fetches that a process waits for in `open`."""

_ANSWERS = {None, FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT}
"""Outcomes (None: the clip) that prove that the source serves this address."""


class Permit(NamedTuple):
    """The right to request one clip from a source."""

    source: str
    at: float
    """Seconds since the epoch."""
    is_probe: bool
    """True if this request tests whether the source still blocks this address."""


class RateLimited(Exception):
    """The budget of a source is used up.

    Args:
        seconds: the time until the next request is allowed.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the next request is allowed in {seconds:.0f} s")
        self.seconds = seconds


class SourceState(NamedTuple):
    """How a source behaves. Times are seconds since the epoch."""

    name: str
    blocked_until: float | None
    """None if the source is in use. A time in the past means that a probe is due or in progress."""
    reason: str
    """Why the source is blocked; empty if it is not."""
    fetches_last_hour: int
    """Clips that were requested in the last hour."""


class Throttle:
    """The circuit breaker and the rate limit of every source. Safe for threads and processes.

    Args:
        database: keeps the blocks and the times of requests.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database
        self._breaker = CircuitBreaker()
        self._limiter = RateLimiter()

    def acquire(self, source: str, *, max_per_hour: int | None, urgent: bool) -> Permit:
        """Return a permit for one request. Pass the permit to `record` or to `cancel` afterwards.

        Args:
            source: name of the source.
            max_per_hour: maximum number of requests in any 60 minutes; None for no limit.
            urgent: True if a process waits in `open`: the request may use the reserve.

        Raises:
            FetchError: the source is blocked (BLOCKED).
            RateLimited: the budget is used up.
        """
        now = time.time()
        with self._database.exclusive() as db:
            is_probe = self._breaker.admit(db, source, now)
            if max_per_hour is not None:
                self._limiter.check(db, source, now, max_per_hour=max_per_hour, urgent=urgent)
            self._limiter.count(db, source, now)
        return Permit(source, now, is_probe)

    def record(self, permit: Permit, error: FetchError | None) -> None:
        """Record the outcome of a request: the error, or None if the source delivered the clip."""
        if error is not None and error.kind is FailureKind.BLOCKED:
            with self._database.exclusive() as db:
                until = self._breaker.trip(db, permit, error)
            if until is not None:
                _log.error("%s: %s; no requests until %s", permit.source, error.reason, _clock(until))
        elif permit.is_probe:
            answered = (error.kind if error else None) in _ANSWERS
            with self._database.exclusive() as db:
                self._breaker.end_probe(db, permit.source, answered=answered)
            if answered:
                _log.warning("%s: no longer blocked", permit.source)

    def cancel(self, permit: Permit) -> None:
        """Return a permit that was not used."""
        with self._database.exclusive() as db:
            self._limiter.uncount(db, permit.source, permit.at)
            if permit.is_probe:
                self._breaker.end_probe(db, permit.source, answered=False)

    def states(self) -> list[SourceState]:
        """Return every source that was used in the last hour or is blocked, by name."""
        now = time.time()
        with self._database.connection() as db:
            counts = self._limiter.counts(db, now)
            blocks = self._breaker.blocks(db, now)
        return [
            SourceState(
                name=name,
                blocked_until=blocks[name].until if name in blocks else None,
                reason=blocks[name].reason if name in blocks else "",
                fetches_last_hour=counts.get(name, 0),
            )
            for name in sorted({*counts, *blocks})
        ]

    def reset_blocks(self) -> int:
        """End all blocks, for example after a change of address or cookies. Return their number."""
        with self._database.exclusive() as db:
            return self._breaker.reset(db)


class CircuitBreaker:
    """Blocks of sources: after a refusal, no requests for a while, then one probe at a time.

    The pause doubles with each block in a row. Every method needs a connection; those that write need a transaction.
    """

    def admit(self, db: sqlite3.Connection, source: str, now: float) -> bool:
        """Return whether a request must be a probe; note that the probe is in progress.

        Raises:
            FetchError: the source is blocked, or a probe is in progress (BLOCKED).
        """
        block = SourceBlock.read(db, source, now)
        if block is None or block.recovered_at is not None:
            return False
        if max(block.until, block.probe_until) > now:
            raise block.error(source, now)
        db.execute("UPDATE origin SET probe_until = ? WHERE name = ?", (now + _PROBE_TIMEOUT, source))
        return True

    def trip(self, db: sqlite3.Connection, permit: Permit, error: FetchError) -> float | None:
        """Block a source. Return the end of the block; None if the request began before an earlier block."""
        now = time.time()
        earlier = SourceBlock.read(db, permit.source, now)
        if earlier is not None and earlier.at > permit.at:
            return None
        trips = 1
        if earlier is not None and (earlier.recovered_at or now) > now - _RECOVERED_AFTER:
            trips = min(earlier.trips + 1, 32)
        until = now + min((error.retry_after or _FIRST_PAUSE) * 2.0 ** (trips - 1), _MAX_PAUSE)
        db.execute(
            "INSERT OR REPLACE INTO origin (name, reason, blocked_at, blocked_until, trips, probe_until)"
            " VALUES (?, ?, ?, ?, ?, 0)",
            (permit.source, error.reason.encode(errors="replace").decode(), now, until, trips),
        )
        return until

    def end_probe(self, db: sqlite3.Connection, source: str, *, answered: bool) -> None:
        """End a probe: the source answered and is no longer blocked, or the next request is a probe again."""
        if answered:
            db.execute("UPDATE origin SET recovered_at = ? WHERE name = ?", (time.time(), source))
        else:
            db.execute("UPDATE origin SET probe_until = 0 WHERE name = ?", (source,))

    def blocks(self, db: sqlite3.Connection, now: float) -> dict[str, SourceBlock]:
        """Return the blocks that have not ended, by source."""
        names = [name for (name,) in db.execute("SELECT name FROM origin").fetchall()]
        blocks = {str(name): SourceBlock.read(db, name, now) for name in names}
        return {name: block for name, block in blocks.items() if block is not None and block.recovered_at is None}

    def reset(self, db: sqlite3.Connection) -> int:
        """End all blocks. Return their number."""
        return db.execute("DELETE FROM origin WHERE recovered_at IS NULL").rowcount


class RateLimiter:
    """A sliding window: the times of all requests in the last hour.

    Every method needs a connection; those that write need a transaction.
    """

    def check(self, db: sqlite3.Connection, source: str, now: float, *, max_per_hour: int, urgent: bool) -> None:
        """Check that the budget allows one more request.

        Raises:
            RateLimited: the budget is used up; of requests that are not urgent, without the reserve.
        """
        limit = max_per_hour if urgent else max(1, math.floor(max_per_hour * (1 - _RESERVE)))
        db.execute("DELETE FROM asked WHERE origin = ? AND NOT at BETWEEN ? AND ?", (source, now - _HOUR, now))
        times = db.execute("SELECT at FROM asked WHERE origin = ? ORDER BY at DESC", (source,)).fetchall()
        if len(times) >= limit:
            raise RateLimited(times[limit - 1][0] + _HOUR - now)

    def count(self, db: sqlite3.Connection, source: str, now: float) -> None:
        """Count a request."""
        db.execute("INSERT INTO asked (origin, at) VALUES (?, ?)", (source, now))

    def uncount(self, db: sqlite3.Connection, source: str, at: float) -> None:
        """Remove a request that was counted at that time."""
        db.execute("DELETE FROM asked WHERE origin = ? AND at = ?", (source, at))

    def counts(self, db: sqlite3.Connection, now: float) -> dict[str, int]:
        """Return the number of requests in the last hour, by source."""
        rows = db.execute(
            "SELECT origin, count(*) FROM asked WHERE at BETWEEN ? AND ? GROUP BY origin", (now - _HOUR, now)
        ).fetchall()
        return {str(source): count for source, count in rows}


class SourceBlock(NamedTuple):
    """A row of the table `origin`: a block of a source. Times are seconds since the epoch.

    Attributes:
        reason: why the source is blocked.
        at: when the source refused a request.
        until: the time of the first probe.
        trips: the number of blocks in a row.
        probe_until: when a probe in progress counts as lost; 0 if none is in progress.
        recovered_at: when a probe was answered; None while the source is blocked.
    """

    reason: str
    at: float
    until: float
    trips: int
    probe_until: float
    recovered_at: float | None

    @classmethod
    def read(cls, db: sqlite3.Connection, source: str, now: float) -> SourceBlock | None:
        """Return the block of a source; None if there is none, or its row is invalid."""
        row = db.execute(
            "SELECT reason, blocked_at, blocked_until, trips, probe_until, recovered_at FROM origin WHERE name = ?",
            (source,),
        ).fetchone()
        if row is None:
            return None
        try:
            reason, at, until, trips, probe_until, recovered_at = row
            return cls(
                str(reason),
                min(float(at), now),
                # A clock that was set back, or a database from another machine, must not block a source for years.
                min(float(until), now + _MAX_PAUSE),
                int(trips),
                min(float(probe_until), now + _PROBE_TIMEOUT),
                None if recovered_at is None else float(recovered_at),
            )
        except (TypeError, ValueError, OverflowError):
            return None

    def error(self, source: str, now: float) -> FetchError:
        """Return the error for a request that the block forbids."""
        when = f"until {_clock(self.until)}" if self.until > now else "while another clip tests the source"
        return FetchError(
            FailureKind.BLOCKED,
            f"no requests {when}: {self.reason}",
            source=source,
            retry_after=max(0.0, self.until - now),
        )


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
