"""Files: atomic writes, names that survive a power cut, and second names for content (clone, hard link, copy)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409
"""The `ioctl` of linux/fs.h that makes a file share the blocks of another one until either is written (Btrfs, XFS)."""

_COPY_CHUNK = 1024 * 1024


def fsync(path: Path) -> None:
    """Force a file to the disk, or, for a folder, the names in it. A symbolic link to a file is not followed.

    Raises:
        OSError: the path cannot be opened, or the disk failed.
    """
    # In a folder of another user, the file may have become a link or a named pipe.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (os.O_DIRECTORY if path.is_dir() else os.O_NOFOLLOW))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block creates there replaces `path` when the block ends.

    If the block raises, `path` stays as it was and the temporary file is removed. A process that dies in the block
    leaves a file whose name begins with a dot and ends in `.tmp`.

    Args:
        path: the final path. Its folder must exist.
        durable: force the content to the disk first, so that a power cut cannot leave `path` with partial content.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    temporary = path.with_name(f".{path.name}-{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        if durable:
            fsync(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):  # never hide the error of the block
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears at `path`, complete, when the block ends. See `atomic_path`.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    with atomic_path(path, durable=durable) as temporary, temporary.open("xb") as file:
        yield file


def link_or_copy(source: int, target: Path, *, max_size: int, link: bool = True) -> bool:
    """Create a file with the content of an open one: a clone of it, a hard link to it, or a copy.

    A hard link is the same file under another name: a program that changes one changes both. A file of another user is
    therefore never linked, because that user could change the content later.

    Args:
        source: descriptor of a regular file, open for reading.
        target: path of the new file; nothing may exist there. After a failure, nothing does.
        max_size: maximum size of the file in bytes.
        link: whether a hard link is allowed.

    Returns:
        True if the new file is a hard link.

    Raises:
        OSError: the file cannot be read or written, or exceeds `max_size` (EFBIG).
    """
    status = os.fstat(source)
    if status.st_size > max_size:
        raise _too_large(max_size)
    link = link and status.st_uid == os.geteuid()
    with _new_file(target) as file:
        if _clone(source, file):
            return False
        if not link:
            _copy(source, file, max_size)
            return False
    target.unlink()
    return _link(source, target) or link_or_copy(source, target, max_size=max_size, link=False)


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    with target.open("xb") as file:
        try:
            yield file
            file.flush()
        except BaseException:
            target.unlink()
            raise


def _clone(source: int, file: BinaryIO) -> bool:
    try:
        fcntl.ioctl(file.fileno(), _FICLONE, source)
    except OSError:  # another filesystem, or one that cannot clone
        return False
    return True


def _link(source: int, target: Path) -> bool:
    folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # By the descriptor, so that it is exactly the file that was checked. Python follows the symbolic link below
        # /proc only if a `dir_fd` is given.
        os.link(f"/proc/self/fd/{source}", target.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:  # another filesystem, one without hard links, or not allowed
        return False
    finally:
        os.close(folder)
    return True


def _copy(source: int, file: BinaryIO, max_size: int) -> None:
    copied = 0
    while chunk := os.pread(source, _COPY_CHUNK, copied):
        copied += len(chunk)
        if copied > max_size:
            raise _too_large(max_size)
        file.write(chunk)


def _too_large(max_size: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {max_size:,} bytes")
