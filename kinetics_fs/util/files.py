"""Files: atomic writes, names that survive a power cut, and second names for content (clone, hard link, copy)."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
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
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else os.O_NOFOLLOW))
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
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
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


def link_or_copy(source: int, target: Path, *, most: int, link: bool = True) -> bool:
    """Makes a new file with the content of an open one: a clone of it, a hard link to it, or a copy.

    A hard link is the same file under another name: whoever changes one changes both. A file of another user is
    therefore never linked, for its content would stay in their hands.

    Args:
        source: descriptor of a regular file, open for reading.
        target: what is to be made; nothing is there yet. Nothing is left there after a failure.
        most: bytes that the file may have.
        link: whether a hard link will do.

    Returns:
        Whether it is a hard link.

    Raises:
        OSError: it cannot be read or written, or has more bytes than that (EFBIG).
    """
    status = os.fstat(source)
    if status.st_size > most:
        raise _too_large(most)
    link = link and status.st_uid == os.geteuid()
    with _new_file(target) as file:
        if _clone(source, file):
            return False
        if not link:
            _copy(source, file, most)
            return False
    target.unlink()
    return _link(source, target) or link_or_copy(source, target, most=most, link=False)


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
    except OSError:  # another filesystem, or one that cannot
        return False
    return True


def _link(source: int, target: Path) -> bool:
    folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # By the descriptor, so that it is the very file that was looked at. Only with a `dir_fd` does Python follow
        # the link that stands for it.
        os.link(f"/proc/self/fd/{source}", target.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:  # another filesystem, one without hard links, or not allowed
        return False
    finally:
        os.close(folder)
    return True


def _copy(source: int, file: BinaryIO, most: int) -> None:
    copied = 0
    while piece := os.pread(source, _COPY_CHUNK, copied):
        copied += len(piece)
        if copied > most:
            raise _too_large(most)
        file.write(piece)


def _too_large(most: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {most:,} bytes")
