"""Pins: clips that eviction leaves alone, whether they are here already or come later."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.util.sqlite import transaction


class PinCounts(NamedTuple):
    """Some clips that are pinned: how many, how many of them are here, and the bytes of those."""

    clips: int
    cached: int
    bytes: int


class Pinned(NamedTuple):
    """What became of clips that were to be pinned: all of them as they are now, and how many were not pinned before."""

    all: PinCounts
    new: int


class Pins:
    """The pins that a ledger remembers. Safe for threads and processes; every change is seen by all at once.

    The table `pin` says what is pinned; the column `pinned` of `clip` says the same of clips that were ever here, for
    eviction to be quick.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def add(self, clips: Iterable[Clip]) -> Pinned:
        """Pins clips; all of them, or, after an error, none."""
        with self._chosen(clips) as db:
            new = db.execute("INSERT OR IGNORE INTO pin SELECT key FROM chosen").rowcount
            db.execute("UPDATE clip SET pinned = 1 WHERE pinned != 1 AND key IN (SELECT key FROM chosen)")
            return Pinned(_count(db, "chosen"), new)

    def remove(self, clips: Iterable[Clip]) -> PinCounts:
        """Unpins clips; all of them, or, after an error, none. Returns what was pinned of them."""
        with self._chosen(clips) as db:
            db.execute("DELETE FROM chosen WHERE key NOT IN (SELECT key FROM pin)")
            counts = _count(db, "chosen")
            db.execute("DELETE FROM pin WHERE key IN (SELECT key FROM chosen)")
            db.execute("UPDATE clip SET pinned = 0 WHERE pinned != 0 AND key IN (SELECT key FROM chosen)")
            return counts

    def remove_all(self) -> PinCounts:
        """Unpins all that is pinned. Returns what was."""
        with self._database.exclusive() as db:
            counts = _count(db, "pin")
            db.execute("DELETE FROM pin")
            db.execute("UPDATE clip SET pinned = 0 WHERE pinned != 0")
            return counts

    def totals(self) -> PinCounts:
        """All that is pinned."""
        with self._database.connection() as db:
            return PinCounts(
                *db.execute(
                    "SELECT (SELECT count(*) FROM pin), count(*), coalesce(sum(size), 0)"
                    " FROM clip WHERE held AND pinned = 1"
                ).fetchone()
            )

    def of(self, keys: Sequence[str]) -> PinCounts:
        """What is pinned of the clips with these keys."""
        with self._database.connection() as db:
            return _count(db, "(SELECT pin.key FROM json_each(?) JOIN pin ON pin.key = value)", json.dumps(keys))

    @contextmanager
    def _chosen(self, clips: Iterable[Clip]) -> Iterator[sqlite3.Connection]:
        """A transaction that has the keys of `clips` in a table `chosen`.

        They are written beside the ledger first: to name very many clips takes a while, and nobody shall wait for that.
        """
        with self._database.connection() as db:
            db.execute("CREATE TEMP TABLE chosen (key TEXT PRIMARY KEY) WITHOUT ROWID")
            try:
                with transaction(db, "DEFERRED"):
                    db.executemany("INSERT OR IGNORE INTO chosen VALUES (?)", ((clip.key,) for clip in clips))
                with transaction(db):
                    yield db
            finally:
                db.execute("DROP TABLE chosen")


def _count(db: sqlite3.Connection, keys: str, *values: str) -> PinCounts:
    """Counts the clips of a table of keys."""
    return PinCounts(
        *db.execute(
            "SELECT count(*), count(clip.key), coalesce(sum(clip.size), 0)"
            f" FROM {keys} AS keys LEFT JOIN clip ON clip.key = keys.key AND clip.held",
            values,
        ).fetchone()
    )
