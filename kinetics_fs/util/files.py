"""Files: names that survive a power cut, and content under a second name (clone, hard link or copy)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409
"""`ioctl` of Linux: makes a file share the blocks of another one until either is written (Btrfs, XFS)."""

_PIECE = 1024 * 1024


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder, as after a rename into it, survive a power cut.

    Raises:
        OSError: the disk failed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
    while piece := os.pread(source, _PIECE, copied):
        copied += len(piece)
        if copied > most:
            raise _too_large(most)
        file.write(piece)


def _too_large(most: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {most:,} bytes")
