"""What became of a cache over time: how full it was, and what was fetched and opened.

A row for every five minutes in which anybody wrote one, of all processes together; after a day they become one for
every hour. So there are never more than 2,450.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from kinetics_fs.errors import StoreError
from kinetics_fs.store.database import StateDatabase

_log = logging.getLogger(__name__)

STEP = 300
"""Seconds that a row stands for."""
_LATER_STEP = 3600
_FINE_FOR = 86400
_KEPT_FOR = 90 * 86400
_MOST = 2**62
"""What no count reaches but in a ledger from elsewhere."""

_COLUMNS = "at, clips, bytes, fetched, failed, from_cache, not_in_cache"


class ActivityCounts(NamedTuple):
    """What somebody did: clips fetched, clips that could not be had, opens that found their clip here, and others."""

    fetched: int = 0
    failed: int = 0
    from_cache: int = 0
    not_in_cache: int = 0


class Sample(NamedTuple):
    """A row: when its time began, in seconds since the epoch, what was held when it ended, and what all did in it."""

    at: int
    clips: int
    bytes: int
    fetched: int
    failed: int
    from_cache: int
    not_in_cache: int


class History:
    """The samples in a ledger. Safe for threads and processes.

    Args:
        ledger: where they are.
        totals: how many clips are held now, and how many bytes.
    """

    def __init__(self, database: StateDatabase, totals: Callable[[], tuple[int, int]]) -> None:
        self._database = database
        self._totals = totals

    def add(self, done: ActivityCounts) -> None:
        """Notes what is held now, and what somebody did since he last noted it."""
        now = int(time.time())
        fine_since = (now - _FINE_FOR) // _LATER_STEP * _LATER_STEP
        with self._database.exclusive() as db:
            db.execute(
                f"INSERT INTO history ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (at) DO UPDATE SET"
                " clips = excluded.clips, bytes = excluded.bytes, fetched = fetched + excluded.fetched,"
                " failed = failed + excluded.failed, from_cache = from_cache + excluded.from_cache,"
                " not_in_cache = not_in_cache + excluded.not_in_cache",
                (now // STEP * STEP, *self._totals(), *done),
            )
            # The columns without an aggregate are those of the row with the highest `at`.
            hours = db.execute(
                "SELECT max(at), clips, bytes, sum(fetched), sum(failed), sum(from_cache), sum(not_in_cache)"
                " FROM history WHERE at < ? GROUP BY at / ? HAVING max(at) % ?",
                (fine_since, _LATER_STEP, _LATER_STEP),
            ).fetchall()
            for at, *rest in hours:
                hour = at // _LATER_STEP * _LATER_STEP
                db.execute("DELETE FROM history WHERE at BETWEEN ? AND ?", (hour, at))
                db.execute(f"INSERT INTO history ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", (hour, *rest))
            # Those of the future are of a clock that was wrong.
            db.execute("DELETE FROM history WHERE NOT at BETWEEN ? AND ?", (now - _KEPT_FOR, now))

    def samples(self) -> list[Sample]:
        """All of them, the oldest first."""
        with self._database.connection() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM history WHERE at BETWEEN ?1 - ?2 AND ?1 ORDER BY at",
                (int(time.time()), _KEPT_FOR),
            ).fetchall()
        # A cache may come from elsewhere.
        return [Sample(*row) for row in rows if all(isinstance(value, int) and 0 <= value < _MOST for value in row)]


class HistoryRecorder:
    """Notes every few minutes, and at its end, what somebody did. Use as a context.

    Args:
        history: where to.
        counted: all that he ever did; what he did before is not noted.
        every: seconds between two notes.
    """

    def __init__(self, history: History, counted: Callable[[], ActivityCounts], *, every: float = STEP) -> None:
        self._history = history
        self._counted = counted
        self._every = every
        self._before = counted()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._note()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._note()

    def _note(self) -> None:
        counts = self._counted()
        try:
            self._history.add(ActivityCounts(*(now - before for now, before in zip(counts, self._before, strict=True))))
        except StoreError as error:  # what is not noted now is the next time
            _log.warning("the history of the cache cannot be written: %s", error)
        else:
            self._before = counts
