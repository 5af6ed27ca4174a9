"""The fetch budget of a mount: a program that scans every file should not download 650,000 clips."""

from __future__ import annotations

import errno
import logging
import threading

from rich import filesize

from kinetics_fs.control.status import BudgetStatus
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)


class FetchBudget:
    """Limits the fetches that opens start, over the life of a mount. Safe for threads.

    Args:
        cached_only: allow no fetch at all.
        max_fetches: maximum number of fetches; None for no limit.
        max_bytes: bytes of fetched clips after which no fetch may start; None for no limit.
    """

    def __init__(
        self, *, cached_only: bool = False, max_fetches: int | None = None, max_bytes: int | None = None
    ) -> None:
        self._cached_only = cached_only
        self._max_fetches = max_fetches
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._fetches = self._bytes = 0
        self._logged = False

    def refusal(self) -> FetchError | None:
        """Return why an open may not start a fetch now; None if it may."""
        if self._cached_only:
            reason = "no longer in the cache, and this mount fetches nothing (--only cached)"
            return FetchError(FailureKind.LOCAL, reason)
        if self._max_fetches is not None and self._fetches >= self._max_fetches:
            reason = f"this mount has started {count(self._fetches, 'fetch')} and may start no more (--max-fetches)"
        elif self._max_bytes is not None and self._bytes >= self._max_bytes:
            reason = f"this mount has fetched {filesize.decimal(self._bytes)} and may fetch no more (--max-fetch-bytes)"
        else:
            return None
        with self._lock:
            logged, self._logged = self._logged, True
        if not logged:
            _log.error("%s; clips that are not in the cache fail to open until the next mount", reason)
        return FetchError(FailureKind.LOCAL, reason, cause_errno=errno.EDQUOT)

    def count_fetch(self) -> None:
        """Count a fetch that an open has started."""
        with self._lock:
            self._fetches += 1

    def count_bytes(self, size: int) -> None:
        """Count the bytes of a clip that was fetched for an open."""
        with self._lock:
            self._bytes += size

    def status(self) -> BudgetStatus:
        """Return the limits and how much of them is used."""
        return BudgetStatus(
            allowed=not self._cached_only,
            fetches=self._fetches,
            max_fetches=self._max_fetches,
            bytes=self._bytes,
            max_bytes=self._max_bytes,
        )
