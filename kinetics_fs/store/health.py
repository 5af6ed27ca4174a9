"""How a cache folder is, without opening it as a store, which would put it in order."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.layout import CacheLayout
from kinetics_fs.store.throttle import Origins, OriginState


class CacheSummary(NamedTuple):
    """What the ledger says: how many clips are here, how many bytes they have, and how origins are."""

    clips: int
    bytes: int
    origins: list[OriginState]


def summarize_cache(folder: Path) -> CacheSummary | None:
    """What the ledger of a cache folder says; None if there is none.

    Raises:
        StoreError: it cannot be read.
    """
    path = CacheLayout(folder).state_database
    if not path.exists():
        return None
    with closing(StateDatabase(path)) as database:
        with database.connection() as db:
            clips, size = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM clip WHERE held").fetchone()
        return CacheSummary(clips, size, Origins(database).states())


def quick_check(database: Path, patience: float) -> str:
    """What is wrong with a database, as far as SQLite's quick check can tell in so many seconds; empty if nothing is.

    Raises:
        OSError: there is none.
    """
    database.stat()
    deadline = time.monotonic() + patience
    try:
        # For writing, as a crash may have left something to be taken in.
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", timeout=patience, uri=True)) as db:
            db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            [(said,), *_] = db.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        return "" if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT else str(error)
    return "" if said == "ok" else str(said)
