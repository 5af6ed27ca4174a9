"""SQLite databases that many threads and processes use at once."""

from __future__ import annotations

import os
import queue
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from kinetics_fs.util.disk import DiskFault, fault_of, identify, removed_fault
from kinetics_fs.util.sqlite_copy import MAX_BYTES, CopyError, copy_to_memory

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for the lock of another connection."""

SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Errors of SQLite. Python raises the second one if a message about a damaged file is not UTF-8."""


class DatabaseFile:
    """A SQLite file in use: notices that the file was removed or replaced, and translates errors.

    Args:
        path: the file; it need not exist yet.
        translate: returns the exception that callers get, given what is wrong.
        if_damaged: what to do if the content of the file is damaged.
    """

    def __init__(self, path: Path, *, translate: Callable[[DiskFault], Exception], if_damaged: str) -> None:
        self.path = path
        self._path = str(path)
        self.translate = translate
        self._if_damaged = if_damaged
        self._identity: tuple[int, int] | None = None
        self._folders: dict[Path, tuple[int, int] | None] = {}

    def check(self) -> None:
        """Check that the file is the one that was there at the first check after its creation.

        A connection goes on to use a file that was removed or renamed, and changes in it would be lost.

        Raises:
            Exception: the result of `translate`, if it is missing or another one.
        """
        try:
            status = os.stat(self._path)  # noqa: PTH116  # of a string, because every query runs this
        except OSError as error:
            if self._identity is None:
                return
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise self.translate(fault_of(error, self.path)) from error
            raise self.translate(removed_fault(self.path, self._folders)) from error
        identity = status.st_dev, status.st_ino
        if self._identity is None:
            self._folders = {folder: identify(folder) for folder in reversed(self.path.absolute().parents)}
            self._identity = identity
        elif identity != self._identity:
            raise self.translate(removed_fault(self.path, self._folders))

    def error(self, error: Exception) -> Exception:
        """Return the exception that callers get for an error of SQLite."""
        self.check()
        # A rollback that follows an error may fail, too.
        first = error
        while (earlier := first.__context__) is not None and isinstance(earlier, sqlite3.Error):
            first = earlier
        if not isinstance(first, sqlite3.Error):
            first = sqlite3.OperationalError(str(first))
        if self.path.is_dir():
            return self.translate(DiskFault(f"{self.path} is a folder", self._if_damaged, damaged=True))
        return self.translate(fault_of(first, self.path, if_damaged=self._if_damaged))


class _Connection(sqlite3.Connection):
    address = ""
    """The URI of the file or of the copy."""
    read_only = False
    """It was opened while the disk was read-only, and remains so. SQLite does not say this before a change."""


class Database:
    """A SQLite file, with a pool of connections in autocommit mode.

    Each caller gets a connection of its own until it is done; idle connections are reused. They are not kept per
    thread, because a libfuse thread is a new thread to Python at every call. Safe for threads and processes, but not
    across a fork, which SQLite forbids.

    Args:
        path: the file; created if it is missing, unless it is `immutable`.
        translate: returns the exception that callers get, given what is wrong.
        if_damaged: what to do if the content of the file is damaged.
        synchronous: `FULL` if every commit must be on the disk when it returns, else `NORMAL`.
        immutable: open for reading a file that no process changes. It stays readable if it is removed while it is open.
    """

    def __init__(
        self,
        path: Path,
        *,
        translate: Callable[[DiskFault], Exception],
        if_damaged: str,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        immutable: bool = False,
    ) -> None:
        self._uri = self._file_uri = path.absolute().as_uri() + ("?mode=ro&immutable=1" if immutable else "")
        self.file = DatabaseFile(path, translate=translate, if_damaged=if_damaged)
        self._synchronous = None if immutable else synchronous
        self._immutable = immutable
        self._idle: queue.SimpleQueue[_Connection] = queue.SimpleQueue()
        self._closed = False
        self._is_open = False
        """The file is immutable, and there are connections to it, which are never dropped."""
        self._copy: sqlite3.Connection | None = None
        self.read_only: DiskFault | None = None
        """Why a copy in memory is used, which cannot be changed; None if the file is used."""

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Borrow a connection until the end of the block, which rolls back a transaction that is still open.

        Raises:
            ValueError: the database is closed.
            Exception: the result of `translate`, for any error of SQLite in the block.
        """
        with self._borrowed(self._take) as db:
            yield db

    @contextmanager
    def _borrowed(self, take: Callable[[], _Connection]) -> Iterator[_Connection]:
        try:
            db = take()
            try:
                yield db
            except SQLITE_ERRORS:
                self._drop(db)
                raise
            except BaseException:
                self._give_back(db)
                raise
            self._give_back(db)
        except SQLITE_ERRORS as error:
            raise self._error(error) from error

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction during which no other process can write. See `connection`.

        Raises:
            Exception: the result of `translate`, for any error of SQLite in the block, and if the database is a copy.
        """
        if self.read_only is not None:
            raise self.file.translate(self.read_only)
        with self._borrowed(self._take_and_begin) as db:
            yield db
            db.execute("COMMIT")

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Return all rows of a statement that reads. Takes half the time of `connection` and `execute`.

        Raises:
            ValueError: the database is closed.
            Exception: the result of `translate`, for any error of SQLite.
        """
        try:
            db = self._take()
            try:
                rows = db.execute(sql, parameters).fetchall()
            except SQLITE_ERRORS:
                self._drop(db)
                raise
        except SQLITE_ERRORS as error:
            raise self._error(error) from error
        self._give_back(db)
        return rows

    def use_copy(
        self,
        fault: DiskFault,
        upgrade: Callable[[sqlite3.Connection], None],
        path: Path | None = None,
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Read a copy in memory from now on, because the disk cannot be written.

        Args:
            fault: why it cannot. A change of the database raises the result of `translate` for it.
            upgrade: brings the copy to the schema of this version, in a transaction.
            path: the file to copy; None for that of the database.
            max_bytes: maximum size of the file.

        Raises:
            Exception: the result of `translate`, if the file cannot be read.
        """
        path = path or self.file.path
        try:
            address, copy = copy_to_memory(path, max_bytes)
            try:
                with transaction(copy):
                    upgrade(copy)
            except BaseException:
                copy.close()
                raise
        except CopyError as error:
            unreadable = DiskFault(f"{fault.cause}, and {path} cannot be copied into memory ({error})", fault.cure)
            raise self.file.translate(unreadable._replace(errno=fault.errno)) from error
        except SQLITE_ERRORS as error:
            raise self.file.error(error) from error
        self._copy, self._uri, self.read_only = copy, address, fault
        self._close_idle()

    def use_file(self) -> None:
        """Use the file again, after `use_copy`."""
        self._uri, self.read_only = self._file_uri, None
        self._close_idle()
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def close(self) -> None:
        """Close the idle connections now, and each borrowed one when its caller is done."""
        self._closed = True
        self.use_file()

    def _error(self, error: Exception) -> Exception:
        if self.read_only is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            return self.file.translate(self.read_only)
        return self.file.error(error)

    def _take(self) -> _Connection:
        if self._closed:
            raise ValueError("the database is closed")
        if not self._immutable and self.read_only is None:
            self.file.check()
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        try:
            return self._connect()
        except SQLITE_ERRORS:
            if not self._is_open:
                raise
        try:
            return self._idle.get(timeout=_BUSY_TIMEOUT)
        except queue.Empty:
            return self._connect()

    def _take_and_begin(self) -> _Connection:
        db = self._take()
        if db.read_only:  # the disk may be writable by now
            self._drop(db)
            db = self._take()
        try:
            db.execute("BEGIN IMMEDIATE")
        except SQLITE_ERRORS:
            self._drop(db)
            raise
        return db

    def _give_back(self, db: _Connection) -> None:
        if db.in_transaction:  # the next caller must not get half a transaction
            db.rollback()
        if self._closed or db.address != self._uri:
            db.close()
        else:
            self._idle.put(db)

    def _drop(self, db: _Connection) -> None:
        """Close a connection that failed, and the idle ones: those opened on a read-only disk remain read-only."""
        if self._is_open:
            self._give_back(db)
            return
        db.close()
        self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _connect(self) -> _Connection:
        db = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=_BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        db.address = self._uri
        db.read_only = not os.access(self.file.path, os.W_OK, effective_ids=True)
        try:
            if self._synchronous is not None:
                db.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._prepare(db)
            if db.address != self._file_uri:
                db.execute("PRAGMA query_only = ON")  # changes of a copy would be lost
        except BaseException:
            db.close()
            raise
        self._is_open = self._immutable
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Give a new connection what it needs. A subclass may create temporary views, for example."""


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
