"""Origins that want to be left alone, and how much each was asked: one breaker and one budget for everyone.

Both are in the ledger, so that all mounts and prefetches on one cache keep them together, and a restart forgets
nothing. An origin is where a source gets its clips; it has the source's name.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import datetime
from typing import Any, NamedTuple

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store.database import StateDatabase

_log = logging.getLogger(__name__)

_HOUR = 3600.0

_FIRST_WAIT = 60.0
"""Seconds to leave an origin alone that blocked us and did not say for how long; doubled with each further block."""
_LONGEST_WAIT = 24 * _HOUR
_RECOVERED_AFTER = 6 * _HOUR
"""Seconds without a block after which the next one counts as the first."""

_PROBE = 600.0
"""Seconds after which a probe that nobody heard of again counts as lost."""

_RESERVE = 0.2
"""The part of the budget that is kept for who waits in `open`."""

_ANSWERS = {None, FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT}
"""Outcomes, None for a clip, that say that the origin talks to us."""


class Permit(NamedTuple):
    """The right to ask an origin for one clip."""

    origin: str
    at: float
    """Seconds since the epoch."""
    is_probe: bool
    """Whether it is the one that finds out if the origin blocks us still."""


class RateLimited(Exception):
    """The budget is used up.

    Args:
        seconds: until there is room for the next one.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not for {seconds:.0f} s")
        self.seconds = seconds


class OriginState(NamedTuple):
    """How things are with an origin. Times are seconds since the epoch."""

    name: str
    blocked_until: float | None
    """None unless it is left alone; a time that has passed means that a probe is due or under way."""
    reason: str
    fetches_last_hour: int
    """How many clips it was asked for in the last hour."""


class Origins:
    """The origins that a ledger knows. Safe for threads and processes."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def ask(self, origin: str, *, hourly: int | None, urgent: bool) -> Permit:
        """Asks for the right to ask an origin for one more clip. Its outcome is to be told to `answered`.

        Args:
            origin: its name.
            hourly: most clips to ask it for in any 60 minutes; None for no limit.
            urgent: whether somebody waits in `open`: may use the reserve.

        Raises:
            FetchError: it is left alone for now (BLOCKED).
            RateLimited: see there.
        """
        now = time.time()
        with self._database.exclusive() as db:
            blocked = _Blocked.read(db, origin, now)
            if blocked is not None and blocked.recovered_at is None:
                if max(blocked.until, blocked.probe_until) > now:
                    raise blocked.error(origin)
                db.execute("UPDATE origin SET probe_until = ? WHERE name = ?", (now + _PROBE, origin))
            if hourly is not None:
                most = hourly if urgent else max(1, math.floor(hourly * (1 - _RESERVE)))
                db.execute("DELETE FROM asked WHERE origin = ? AND NOT at BETWEEN ? AND ?", (origin, now - _HOUR, now))
                times = db.execute("SELECT at FROM asked WHERE origin = ? ORDER BY at DESC", (origin,)).fetchall()
                if len(times) >= most:
                    raise RateLimited(times[most - 1][0] + _HOUR - now)
            db.execute("INSERT INTO asked (origin, at) VALUES (?, ?)", (origin, now))
        return Permit(origin, now, is_probe=blocked is not None and blocked.recovered_at is None)

    def answered(self, permit: Permit, error: FetchError | None) -> None:
        """Tells what became of a permit: None if the clip was had."""
        if error is not None and error.kind is FailureKind.BLOCKED:
            self._block(permit, error)
        elif permit.is_probe:
            now = time.time()
            with self._database.exclusive() as db:
                if (error.kind if error else None) in _ANSWERS:
                    db.execute("UPDATE origin SET recovered_at = ? WHERE name = ?", (now, permit.origin))
                    _log.warning("%s: answers again", permit.origin)
                else:
                    db.execute("UPDATE origin SET probe_until = 0 WHERE name = ?", (permit.origin,))

    def withdraw(self, permit: Permit) -> None:
        """Gives a permit back: the origin was not asked after all."""
        with self._database.exclusive() as db:
            db.execute("DELETE FROM asked WHERE origin = ? AND at = ?", (permit.origin, permit.at))
            if permit.is_probe:
                db.execute("UPDATE origin SET probe_until = 0 WHERE name = ?", (permit.origin,))

    def _block(self, permit: Permit, error: FetchError) -> None:
        now = time.time()
        with self._database.exclusive() as db:
            before = _Blocked.read(db, permit.origin, now)
            if before is not None and before.at > permit.at:
                return  # one of those that were under way when it began
            trips = 1
            if before is not None and (before.recovered_at or now) > now - _RECOVERED_AFTER:
                trips = min(before.trips + 1, 32)
            wait = min((error.retry_after or _FIRST_WAIT) * 2.0 ** (trips - 1), _LONGEST_WAIT)
            db.execute(
                "INSERT OR REPLACE INTO origin (name, reason, blocked_at, blocked_until, trips, probe_until)"
                " VALUES (?, ?, ?, ?, ?, 0)",
                (permit.origin, error.reason.encode(errors="replace").decode(), now, now + wait, trips),
            )
        _log.error("%s: %s; left alone until %s", permit.origin, error.reason, _clock(now + wait))

    def states(self) -> list[OriginState]:
        """All origins that were asked in the last hour, or are left alone."""
        now = time.time()
        with self._database.connection() as db:
            asked = dict(
                db.execute(
                    "SELECT origin, count(*) FROM asked WHERE at BETWEEN ? AND ? GROUP BY origin", (now - _HOUR, now)
                ).fetchall()
            )
            names = sorted({*asked, *(name for (name,) in db.execute("SELECT name FROM origin"))}, key=str)
            blocked = {name: _Blocked.read(db, name, now) for name in names}
        states = []
        for name in names:
            one = blocked[name]
            stops = one is not None and one.recovered_at is None
            if stops or name in asked:
                states.append(
                    OriginState(
                        str(name),
                        one.until if one is not None and stops else None,
                        one.reason if one is not None and stops else "",
                        asked.get(name, 0),
                    )
                )
        return states

    def forgive(self) -> int:
        """Ends all blocks, as after a change of address or cookies; returns how many there were."""
        with self._database.exclusive() as db:
            return db.execute("DELETE FROM origin WHERE recovered_at IS NULL").rowcount


class _Blocked(NamedTuple):
    """A row of the table `origin`."""

    reason: str
    at: float
    until: float
    trips: int
    probe_until: float
    recovered_at: float | None

    @classmethod
    def read(cls, db: Any, origin: str, now: float) -> _Blocked | None:
        row = db.execute(
            "SELECT reason, blocked_at, blocked_until, trips, probe_until, recovered_at FROM origin WHERE name = ?",
            (origin,),
        ).fetchone()
        if row is None:
            return None
        try:
            reason, at, until, trips, probe_until, recovered_at = row
            return cls(
                str(reason),
                min(float(at), now),
                # A clock that was put back, or a ledger from elsewhere, must not stop us for years.
                min(float(until), now + _LONGEST_WAIT),
                int(trips),
                min(float(probe_until), now + _PROBE),
                None if recovered_at is None else float(recovered_at),
            )
        except (TypeError, ValueError, OverflowError):
            return None

    def error(self, origin: str) -> FetchError:
        now = time.time()
        when = f"until {_clock(self.until)}" if self.until > now else "while it is being tried again"
        return FetchError(
            FailureKind.BLOCKED,
            f"left alone {when}: {self.reason}",
            source=origin,
            retry_after=max(0.0, self.until - now),
        )


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
