"""Which processes are alive: each holds a lock on a file of its own, which the kernel lets go at its death."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import uuid
from pathlib import Path


class ProcessLock:
    """This process as an owner of fetches under way.

    A lock rather than a process id, so that it holds across containers that share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = uuid.uuid4().hex
        self._fd = os.open(folder / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def is_alive(self, name: str) -> bool:
        """Whether the owner of this name still holds its lock; a dead one's file is removed."""
        if name == self.name:
            return True
        if not re.fullmatch(r"[0-9a-f]{32}", name):
            return False
        path = self._folder / name
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
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)

    def close(self) -> None:
        """Gives the lock up."""
        (self._folder / self.name).unlink(missing_ok=True)
        os.close(self._fd)
