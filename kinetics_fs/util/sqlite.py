"""SQLite databases that many threads and processes use at once."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for the lock of another connection."""


class Database:
    """A SQLite file, with a pool of connections in autocommit mode.

    Each caller gets a connection of its own until it is done; idle connections are reused. They are not kept per
    thread, because a libfuse thread is a new thread to Python at every call. Safe for threads and processes, but not
    across a fork, which SQLite forbids.

    Args:
        path: the file; created if it is missing, unless it is `immutable`.
        translate: returns the exception that callers get in place of an error of SQLite.
        synchronous: `FULL` if every commit must be on the disk when it returns, else `NORMAL`.
        immutable: open for reading a file that no process changes.
    """

    def __init__(
        self,
        path: Path,
        *,
        translate: Callable[[sqlite3.Error], Exception],
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        immutable: bool = False,
    ) -> None:
        self._uri = path.absolute().as_uri() + ("?mode=ro&immutable=1" if immutable else "")
        self._synchronous = None if immutable else synchronous
        self._translate = translate
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Borrow a connection until the end of the block, which rolls back a transaction that is still open.

        Raises:
            ValueError: the database is closed.
            Exception: the result of `translate`, for any error of SQLite in the block.
        """
        try:
            db = self._take()
            try:
                yield db
            finally:
                if db.in_transaction:  # a failed COMMIT: the next caller must not get half a transaction
                    db.rollback()
                self._give_back(db)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction during which no other process can write. See `connection`."""
        with self.connection() as db, transaction(db):
            yield db

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a statement that reads. Takes half the time of `connection` and `execute`.

        Raises:
            ValueError: the database is closed.
            Exception: the result of `translate`, for any error of SQLite.
        """
        try:
            db = self._take()
            try:
                return db.execute(sql, parameters).fetchall()
            finally:
                self._give_back(db)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def close(self) -> None:
        """Close the idle connections now, and each borrowed one when its caller is done."""
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _take(self) -> sqlite3.Connection:
        if self._closed:
            raise ValueError("the database is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._connect()

    def _give_back(self, db: sqlite3.Connection) -> None:
        if self._closed:
            db.close()
        else:
            self._idle.put(db)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._uri, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            if self._synchronous is not None:
                db.execute(f"PRAGMA synchronous = {self._synchronous}")
        except BaseException:
            db.close()
            raise
        return db


@contextmanager
def transaction(
    db: sqlite3.Connection, mode: Literal["DEFERRED", "IMMEDIATE"] = "IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    """Commit the statements of the block together; roll them back if the block raises or the commit fails.

    Args:
        db: a connection in autocommit mode.
        mode: `IMMEDIATE` keeps other writers out from the start, `DEFERRED` from the first statement that writes.
    """
    db.execute(f"BEGIN {mode}")
    try:
        yield db
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.rollback()
