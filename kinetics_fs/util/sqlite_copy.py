"""A copy of an SQLite database in memory, for a disk on which nothing can be written.

SQLite cannot read a database in WAL mode without writing: it needs an index of the write-ahead log beside the file. The
option `immutable` leaves the log out, and with it the last changes. So a process of its own reads the file and applies
the log (https://www.sqlite.org/fileformat2.html, section 4), and this process opens the result in memory.

As a program (`python sqlite_copy.py PATH MAX_BYTES`) this module is that process: it imports nothing of kinetics-fs,
and writes the database to its standard output. It is another process because to close a file releases all locks that a
process has on it, those of its SQLite connections included (fcntl(2), "advisory record locking").
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import uuid
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 1_000_000_000
"""Maximum size of a database that is copied. SQLite allows 1 GiB in memory."""

_TIMEOUT = 300.0
"""Seconds that the copy may take: the disk may be slow."""
_LOCK_TIMEOUT = 10
"""Seconds to wait for a process on another mount of the disk that writes to the database."""

_PAGES = 256
"""Pages that are copied at a time."""

_DATABASE_MAGIC = b"SQLite format 3\0"
_FORMAT_VERSIONS = 18, 20
"""Two bytes in the header of a database: 2 with a write-ahead log, 1 without."""

_LOG_HEADER = struct.Struct(">8I")
"""Magic number, version, bytes of a page, number of the checkpoint, two salts, two checksums."""
_FRAME_HEADER = struct.Struct(">6I")
"""Number of the page, pages of the database after this commit (0: no commit), two salts, two checksums."""
_LOG_MAGIC = 0x377F0682
"""The lowest bit is set if the checksums are sums of big-endian numbers."""

_READER_LOCK = 0x40000002, 510
"""Begin and length of the lock of a reader in a database (`SHARED_FIRST` in os.h of SQLite)."""
_WRITER_LOCKS = 120, 2
"""The same of the locks of a writer and of a checkpoint in the index of the log (`WALINDEX_LOCK_OFFSET` in wal.c)."""


class CopyError(Exception):
    """A database cannot be copied; the text is the reason."""


def copy_to_memory(path: Path, max_bytes: int = MAX_BYTES) -> tuple[str, sqlite3.Connection]:
    """Copy a database, with all committed changes, into memory.

    Args:
        path: the database. Nothing beside it is written either.
        max_bytes: maximum size of the database; at most `MAX_BYTES`.

    Returns:
        The address of the copy, for further connections of this process, and a first one: the copy exists as long as
        there is one.

    Raises:
        CopyError: it cannot be read, or is larger than `max_bytes`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__, str(path.absolute()), str(max_bytes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CopyError(str(error)) from error
    if done.returncode == -signal.SIGALRM:
        raise CopyError("another process keeps it locked")
    if done.returncode:
        raise CopyError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "the copy ended early")
    address = f"file:/{uuid.uuid4().hex}?vfs=memdb"
    shared = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as private:
            private.deserialize(done.stdout)
            del done
            private.backup(shared)
    except sqlite3.Error as error:
        shared.close()
        raise CopyError(str(error)) from error
    return address, shared


def _copy(path: Path, max_bytes: int, output: BinaryIO) -> None:
    """Write a database to a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no database, or too large.
    """
    with path.open("rb") as database, contextlib.ExitStack() as opened:
        _lock(database, *_READER_LOCK)
        index = Path(f"{path}-shm")
        if index.exists():  # else no process has the database open
            _lock(opened.enter_context(index.open("rb")), *_WRITER_LOCKS)
        pages: dict[int, int] = {}
        log: BinaryIO | None = None
        size = os.fstat(database.fileno()).st_size
        page_size = _page_size(database.read(100))
        with contextlib.suppress(FileNotFoundError):
            log = opened.enter_context(Path(f"{path}-wal").open("rb"))
            pages, count = _committed_pages(log, page_size)
            size = count * page_size if pages else size
        if size > max_bytes:
            raise ValueError(f"its {size:,} bytes are more than the {max_bytes:,} that are kept in memory")
        database.seek(0)
        for first in range(1, size // page_size + 1, _PAGES):
            chunk = bytearray(database.read(min(_PAGES * page_size, size - (first - 1) * page_size)))
            chunk = chunk.ljust(min(_PAGES * page_size, size - (first - 1) * page_size), b"\0")
            for number in range(first, first + _PAGES):
                if log is not None and number in pages:
                    begin = (number - first) * page_size
                    chunk[begin : begin + page_size] = _read_at(log, pages[number], page_size)
            if first == 1:
                begin, end = _FORMAT_VERSIONS
                chunk[begin:end] = b"\1\1"
            output.write(chunk)


def _lock(file: BinaryIO, begin: int, length: int) -> None:
    """Keep writers out while the file is open. Do nothing on a filesystem without locks."""
    signal.alarm(_LOCK_TIMEOUT)  # ends this process
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_SH, length, begin)
    signal.alarm(0)


def _page_size(header: bytes) -> int:
    if not header.startswith(_DATABASE_MAGIC):
        raise ValueError("file is not a database")
    (size,) = struct.unpack_from(">H", header, 16)
    return 65536 if size == 1 else int(size)


def _committed_pages(log: BinaryIO, page_size: int) -> tuple[dict[int, int], int]:
    """Return where the log has the latest committed content of each page, and the number of pages of the database.

    The log ends at the first frame with another salt or a wrong checksum: the rest is older or was not completed.
    """
    header = log.read(_LOG_HEADER.size)
    if len(header) < _LOG_HEADER.size:
        return {}, 0
    magic, _, size, _, *salts_and_sums = _LOG_HEADER.unpack(header)
    salts, sums = tuple(salts_and_sums[:2]), tuple(salts_and_sums[2:])
    words = struct.Struct(">II" if magic & 1 else "<II")
    if magic & ~1 != _LOG_MAGIC or size != page_size or _checksum(words, (0, 0), header[:-8]) != sums:
        return {}, 0
    committed: dict[int, int] = {}
    new: dict[int, int] = {}
    count = 0
    while len(frame := log.read(_FRAME_HEADER.size + page_size)) == _FRAME_HEADER.size + page_size:
        number, pages, *rest = _FRAME_HEADER.unpack_from(frame)
        sums = _checksum(words, _checksum(words, sums, frame[:8]), frame[_FRAME_HEADER.size :])
        if (*salts, *sums) != tuple(rest):
            break
        new[number] = log.tell() - page_size
        if pages:
            committed |= new
            new, count = {}, pages
    return committed, count


def _checksum(words: struct.Struct, sums: tuple[int, int], data: bytes) -> tuple[int, int]:
    first, second = sums
    for one, two in words.iter_unpack(data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


if __name__ == "__main__":
    try:
        _copy(Path(sys.argv[1]), int(sys.argv[2]), sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as failure:
        sys.exit(getattr(failure, "strerror", None) or str(failure))
