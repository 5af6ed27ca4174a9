"""What the opens of a mount may fetch: a scan that opens every file is no wish for 650,000 downloads."""

from __future__ import annotations

import errno
import logging
import threading

from rich import filesize

from kinetics_fs.errors import FailureKind, FetchError

_log = logging.getLogger(__name__)


class FetchBudget:
    """Lets so many fetches through, over the life of a mount. Safe for threads.

    Args:
        closed: none at all.
        fetches: most fetches that opens may begin; None for any number.
        size: bytes after which they may begin no more; None for any number.
    """

    def __init__(self, *, closed: bool = False, fetches: int | None = None, size: int | None = None) -> None:
        self._closed = closed
        self._most_fetches = fetches
        self._most_bytes = size
        self._lock = threading.Lock()
        self._fetches = self._bytes = 0
        self._told = False

    def refusal(self) -> FetchError | None:
        """Why nothing may be fetched for an open now; None if something may."""
        if self._closed:
            return FetchError(
                FailureKind.LOCAL, "no longer in the cache, and this mount fetches nothing (--only cached)"
            )
        if self._most_fetches is not None and self._fetches >= self._most_fetches:
            reason = f"this mount has begun {self._fetches:,} fetches, the most that it may (--max-fetches)"
        elif self._most_bytes is not None and self._bytes >= self._most_bytes:
            reason = f"this mount has fetched {filesize.decimal(self._bytes)}, and may no more (--max-fetch-bytes)"
        else:
            return None
        with self._lock:
            told, self._told = self._told, True
        if not told:
            _log.error("%s; what is not in the cache cannot be opened any more", reason)
        return FetchError(FailureKind.LOCAL, reason, errno=errno.EDQUOT)

    def begun(self) -> None:
        """An open has begun a fetch."""
        with self._lock:
            self._fetches += 1

    def brought(self, size: int) -> None:
        """It brought so many bytes."""
        with self._lock:
            self._bytes += size

    def report(self) -> dict[str, object]:
        """For `status.json`."""
        return {
            "allowed": not self._closed,
            "fetches": self._fetches,
            "max_fetches": self._most_fetches,
            "bytes": self._bytes,
            "max_bytes": self._most_bytes,
        }
