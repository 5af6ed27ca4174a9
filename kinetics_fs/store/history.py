"""The history of a cache: how full it was, and what was fetched and opened.

All processes share a row for every five minutes with activity. After a day, the rows of an hour become one. There are
never more than 2,450 rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from kinetics_fs.errors import StoreError
from kinetics_fs.store.database import StateDatabase

STEP = 300
"""Seconds that a row covers."""
_COARSE_STEP = 3600
_FINE_FOR = 86400
_MAX_AGE = 90 * 86400
_MAX_COUNT = 2**62
"""Only the database of another machine can have a larger count."""

_COLUMNS = "at, clips, bytes, fetched, failed, from_cache, not_in_cache"


class ActivityCounts(NamedTuple):
    """The activity of a process."""

    fetched: int = 0
    """Clips that were fetched."""
    failed: int = 0
    """Clips that were unavailable."""
    from_cache: int = 0
    """Opens of cached clips."""
    not_in_cache: int = 0
    """Opens of clips that were not cached."""


class Sample(NamedTuple):
    """A row of the history: the clips cached at its end, and the activity of all processes (see `ActivityCounts`)."""

    at: int
    """When the time of the row began, in seconds since the epoch."""
    clips: int
    bytes: int
    fetched: int
    failed: int
    from_cache: int
    not_in_cache: int


class History:
    """The history of a cache. Safe for threads and processes.

    Args:
        database: keeps the rows.
        totals: returns the number of cached clips and their bytes.
    """

    def __init__(self, database: StateDatabase, totals: Callable[[], tuple[int, int]]) -> None:
        self._database = database
        self._totals = totals

    def add(self, counts: ActivityCounts) -> None:
        """Record how full the cache is now, and the activity of a process since its last call.

        Raises:
            StoreError: the state database cannot be written.
        """
        now = int(time.time())
        fine_since = (now - _FINE_FOR) // _COARSE_STEP * _COARSE_STEP
        with self._database.exclusive() as db:
            db.execute(
                f"INSERT INTO history ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (at) DO UPDATE SET"
                " clips = excluded.clips, bytes = excluded.bytes, fetched = fetched + excluded.fetched,"
                " failed = failed + excluded.failed, from_cache = from_cache + excluded.from_cache,"
                " not_in_cache = not_in_cache + excluded.not_in_cache",
                (now // STEP * STEP, *self._totals(), *counts),
            )
            # SQLite takes the columns without an aggregate from the row with the highest `at`.
            hours = db.execute(
                "SELECT max(at), clips, bytes, sum(fetched), sum(failed), sum(from_cache), sum(not_in_cache)"
                " FROM history WHERE at < ? GROUP BY at / ? HAVING max(at) % ?",
                (fine_since, _COARSE_STEP, _COARSE_STEP),
            ).fetchall()
            for at, *rest in hours:
                hour = at // _COARSE_STEP * _COARSE_STEP
                db.execute("DELETE FROM history WHERE at BETWEEN ? AND ?", (hour, at))
                db.execute(f"INSERT INTO history ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", (hour, *rest))
            # A row in the future comes from a wrong clock.
            db.execute("DELETE FROM history WHERE NOT at BETWEEN ? AND ?", (now - _MAX_AGE, now))

    def samples(self) -> list[Sample]:
        """Return all rows, the oldest first."""
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM history WHERE at BETWEEN ?1 - ?2 AND ?1 ORDER BY at", (int(time.time()), _MAX_AGE)
        )
        # A cache may come from another machine, so the values are checked.
        return [
            Sample(*row) for row in rows if all(isinstance(value, int) and 0 <= value < _MAX_COUNT for value in row)
        ]


class HistoryRecorder:
    """Records the activity of a process every few minutes, and at its end. A context manager.

    Args:
        history: where the activity is recorded.
        count: returns the activity of the process since its start. Activity before the recorder began is not recorded.
        interval: seconds between two records.
    """

    def __init__(self, history: History, count: Callable[[], ActivityCounts], *, interval: float = STEP) -> None:
        self._history = history
        self._count = count
        self._interval = interval
        self._recorded = count()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._record()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            self._record()

    def _record(self) -> None:
        counts = self._count()
        try:
            new = (now - recorded for now, recorded in zip(counts, self._recorded, strict=True))
            self._history.add(ActivityCounts(*new))
        except StoreError:  # reported by the store; the next record includes this activity
            return
        self._recorded = counts
