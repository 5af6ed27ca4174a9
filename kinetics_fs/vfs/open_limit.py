"""The limit on open files: no user of a mount can use up its file descriptors."""

from __future__ import annotations

import errno
import logging
import threading

from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)


class OpenLimit:
    """Counts the files that each user has open or waits for. Safe for threads.

    On a mount of several users, each may have as many files open as are still free: a single user at most half of
    them, the second one half of the rest. Therefore, however many files some users hold, another one can open some.

    Args:
        capacity: maximum number of open files; None for no limit.
        is_shared: other users may access the mount.
    """

    def __init__(self, capacity: int | None = None, *, is_shared: bool = False) -> None:
        self.capacity = capacity
        self._is_shared = is_shared
        self._lock = threading.Lock()
        self._total = 0
        self._files: dict[int, int] = {}
        self._logged: set[int] = set()

    def acquire(self, uid: int) -> None:
        """Count a file that a user opens; call `release` when it is closed or the open fails.

        Raises:
            OSError: the user has too many files open (EMFILE).
        """
        with self._lock:
            files = self._files.get(uid, 0)
            if self.capacity is not None and (files if self._is_shared else 0) >= self.capacity - self._total:
                self._log_refusal(uid, files)
                raise OSError(errno.EMFILE, "too many open files")
            self._files[uid] = files + 1
            self._total += 1

    def release(self, uid: int) -> None:
        """Forget a file that was counted."""
        with self._lock:
            self._total -= 1
            self._files[uid] -= 1
            if not self._files[uid]:
                del self._files[uid]
                self._logged.discard(uid)

    def _log_refusal(self, uid: int, files: int) -> None:
        if uid not in self._logged:
            self._logged.add(uid)
            _log.warning(
                "uid %d has %s of this mount open, and cannot open more until it closes some: %d of %d are in use",
                uid,
                count(files, "file"),
                self._total,
                self.capacity,
            )
