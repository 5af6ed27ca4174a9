"""Pins: clips that are never evicted, whether they are cached already or will be."""

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
    """The number of some pinned clips, how many of them are cached, and the bytes that they have in the cache."""

    clips: int
    cached: int
    bytes: int
    """With the bytes of other profiles, which are pinned as well."""


class Pinned(NamedTuple):
    """The result of pinning clips: their counts, and how many of them were not pinned before."""

    all: PinCounts
    new: int


class Pins:
    """The pins of a cache. Safe for threads and processes; every change takes effect in all processes at once.

    A pin names a clip, so it keeps the files of all profiles from being evicted.

    The table `pin` has the pinned clips. The column `pinned` of the table `clip` repeats this for the clips that are
    or were cached, to make eviction fast.

    Args:
        database: keeps the pins.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def add(self, clips: Iterable[Clip]) -> Pinned:
        """Pin clips; after an error, none of them is pinned.

        Raises:
            StoreError: the state database cannot be written.
        """
        with self._selected(clips) as db:
            new = db.execute("INSERT OR IGNORE INTO pin SELECT key FROM selected").rowcount
            db.execute("UPDATE clip SET pinned = 1 WHERE pinned != 1 AND key IN (SELECT key FROM selected)")
            return Pinned(_count(db, "selected"), new)

    def remove(self, clips: Iterable[Clip]) -> PinCounts:
        """Unpin clips; after an error, none of them is unpinned. Return the counts of those that were pinned.

        Raises:
            StoreError: the state database cannot be written.
        """
        with self._selected(clips) as db:
            db.execute("DELETE FROM selected WHERE key NOT IN (SELECT key FROM pin)")
            counts = _count(db, "selected")
            db.execute("DELETE FROM pin WHERE key IN (SELECT key FROM selected)")
            db.execute("UPDATE clip SET pinned = 0 WHERE pinned != 0 AND key IN (SELECT key FROM selected)")
            return counts

    def remove_all(self) -> PinCounts:
        """Unpin every clip. Return the counts of those that were pinned."""
        with self._database.exclusive() as db:
            counts = _count(db, "pin")
            db.execute("DELETE FROM pin")
            db.execute("UPDATE clip SET pinned = 0 WHERE pinned != 0")
            return counts

    def totals(self) -> PinCounts:
        """Return the counts of all pinned clips."""
        [counts] = self._database.query(
            "SELECT (SELECT count(*) FROM pin), (SELECT count(*) FROM shown WHERE cached AND pinned = 1),"
            " coalesce(sum(size), 0) FROM clip WHERE cached AND pinned = 1"
        )
        return PinCounts(*counts)

    def of(self, keys: Sequence[str]) -> PinCounts:
        """Return the counts of the pinned clips among those with these keys."""
        with self._database.connection() as db:
            return _count(db, "(SELECT pin.key FROM json_each(?) JOIN pin ON pin.key = value)", json.dumps(keys))

    @contextmanager
    def _selected(self, clips: Iterable[Clip]) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction that has the keys of `clips` in a table `selected`.

        The table is filled outside of the state database first: to enumerate very many clips takes a while, and the
        lock of the state database must be free meanwhile.
        """
        with self._database.connection() as db:
            db.execute("CREATE TEMP TABLE selected (key TEXT PRIMARY KEY) WITHOUT ROWID")
            try:
                with transaction(db, "DEFERRED"):
                    db.executemany("INSERT OR IGNORE INTO selected VALUES (?)", ((clip.key,) for clip in clips))
                with transaction(db):
                    yield db
            finally:
                db.execute("DROP TABLE selected")


def _count(db: sqlite3.Connection, keys: str, *values: str) -> PinCounts:
    """Return the counts of the clips in a table of keys."""
    return PinCounts(
        *db.execute(
            "SELECT count(*), count(shown.key), coalesce(sum("
            " (SELECT sum(size) FROM clip WHERE clip.key = keys.key AND cached)), 0)"
            f" FROM {keys} AS keys LEFT JOIN shown ON shown.key = keys.key AND shown.cached",
            values,
        ).fetchone()
    )
