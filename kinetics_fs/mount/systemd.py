"""A mount as a service: says when it can be used and how it is doing, and gives signs of life while it answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kinetics_fs.mount.notify import Notifier
from kinetics_fs.mount.watchdog import Watchdog

_log = logging.getLogger(__name__)

_STATUS_EVERY = 10.0
_SIGNS = 4
"""Of life, in the time in which one is wanted."""
_PATIENCE = 1.0


class Service:
    """From `__enter__` to `__exit__` a mount is about to be made, and made.

    Args:
        notifier: who is told.
        place: the mount point.
        status: what `status.json` says; called from a thread.
    """

    def __init__(self, notifier: Notifier, place: Path, status: Callable[[], Mapping[str, Any]]) -> None:
        self._notifier = notifier
        self._status = status
        self._said = ""
        self._ended = threading.Event()
        self._watchdog = Watchdog(place)
        self._every = min(_STATUS_EVERY, notifier.watchdog / _SIGNS) if notifier.watchdog else _STATUS_EVERY
        self._thread = threading.Thread(target=self._report, name="service", daemon=True)

    def __enter__(self) -> Self:
        return self

    def ready(self) -> None:
        """The mount can be used."""
        if self._notifier:
            self._notifier.send(READY="1", STATUS="mounted")
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watchdog.close()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        self._notifier.send(STOPPING="1", STATUS="ending fetches")

    def _report(self) -> None:
        while not self._ended.is_set():
            # From outside: that this thread runs does not tell that the mount answers.
            if self._notifier.watchdog and self._watchdog.answers(within=self._every):
                self._notifier.send(WATCHDOG="1")
            self._tell_status()
            self._ended.wait(self._every)

    def _tell_status(self) -> None:
        try:
            said = _summary(self._status())
        except Exception:  # it costs a line of status, and not the signs of life
            if not self._ended.is_set():
                _log.exception("no status")
            return
        if said != self._said and not self._ended.is_set():
            self._notifier.send(STATUS=said)
            self._said = said


def _summary(status: Mapping[str, Any]) -> str:
    cache, fetch = status["cache"], status["fetch"]
    return (
        f"{cache['clips']:,} clips in the cache; fetches: {fetch['under_way']:,} under way,"
        f" {fetch['fetched']:,} done, {fetch['failed']:,} failed"
    )
