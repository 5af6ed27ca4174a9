"""The ledger: what the store remembers beside the files themselves.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the
store publishes and evicts, so that no two processes ever count the same free bytes.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinetics_fs.errors import StoreError
from kinetics_fs.store.layout import locked
from kinetics_fs.util.sqlite import Connections

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


class StateDatabase:
    """One ledger file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections = Connections(self._connect)
        # SQLite answers "locked" at once, whatever the timeout, when two make a new file a WAL file together.
        with locked(path.parent), self.connection() as db:
            db.executescript(_SCHEMA)
            if "pinned" not in {name for _, name, *_ in db.execute("PRAGMA table_info (clip)")}:
                db.execute("ALTER TABLE clip ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
            db.executescript(_INDEX_FOR_EVICTION)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        # Every commit is on the disk when it returns: after a power cut the ledger still knows each fetch.
        db.execute("PRAGMA synchronous = FULL")
        return db

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit mode, for one caller at a time."""
        try:
            with self._connections.borrow() as db:
                try:
                    yield db
                finally:
                    if db.in_transaction:  # a COMMIT that failed: never hand half a transaction to the next
                        db.rollback()
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            raise StoreError(
                f"cannot use the cache folder {self._path.parent} ({error}): mend it or give another --cache-dir",
                errno=errno.ENOSPC if full else None,
            ) from error

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process can write beside; rolled back if the block raises."""
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def close(self) -> None:
        """Closes the file."""
        self._connections.close()
