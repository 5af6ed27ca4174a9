"""The ledger: what the store remembers beside the files themselves.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the
store publishes and evicts, so that no two processes ever count the same free bytes.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from kinetics_fs.errors import StoreError
from kinetics_fs.store.layout import locked
from kinetics_fs.util.sqlite import Database

_SCHEMA = """
PRAGMA journal_mode = WAL;

CREATE TABLE IF NOT EXISTS clip (
    key       TEXT PRIMARY KEY,      -- <youtube id>_<start>_<end>
    size      INTEGER NOT NULL,      -- bytes; kept when the clip is evicted, so that stat stays exact
    sha256    TEXT NOT NULL,         -- of the whole file, hexadecimal
    source    TEXT NOT NULL,         -- which source it came from
    stored_at REAL NOT NULL,         -- seconds since the epoch
    opened_at REAL NOT NULL,         -- the same; the order of eviction
    held      INTEGER NOT NULL,      -- 1 while the bytes are here
    pinned    INTEGER NOT NULL DEFAULT 0  -- 1 if it has a row in `pin`: never evicted
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS pin (     -- clips that are to stay, whether they were ever here or not
    key       TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS flight (  -- a fetch under way: a claim, a reservation, and the trace of a crash in one
    key       TEXT PRIMARY KEY,      -- one fetch per clip, over all processes
    token     TEXT NOT NULL,         -- names incoming/<token> and the final file
    owner     TEXT NOT NULL,         -- names owners/<owner>, locked while that process lives
    bytes     INTEGER NOT NULL       -- room that is kept for it
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS failure (
    key       TEXT PRIMARY KEY,
    kind      TEXT NOT NULL,         -- a FailureKind
    reason    TEXT NOT NULL,
    source    TEXT NOT NULL,
    errno     INTEGER,               -- where the operating system had one
    first_at  REAL NOT NULL,         -- the first failure of this kind in a row
    last_at   REAL NOT NULL,
    attempts  INTEGER NOT NULL,
    retry_at  REAL NOT NULL          -- not to be tried again before
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS origin (  -- one that blocked us; all times are seconds since the epoch
    name          TEXT PRIMARY KEY,
    reason        TEXT NOT NULL,
    blocked_at    REAL NOT NULL,
    blocked_until REAL NOT NULL,     -- then one probe is let through
    trips         INTEGER NOT NULL,  -- blocks in a row
    probe_until   REAL NOT NULL,     -- a probe is under way until then at most; 0 if none is
    recovered_at  REAL               -- when a probe was answered; NULL while the origin is left alone
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS asked (   -- a row per clip that an origin was asked for in the last hour
    origin    TEXT NOT NULL,
    at        REAL NOT NULL          -- seconds since the epoch
);
CREATE INDEX IF NOT EXISTS asked_in_order ON asked (origin, at);

CREATE TABLE IF NOT EXISTS history ( -- what became of the cache, in steps of five minutes, and of an hour after a day
    at           INTEGER PRIMARY KEY, -- when the step began, in seconds since the epoch
    clips        INTEGER NOT NULL,    -- held when it ended
    bytes        INTEGER NOT NULL,    -- the same
    fetched      INTEGER NOT NULL,    -- in it, by all processes
    failed       INTEGER NOT NULL,    -- the same; clips that could not be had
    from_cache   INTEGER NOT NULL,    -- the same; opens that found their clip here
    not_in_cache INTEGER NOT NULL     -- the same; opens that did not
);
"""

_INDEX_FOR_EVICTION = """
-- With all that eviction asks for, so that it reads no rows.
CREATE INDEX IF NOT EXISTS clip_by_pin_and_use ON clip (pinned, opened_at, size, held) WHERE held;
DROP INDEX IF EXISTS clip_in_order_of_eviction;  -- what ledgers had before there were pins
"""


class StateDatabase(Database):
    """The state database of a cache.

    `exclusive` is also the lock under which the store publishes and evicts. Every commit is on the disk when it
    returns: after a power cut the database still has each fetch that was in progress.

    Args:
        path: the file; created if it is missing.

    Raises:
        StoreError: the file cannot be created or read. Any method may raise it later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path, translate=self._error)
        # SQLite answers "locked" at once, whatever the timeout, if two processes make a new file a WAL file together.
        with locked(path.parent), self.connection() as db:
            db.executescript(_SCHEMA)
            if "pinned" not in {name for _, name, *_ in db.execute("PRAGMA table_info (clip)")}:
                db.execute("ALTER TABLE clip ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
            db.executescript(_INDEX_FOR_EVICTION)

    def _error(self, error: sqlite3.Error) -> StoreError:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return StoreError(
            f"cannot use the cache directory {self._path.parent}: {error};"
            " repair it or choose another with --cache-dir",
            errno=errno.ENOSPC if full else None,
        )
