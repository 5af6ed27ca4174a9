"""Protection of sources: a circuit breaker and a rate limit, both shared by all processes that use a cache.

Both are kept in the state database, so that all mounts and prefetches on one cache obey them together and a restart
forgets nothing. `Throttle` applies the two in one transaction. It also has suspected sources tested by controls; see
`kinetics_fs.store.suspicion`.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import suspicion
from kinetics_fs.store.database import StateDatabase

_log = logging.getLogger(__name__)

_HOUR = 3600.0

_FIRST_PAUSE = 60.0
"""Seconds without requests after a block that does not say how long to wait. Doubles with each further block."""
MAX_PAUSE = 24 * _HOUR
RECOVERED_AFTER = 6 * _HOUR
"""Seconds without a block after which the next block counts as the first."""

PROBE_TIMEOUT = 600.0
"""Seconds after which a probe without an outcome counts as lost, for example because its process died."""

_RESERVE = 0.2
"""The part of the budget that is kept for fetches that a process waits for in `open`."""

ANSWERS = {None, FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT}
"""Outcomes (None: the clip) that prove that the source serves this address."""


def usable_limit(max_per_hour: int, *, urgent: bool) -> int:
    """Return the number of requests per hour that may be used: without the reserve, if no process waits in `open`."""
    return max_per_hour if urgent else max(1, math.floor(max_per_hour * (1 - _RESERVE)))


def pause_after(trips: int, requested: float | None) -> float:
    """Return how many seconds to leave a source alone.

    Args:
        trips: number of blocks in a row.
        requested: delay that the source requested with the last one; None if it requested none.
    """
    return min((requested or _FIRST_PAUSE) * 2.0 ** (trips - 1), MAX_PAUSE)


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


class ControlNeeded(Exception):
    """A source is suspected: controls must be tried before the next request; see `Throttle.acquire_control`."""


class ControlPermit(NamedTuple):
    """The right to request one control from a suspected source.

    Attributes:
        permit: counts against the budget of the source.
        number: number of controls that were tried before, since the source is suspected.
        videos: ids of the videos that the source delivered last.
    """

    permit: Permit
    number: int
    videos: list[str]

    def choose(self, well_known: Sequence[str]) -> str | None:
        """Return the id of a video to ask for: a recent one first in each round; None if no video is known.

        Args:
            well_known: ids of other videos that are always available.
        """
        number_of_round, position = divmod(self.number, suspicion.CONTROLS)
        pool = self.videos or well_known
        if position and not (number_of_round == 0 and len(self.videos) > 1):
            pool = well_known or self.videos
        return pool[(number_of_round + position) % len(pool)] if pool else None


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
            ControlNeeded: the source is suspected.
            RateLimited: the budget is used up.
        """
        now = time.time()
        self._correct_times(now)
        with self._database.exclusive() as db:
            if (doubt := suspicion.read(db, source)) is not None and self._breaker.is_test_due(db, source, now, doubt):
                raise ControlNeeded
            is_probe = self._breaker.admit(db, source, now)
            if max_per_hour is not None:
                self._limiter.check(db, source, now, max_per_hour=max_per_hour, urgent=urgent)
            self._limiter.count(db, source, now)
        return Permit(source, now, is_probe)

    def record(self, permit: Permit, error: FetchError | None) -> None:
        """Record the outcome of a request: the error, or None if the source delivered the clip."""
        if error is not None and error.kind in suspicion.VERDICTS and self._is_doubted_again(permit):
            error = _suspected(permit.source, error.reason)
        if error is not None and error.kind is FailureKind.BLOCKED:
            with self._database.exclusive() as db:
                until = self._breaker.trip(db, permit, error)
            self._log_block(permit.source, error, until)
            return
        if error is None:
            self._record_delivery(permit)
        if permit.is_probe:
            answered = (error.kind if error else None) in ANSWERS
            with self._database.exclusive() as db:
                self._breaker.end_probe(db, permit.source, answered=answered)
            if answered:
                _log.warning("%s: no longer blocked", permit.source)

    def _is_doubted_again(self, permit: Permit) -> bool:
        """Return whether a request was made although all controls had proved nothing."""
        with self._database.connection() as db:
            doubt = suspicion.read(db, permit.source)
        return doubt is not None and 0 < doubt.failed_at < permit.at

    def _record_delivery(self, permit: Permit) -> None:
        """End a row of verdicts."""
        with self._database.connection() as db:
            if not suspicion.has_verdicts(db, permit.source):
                return
        with self._database.exclusive() as db:
            doubt = suspicion.read(db, permit.source)
            if doubt is None or permit.at > doubt.at:
                suspicion.end(db, permit.source)

    def _log_block(self, source: str, error: FetchError, until: float | None) -> None:
        if until is not None:
            _log.error("%s: %s; no requests until %s", source, error.reason, _clock(until))

    def cancel(self, permit: Permit) -> None:
        """Return a permit that was not used."""
        with self._database.exclusive() as db:
            self._limiter.uncount(db, permit.source, permit.at)
            if permit.is_probe:
                self._breaker.end_probe(db, permit.source, answered=False)

    def is_suspected(self, source: str) -> bool:
        """Return whether the verdicts of a source do not count at the moment."""
        with self._database.connection() as db:
            return suspicion.read(db, source) is not None

    def acquire_control(self, source: str, *, max_per_hour: int | None) -> ControlPermit | None:
        """Return a permit for one control. Pass it to `record_control` afterwards.

        Args:
            source: name of the source.
            max_per_hour: see `acquire`. A control may use the reserve.

        Returns:
            The permit; None if the source is not suspected, or another thread or process tries a control.

        Raises:
            FetchError: no control is due, because the source is blocked or a clip tests it (BLOCKED).
            RateLimited: the budget is used up.
        """
        now = time.time()
        self._correct_times(now)
        with self._database.exclusive() as db:
            doubt = suspicion.read(db, source)
            if doubt is None or doubt.control_until > now:
                return None
            if not self._breaker.is_test_due(db, source, now, doubt):
                block = SourceBlock.read(db, source, now)
                raise block.error(source, now) if block else _suspected(source, "a clip tests it")
            if max_per_hour is not None:
                self._limiter.check(db, source, now, max_per_hour=max_per_hour, urgent=True)
            self._limiter.count(db, source, now)
            suspicion.begin_control(db, source, now)
            videos = suspicion.recent_videos(db, source)
        return ControlPermit(Permit(source, now, is_probe=False), doubt.tried, videos)

    def record_control(self, control: ControlPermit, error: FetchError | None) -> None:
        """Record the outcome of a control: the error, or None if the video is available or no control is known."""
        permit, until, restored = control.permit, None, 0
        source = permit.source
        with self._database.exclusive() as db:
            doubt = suspicion.read(db, source)
            if doubt is None:
                return
            if error is None:
                restored = suspicion.end(db, source)
                self._breaker.end_probe(db, source, answered=True)
            elif error.kind is FailureKind.BLOCKED:
                suspicion.cancel_control(db, source)
                until = self._breaker.trip(db, permit, error)
            else:
                suspicion.end_control(db, source, doubt)
                if doubt.ends_round and not doubt.failed_at:
                    error = _suspected(source, error.reason)
                    until = self._breaker.trip(db, permit, error)
        if error is None:
            _log.warning("%s: no longer suspected; %d verdicts count again", source, restored)
        else:
            self._log_block(source, error, until)

    def cancel_control(self, control: ControlPermit) -> None:
        """Return a permit that was not used."""
        with self._database.exclusive() as db:
            self._limiter.uncount(db, control.permit.source, control.permit.at)
            suspicion.cancel_control(db, control.permit.source)

    def _correct_times(self, now: float) -> None:
        """Begin the blocks again that began while the clock was ahead, so that they do not last until it catches up."""
        if self._database.query("SELECT 1 FROM breaker WHERE blocked_at > ? LIMIT 1", (now,)):
            with self._database.exclusive() as db:
                self._breaker.correct_times(db, now)

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

    def fetches_last_hour(self, source: str) -> int:
        """Return `SourceState.fetches_last_hour` of one source."""
        with self._database.connection() as db:
            return self._limiter.counts(db, time.time()).get(source, 0)

    def blocked_until(self, source: str) -> float | None:
        """Return `SourceState.blocked_until` of one source."""
        with self._database.connection() as db:
            block = self._breaker.blocks(db, time.time()).get(source)
        return None if block is None else block.until

    def reset_blocks(self) -> int:
        """End all blocks, for example after a change of address or cookies. Return their number."""
        with self._database.exclusive() as db:
            suspicion.make_due(db)
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
        db.execute("UPDATE breaker SET probe_until = ? WHERE source = ?", (now + PROBE_TIMEOUT, source))
        return True

    def is_test_due(self, db: sqlite3.Connection, source: str, now: float, doubt: suspicion.Suspicion) -> bool:
        """Return whether controls must be tried before the next request to a suspected source."""
        block = SourceBlock.read(db, source, now)
        if block is None or block.recovered_at is not None:
            return doubt.failed_at <= 1
        return max(block.until, block.probe_until) <= now and doubt.failed_at < block.until

    def trip(self, db: sqlite3.Connection, permit: Permit, error: FetchError) -> float | None:
        """Block a source. Return the end of the block; None if the request began before an earlier block."""
        now = time.time()
        earlier = SourceBlock.read(db, permit.source, now)
        if earlier is not None and earlier.at > permit.at:
            return None
        trips = 1
        if earlier is not None and (earlier.recovered_at or now) > now - RECOVERED_AFTER:
            trips = min(earlier.trips + 1, 32)
        until = now + pause_after(trips, error.retry_after)
        db.execute(
            "INSERT OR REPLACE INTO breaker (source, reason, blocked_at, blocked_until, trips, probe_until)"
            " VALUES (?, ?, ?, ?, ?, 0)",
            (permit.source, error.reason.encode(errors="replace").decode(), now, until, trips),
        )
        return until

    def end_probe(self, db: sqlite3.Connection, source: str, *, answered: bool) -> None:
        """End a probe: the source answered and is no longer blocked, or the next request is a probe again."""
        if answered:
            db.execute("UPDATE breaker SET recovered_at = ? WHERE source = ?", (time.time(), source))
        else:
            db.execute("UPDATE breaker SET probe_until = 0 WHERE source = ?", (source,))

    def blocks(self, db: sqlite3.Connection, now: float) -> dict[str, SourceBlock]:
        """Return the blocks that have not ended, by source."""
        names = [name for (name,) in db.execute("SELECT source FROM breaker").fetchall()]
        blocks = {str(name): SourceBlock.read(db, name, now) for name in names}
        return {name: block for name, block in blocks.items() if block is not None and block.recovered_at is None}

    def correct_times(self, db: sqlite3.Connection, now: float) -> None:
        """Begin the blocks again that began in the future."""
        db.execute(
            "UPDATE breaker SET blocked_until = :now + max(0, min(blocked_until - blocked_at, :longest)),"
            " blocked_at = :now, probe_until = 0 WHERE blocked_at > :now"
            " AND typeof(blocked_at) = 'real' AND typeof(blocked_until) = 'real'",
            {"now": now, "longest": MAX_PAUSE},
        )

    def reset(self, db: sqlite3.Connection) -> int:
        """End all blocks. Return their number."""
        return db.execute("DELETE FROM breaker WHERE recovered_at IS NULL").rowcount


class RateLimiter:
    """A sliding window: the times of all requests in the last hour.

    Every method needs a connection; those that write need a transaction.
    """

    def check(self, db: sqlite3.Connection, source: str, now: float, *, max_per_hour: int, urgent: bool) -> None:
        """Check that the budget allows one more request.

        Raises:
            RateLimited: the budget is used up; of requests that are not urgent, without the reserve.
        """
        limit = usable_limit(max_per_hour, urgent=urgent)
        db.execute("DELETE FROM request WHERE source = ? AND NOT at BETWEEN ? AND ?", (source, now - _HOUR, now))
        times = db.execute("SELECT at FROM request WHERE source = ? ORDER BY at DESC", (source,)).fetchall()
        if len(times) >= limit:
            raise RateLimited(times[limit - 1][0] + _HOUR - now)

    def count(self, db: sqlite3.Connection, source: str, now: float) -> None:
        """Count a request."""
        db.execute("INSERT INTO request (source, at) VALUES (?, ?)", (source, now))

    def uncount(self, db: sqlite3.Connection, source: str, at: float) -> None:
        """Remove a request that was counted at that time."""
        db.execute("DELETE FROM request WHERE source = ? AND at = ?", (source, at))

    def counts(self, db: sqlite3.Connection, now: float) -> dict[str, int]:
        """Return the number of requests in the last hour, by source."""
        rows = db.execute(
            "SELECT source, count(*) FROM request WHERE at BETWEEN ? AND ? GROUP BY source", (now - _HOUR, now)
        ).fetchall()
        return {str(source): count for source, count in rows}


class SourceBlock(NamedTuple):
    """A row of the table `breaker`: a block of a source. Times are seconds since the epoch.

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
            "SELECT reason, blocked_at, blocked_until, trips, probe_until, recovered_at FROM breaker WHERE source = ?",
            (source,),
        ).fetchone()
        if row is None:
            return None
        try:
            reason, at, until, trips, probe_until, recovered_at = row
            begun_at = min(float(at), now)
            return cls(
                str(reason),
                begun_at,
                # A clock that was set back, or a database from another machine, must not block a source for years.
                begun_at + min(float(until) - float(at), MAX_PAUSE),
                int(trips),
                float(probe_until) if probe_until <= now + PROBE_TIMEOUT else 0.0,
                None if recovered_at is None else min(float(recovered_at), now),
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


def _suspected(source: str, reason: str) -> FetchError:
    return FetchError(
        FailureKind.BLOCKED,
        f"suspected: {suspicion.MAX_VERDICTS} videos in a row are said to be unavailable, and so is each control"
        f" ({reason}); check the cookies and the address",
        source=source,
    )


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
