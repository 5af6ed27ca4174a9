"""Connections to one SQLite database, for callers in any thread."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Connections:
    """A pool: a connection per caller at a time, kept for the next one.

    Per caller and not per thread, for a libfuse thread is a new thread to Python at every call. Not to be carried
    over a fork, which SQLite forbids.

    Args:
        connect: opens one; with `check_same_thread=False`.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._closed = False

    @contextmanager
    def borrow(self) -> Iterator[sqlite3.Connection]:
        """A connection, until the end of the block.

        Raises:
            ValueError: the pool is closed.
            sqlite3.Error: the database cannot be opened.
        """
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows that a statement yields; what `borrow` and `execute` do, in half the time.

        Raises:
            ValueError: the pool is closed.
            sqlite3.Error: whatever the statement raises.
        """
        connection = self._take()
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        if self._closed:
            raise ValueError("the database is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.put(connection)

    def close(self) -> None:
        """Closes all that are idle now, and each other one when its caller is done."""
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
