"""The ledger: what the store remembers beside the files themselves.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the
store publishes and evicts, so that no two processes ever count the same free bytes.
"""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Connections to one ledger file.

    They are pooled rather than kept per thread: a libfuse thread is a new thread to Python at every call.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        with self.connection() as db:
            db.executescript(_SCHEMA)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit mode, for one caller at a time."""
        try:
            db = self._idle.get_nowait()
        except queue.Empty:
            db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
            # Every commit is on the disk when it returns: after a power cut the ledger still knows each fetch.
            db.execute("PRAGMA synchronous = FULL")
        try:
            yield db
        finally:
            self._idle.put(db)

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process can write beside; rolled back if the block raises."""
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def close(self) -> None:
        """Closes the idle connections; no caller may be using one."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
