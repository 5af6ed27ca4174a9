"""The fault that keeps a cache from working at the moment, such as a full disk or a removed directory."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from kinetics_fs.errors import StoreError
from kinetics_fs.store.layout import cache_error
from kinetics_fs.util.disk import DiskFault

_log = logging.getLogger(__name__)


class CacheFaults:
    """Turns faults into errors, and remembers the last one. Safe for threads.

    Args:
        folder: the cache directory.

    Attributes:
        current: the error of the last operation that failed; None if the cache works again since then.
        fault: the cause of that error.
        count: number of operations that failed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.current: StoreError | None = None
        self.fault: DiskFault | None = None
        self.count = 0
        self._logged = False
        self._known: set[str] = set()
        """The errors since the cache worked."""

    def start_log(self) -> None:
        """Log from now on when a fault begins and when it ends, however many operations meet it in between."""
        self._logged = True
        if self.current is not None:
            _log.error("%s; cached clips can be read", self.current)

    def error(self, fault: DiskFault) -> StoreError:
        """Return the error of an operation that failed because of a fault."""
        error = cache_error(self._folder, fault)
        with self._lock:
            self.current, self.fault = error, fault
            self.count += 1
            is_new = str(error) not in self._known
            self._known.add(str(error))
        if self._logged and is_new:
            _log.error("%s", error)
        return error

    def end(self) -> None:
        """Note that the cache works."""
        if self.current is None:
            return
        with self._lock:
            had_fault = self.current is not None
            self.current = self.fault = None
            self._known.clear()
        if self._logged and had_fault:
            _log.warning("the cache %s can be used again", self._folder)
