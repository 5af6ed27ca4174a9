"""Locks that show which processes are alive: the kernel releases the lock of a process when it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import uuid
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Return whether a living process keeps this file locked; False if there is no such file.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR):
            return False
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class ProcessLock:
    """A file that this process keeps locked while it lives. Its name identifies the owner of a fetch in progress.

    A lock and not a process id, because ids of containers that share the folder are not comparable.

    Args:
        folder: the folder of the lock files of all processes.

    Raises:
        OSError: the file cannot be created or locked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = uuid.uuid4().hex
        self._fd = os.open(folder / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def is_alive(self, name: str) -> bool:
        """Return whether the process with this lock is alive. The file of a dead one is removed.

        Raises:
            OSError: the file cannot be opened or locked.
        """
        if name == self.name:
            return True
        if not re.fullmatch(r"[0-9a-f]{32}", name):
            return False
        path = self._folder / name
        if is_locked(path):
            return True
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Release the lock and remove its file."""
        with contextlib.suppress(OSError):  # the kernel releases the lock in any case
            (self._folder / self.name).unlink()
        os.close(self._fd)
