"""Faults of files and disks in words: the cause of an error of the operating system or of SQLite, and its cure.

SQLite says "disk I/O error" or "unable to open database file" for many causes, so `fault_of` examines the disk: a
read-only disk, a full disk, a missing permission and a damaged database need different cures.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_TRIAL_BYTES = 64 * 1024
"""Bytes that `examine` writes: more than the smallest file that SQLite extends (the index of a write-ahead log)."""

NO_LOCKS = "the filesystem has no file locks"
NO_MMAP = "files on the filesystem cannot be mapped into memory (mmap)"
FEATURES = {NO_LOCKS, NO_MMAP}
"""The causes of `missing_feature`."""
_OTHER_DISK = "use a local disk, such as ext4 or XFS"


class DiskFault(NamedTuple):
    """Why a file cannot be used.

    Attributes:
        cause: the end of a sentence, such as `the disk is full`.
        cure: what to do, such as `free space on it`.
        errno: the errno of the operating system; None if there is none.
        damaged: the content of the file is wrong; the disk works.
    """

    cause: str
    cure: str
    errno: int | None = None
    damaged: bool = False


_FAULTS = {
    errno.EROFS: ("the disk is mounted read-only", "mount it for writing"),
    errno.ENOSPC: ("the disk is full", "free space on it"),
    errno.EDQUOT: ("the disk quota is used up", "free space on the disk"),
    errno.EIO: ("the disk fails", "see the log of the kernel (dmesg) and check the disk"),
    errno.EMFILE: ("this process has too many open files", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("the system has too many open files", "end some programs"),
    errno.ENOMEM: ("the system has too little memory", "end some programs"),
    errno.ENOLCK: (NO_LOCKS, _OTHER_DISK),
    errno.ENODEV: (NO_MMAP, _OTHER_DISK),
    errno.ENOTCONN: ("its filesystem does not answer", "mount it again"),
    errno.ESTALE: ("its filesystem has another file there now", "mount it again"),
}

_FULL = {errno.ENOSPC, errno.EDQUOT}

UNWRITABLE = {*_FULL, errno.EROFS, errno.EACCES}
"""The errno of faults because of which files can be read and not written."""

_LOCK_ERRORS = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMLOCK,
}


def fault_of(error: OSError | sqlite3.Error, path: Path, *, if_damaged: str = "restore it from a backup") -> DiskFault:
    """Return why a file cannot be used. The folder of the file may be examined by writing a temporary file.

    Args:
        error: the exception that the use of the file raised.
        path: the file, or the folder in which a file cannot be created; an error with a path of its own is about that.
        if_damaged: what to do if its content is damaged.
    """
    if isinstance(error, OSError):
        at = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        return _of_errno(error.errno, at, error.strerror or str(error))
    # https://www.sqlite.org/rescode.html: an extended code has the primary code in its lowest byte.
    extended: int = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
    primary = extended & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        lacking = examine(path)  # SQLite says "locked" if the filesystem refuses locks
        if lacking is not None and lacking.cause in FEATURES:
            return lacking
        return DiskFault(f"another process keeps {path} locked", "wait for it or end it", errno.EBUSY)
    if primary == sqlite3.SQLITE_NOMEM or extended == sqlite3.SQLITE_IOERR_NOMEM:
        return _of_errno(errno.ENOMEM, path)
    if (fault := examine(path)) is not None:
        return fault
    if primary == sqlite3.SQLITE_FULL:
        temporary = Path(tempfile.gettempdir())
        full = examine(temporary)
        if full is not None and full.errno in _FULL:
            return full._replace(cause=f"the folder of temporary files {temporary} is full")
        return _of_errno(errno.ENOSPC, path)
    if extended in _LOCK_ERRORS:
        return _of_errno(errno.ENOLCK, path)
    if primary == sqlite3.SQLITE_IOERR:
        return _of_errno(errno.EIO, path)._replace(cause=f"the disk fails ({error})")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return _of_errno(errno.EACCES, path)
    return DiskFault(f"{path} is damaged ({error})", if_damaged, damaged=True)


def examine(path: Path, size: int = 0) -> DiskFault | None:
    """Return what keeps a database file, or files in a folder, from being read and written; None if nothing does.

    The file itself is not opened: to close it would release the locks that SQLite has on it (fcntl(2), "advisory record
    locking").

    Args:
        path: the file or the folder.
        size: bytes that must be free on the disk.
    """
    folder = path if path.is_dir() else path.parent
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # fails if no further file can be opened
        disk = os.statvfs(folder)
        if disk.f_flag & os.ST_RDONLY:
            return _of_errno(errno.EROFS, path)
        if disk.f_bavail * disk.f_frsize < size:
            return _of_errno(errno.ENOSPC, path)
        if path != folder:
            path.stat()
        for file in (folder, path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            if not os.access(file, os.R_OK | os.W_OK, effective_ids=True) and os.path.lexists(file):
                return _of_errno(errno.EACCES, file)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            os.fsync(trial.fileno())
            return _missing_feature(trial.fileno())
    except OSError as error:
        return _of_errno(error.errno, path, error.strerror or str(error))


def missing_feature(folder: Path) -> DiskFault | None:
    """Return what SQLite needs of the filesystem of a folder and does not find: file locks, shared mappings.

    Raises:
        OSError: no file can be created in the folder.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as trial:
        trial.write(bytes(mmap.PAGESIZE))
        return _missing_feature(trial.fileno())


def _missing_feature(fd: int) -> DiskFault | None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return DiskFault(NO_LOCKS, _OTHER_DISK, errno.ENOLCK)
    try:
        mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED).close()
    except OSError:
        return DiskFault(NO_MMAP, _OTHER_DISK, errno.ENODEV)
    return None


def identify(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode number of a file; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def removed_fault(path: Path, folders: Mapping[Path, tuple[int, int] | None]) -> DiskFault:
    """Return why a file that was in use is missing or is another file now.

    Args:
        path: the file.
        folders: each folder above it, the topmost first, and the `identify` of it when the file was there.
    """
    for folder, before in folders.items():
        now = identify(folder)
        if before is None or now == before:
            continue
        if now is None:
            return DiskFault(f"{folder} was removed or renamed while it was in use", _PUT_BACK, errno.ENOENT)
        if now[0] != before[0]:
            return DiskFault(f"the disk of {folder} was unmounted while it was in use", "mount it again", errno.ENOENT)
        return DiskFault(f"{folder} was replaced while it was in use", _PUT_BACK, errno.ENOENT)
    what = "replaced" if os.path.lexists(path) else "removed or renamed"
    return DiskFault(f"{path} was {what} while it was in use", _PUT_BACK, errno.ENOENT)


_PUT_BACK = "put it back, or restart the programs that use it"


def _of_errno(number: int | None, path: Path, text: str = "") -> DiskFault:
    if number in (errno.EACCES, errno.EPERM):
        return DiskFault(f"permission denied for {path}", "give this user the right to read and write it", errno.EACCES)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return DiskFault(f"{path} does not exist", "check the path", errno.ENOENT)
    if number == errno.ENOSPC and _has_no_inodes(path):
        return DiskFault("the disk has no free inodes", "remove small files from it", errno.ENOSPC)
    if number in _FAULTS:
        return DiskFault(*_FAULTS[number], number)
    return DiskFault(text or os.strerror(number or errno.EIO), "check the disk", number)


def _has_no_inodes(path: Path) -> bool:
    try:
        disk = os.statvfs(path if path.exists() else path.parent)
    except OSError:
        return False
    return bool(disk.f_files) and disk.f_favail == 0 and disk.f_bavail > 0
