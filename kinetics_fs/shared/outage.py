"""Whether a shared store can be used at the moment.

A store that does not answer costs the time of its timeouts. After a fault it is therefore left alone for a while, which
grows with each fault in a row, and this machine works without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kinetics_fs.errors import SharedStoreError
from kinetics_fs.shared.backend import ObjectDamaged

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _MAX_PAUSE = 5.0, 60.0
"""Seconds for which the store is left alone; doubled with each fault in a row."""


class Outage:
    """The faults of a store, as one process has met them. Safe for threads.

    Args:
        monotonic: a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._reason = ""
        self._until = 0.0
        self._faults = 0

    @property
    def is_on(self) -> bool:
        """Whether the store is to be left alone."""
        return bool(self._reason) and self._monotonic() < self._until

    @property
    def reason(self) -> str:
        """Why the store could not be used when it was last tried; empty if it could."""
        return self._reason

    @property
    def seconds(self) -> float:
        """Seconds until the store is tried again; 0 if that is due."""
        return max(0.0, self._until - self._monotonic()) if self._reason else 0.0

    def begin(self, error: SharedStoreError) -> None:
        """Note that the store could not serve a request."""
        if isinstance(error, ObjectDamaged):
            return  # of one object
        with self._lock:
            if not self._reason:
                _log.warning("the shared store cannot be used, so this machine works alone: %s", error)
            self._reason = str(error)
            self._until = self._monotonic() + min(_FIRST_PAUSE * 2.0 ** min(self._faults, 16), _MAX_PAUSE)
            self._faults += 1

    def end(self) -> None:
        """Note that the store has served a request."""
        if not self._reason:
            return
        with self._lock:
            self._reason, self._faults = "", 0
        _log.warning("the shared store can be used again")
