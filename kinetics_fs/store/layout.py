"""The cache folder: ours, private, and marked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kinetics_fs.errors import StoreError

_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
"""The first line that the Cache Directory Tagging Specification asks for (bford.info/cachedir)."""

_OURS = "# The cache of kinetics-fs"
"""The second line: other programs have caches with such a tag, too."""


def _is_ours(tag: Path) -> bool:
    return tag.exists() and _OURS in tag.read_text(errors="replace")


def may_become_ours(folder: Path) -> bool:
    """Whether a folder is a cache of ours, or empty.

    Raises:
        OSError: it cannot be read.
    """
    tag = folder / _TAG
    return _is_ours(tag) or not any(path != tag or path.stat().st_size for path in folder.iterdir())


def prepare_folder(folder: Path) -> None:
    """Makes the cache folder with mode 0700, or checks that it is one and that nobody else can put things into it.

    Raises:
        StoreError: it cannot be made, belongs to another user, or holds somebody's other files.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid():
            raise StoreError(f"the cache folder {folder} belongs to another user: give your own with --cache-dir")
        with locked(folder):
            tag = folder / _TAG
            if not _is_ours(tag):
                # The check is for a path mistyped: its mode would be changed, and its files mistaken for ours.
                if not may_become_ours(folder):
                    raise StoreError(f"{folder} holds other files: give an empty or a new folder as --cache-dir")
                tag.write_text(f"{_SIGNATURE}\n{_OURS}: clips that can be fetched again.\n")
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError(
            f"cannot use {folder} as the cache folder ({error.strerror}): give another with --cache-dir"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing the same folder meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
