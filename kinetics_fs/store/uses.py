"""The order of use: when each clip was last opened, by which evictions go."""

from __future__ import annotations

import threading
import time

from kinetics_fs.store.database import StateDatabase

_WRITE_EVERY = 5.0
"""Seconds between two writes: a write per open would cost four times the open itself."""

_NEVER = 0.0
"""As the time of a clip's last use."""


class Uses:
    """Uses of clips, noted in memory and written to a ledger now and then. Safe for threads."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._timer: threading.Timer | None = None

    def note(self, key: str) -> None:
        """A clip was used just now."""
        self._note(key, time.time())

    def forget(self, key: str) -> None:
        """A clip counts as never used: it is among the first to go when room is needed."""
        self._note(key, _NEVER)

    def _note(self, key: str, at: float) -> None:
        with self._lock:
            self._times[key] = at
            if self._timer is None:
                self._timer = threading.Timer(_WRITE_EVERY, self.write)
                self._timer.daemon = True
                self._timer.start()

    def write(self) -> None:
        """Writes what is only in memory."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            times, self._times = self._times, {}
        if times:
            with self._database.exclusive() as db:
                db.executemany(
                    "UPDATE clip SET opened_at = CASE ?1 WHEN ?2 THEN ?2 ELSE max(opened_at, ?1) END WHERE key = ?3",
                    [(at, _NEVER, key) for key, at in times.items()],
                )
