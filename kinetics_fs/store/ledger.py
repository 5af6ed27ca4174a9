"""The ledger: what the store remembers beside the files themselves.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the
store publishes and evicts, so that no two processes ever count the same free bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kinetics_fs.connections import Connections

_SCHEMA = """
PRAGMA journal_mode = WAL;

CREATE TABLE IF NOT EXISTS clip (
    key       TEXT PRIMARY KEY,      -- <youtube id>_<start>_<end>
    size      INTEGER NOT NULL,      -- bytes; kept when the clip is evicted, so that stat stays exact
    sha256    TEXT NOT NULL,         -- of the whole file, hexadecimal
    source    TEXT NOT NULL,         -- which source it came from
    stored_at REAL NOT NULL,         -- seconds since the epoch
    opened_at REAL NOT NULL,         -- the same; the order of eviction
    held      INTEGER NOT NULL       -- 1 while the bytes are here
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS clip_in_order_of_eviction ON clip (opened_at) WHERE held;

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
    first_at  REAL NOT NULL,         -- the first failure of this row of failures
    last_at   REAL NOT NULL,
    attempts  INTEGER NOT NULL,
    retry_at  REAL NOT NULL          -- not to be tried again before
) WITHOUT ROWID;
"""


class Ledger:
    """One ledger file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections = Connections(self._connect)
        with self.connection() as db:
            db.executescript(_SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        # Every commit is on the disk when it returns: after a power cut the ledger still knows each fetch.
        db.execute("PRAGMA synchronous = FULL")
        return db

    def connection(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection in autocommit mode, for one caller at a time."""
        return self._connections.borrow()

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process can write beside; rolled back if the block raises."""
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the file."""
        self._connections.close()
