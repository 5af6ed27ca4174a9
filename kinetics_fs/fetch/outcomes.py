"""Failed fetches: the failure that counts of several, the memory and the log of failures, and their expiry."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError, StoreError
from kinetics_fs.fetch.stats import FetchStats
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.limit import NOTE, failed_below
from kinetics_fs.store import Store, one_line, without_import

_log = logging.getLogger(__name__)

_MAX_REASON = 350
"""Characters of a reason before a note, so that the store, which cuts at 500, keeps the note."""

_LOOK_INTERVAL = 60.0
"""Seconds until the folders and the indexes of archives are searched again for a clip with a remembered failure."""
_MAX_ASKED = 16384
"""Clips with a remembered failure that are kept in memory: those of a whole release would take 160 MB."""


class RetryLater(Exception):
    """A clip cannot be fetched now, but may be in some seconds; the text is the reason."""

    def __init__(self, seconds: float, reason: str) -> None:
        super().__init__(reason)
        self.seconds = seconds


class FailedElsewhere(FetchError):
    """Another machine could not fetch a clip, which says something about the clip. It is not remembered here."""


KIND_PRECEDENCE = (
    *(FailureKind.LOCAL, FailureKind.BLOCKED, FailureKind.TRANSIENT, FailureKind.CONFIG),
    *(FailureKind.CREDENTIALS, FailureKind.CORRUPT, FailureKind.GONE),
)
"""If several sources fail, the kind that comes first here counts: a clip is gone only if every source reports that."""


def combine_failures(failures: Sequence[FetchError], note: str) -> FetchError:
    """Return the failure of a clip that no source delivered.

    Args:
        failures: those of the sources that have the clip, in their order.
        note: why a source did not look further; may be empty.
    """
    if failures:
        # If two failures have one kind, the later one counts: the archives cannot say why a clip is gone.
        failure = min(reversed(failures), key=lambda error: KIND_PRECEDENCE.index(error.kind))
    else:
        # Without the name of a source, so that a prefetch goes on: the next clip may be in another archive.
        advice = "" if note else "; give an index of its archive (kinetics-fs index), or a --folder that has it"
        failure = FetchError(FailureKind.CONFIG, f"no source has this clip{advice}")
    if not note:
        return failure
    # Remembered with the failure, so that a higher limit makes `FailureMemory.get` try again.
    return FetchError(
        failure.kind,
        f"{failure.reason[:_MAX_REASON]}; {note}",
        source=failure.source,
        cause_errno=failure.cause_errno,
        retry_after=failure.retry_after,
    )


class FailureMemory:
    """Remembers, counts and logs the failures of a fetcher. Safe for threads.

    Args:
        store: keeps the failures.
        stats: counts them.
        sources: settings of the sources that the fetcher asks.
        is_shared: whether clips may come from a shared store.
    """

    def __init__(self, store: Store, stats: FetchStats, sources: SourceSettings, *, is_shared: bool) -> None:
        self._store = store
        self._is_shared = is_shared
        self._stats = stats
        self._sources = sources
        self._asked: dict[Clip, float] = {}
        """Clips with a remembered failure → when all sources were last asked, by the monotonic clock."""
        self._index_db: ArchiveIndexDB | None = None
        # `held` would retry these clips, but a mount that hides gone clips does not even show them.
        with suppress(StoreError):  # on a read-only disk, for example
            store.failures.make_due_if(NOTE, self._limit_was_raised)

    def get(self, clip: Clip) -> FetchError | None:
        """Return the remembered failure of a clip; None if there is none, or if a source can be asked for the clip."""
        failure = self.held(clip)
        if failure is None or self.other_sources(clip, failure):
            return None
        return None if self._is_shared and self._may_look(clip) else failure

    def held(self, clip: Clip) -> FetchError | None:
        """Return the remembered failure of a clip; None if there is none, or if it is due for a retry."""
        failure = self._store.failures.get(clip)
        if failure is None or failure.retry_at <= time.time():
            return None
        if self._limit_was_raised(failure.reason):
            return None
        if failure.is_of_archives and self._sources.order != ("archive",):
            return None  # the archives lack the clip, which says nothing about the other sources
        return failure.error()

    def other_sources(self, clip: Clip, failure: FetchError) -> tuple[str, ...]:
        """Return the local sources to try in spite of a remembered failure, because another source has found it.

        These are the folders, and the archives if an index has the clip, or if the failure comes from another machine,
        which may not use archives. They are tried for a clip at most once a minute.
        """
        is_new = clip not in self._asked
        if not self._may_look(clip):
            return ()
        found_by = without_import(failure.source)
        is_imported = found_by != failure.source
        others = [source for source in self._sources.order if source not in (found_by, "youtube")]
        if not found_by or not others:
            return ()
        if not (is_imported and is_new) and "archive" in others and not self._is_indexed(clip):
            others.remove("archive")
        return tuple(others)

    def _may_look(self, clip: Clip) -> bool:
        """Return whether it is time to look for a clip with a remembered failure."""
        return clip not in self._asked or time.monotonic() >= self._asked[clip] + _LOOK_INTERVAL

    def note_asked(self, clip: Clip) -> None:
        """Note that all sources were just asked for a clip."""
        if len(self._asked) >= _MAX_ASKED:
            self._asked.clear()
        self._asked[clip] = time.monotonic()

    def _is_indexed(self, clip: Clip) -> bool:
        path = Path(self._sources.archive_index)
        try:
            if self._index_db is None and path.is_file():
                self._index_db = ArchiveIndexDB(path)
            return self._index_db is not None and bool(self._index_db.find(clip))
        except ArchiveError:  # reported by the worker that reads the archive of another clip
            return False

    def remember(self, clip: Clip, error: FetchError) -> None:
        """Remember the failure of a clip. A block says nothing about the clip: the store remembers it for the source.

        Raises:
            StoreError: the failure cannot be stored.
        """
        self.note_asked(clip)
        if error.kind is not FailureKind.BLOCKED:
            self._store.failures.remember(clip, error)

    def report(self, clip: Clip, error: FetchError, fetch: str, *, remembered: bool = True) -> None:
        """Count and log the failure of a clip. A fault of the cache, which the store has logged, is only counted.

        Args:
            clip: the clip.
            error: the failure.
            fetch: id of the fetch.
            remembered: False if the cache could not store the failure.
        """
        source, reason = error.source or "fetch", one_line(error.reason)
        if error.kind is FailureKind.BLOCKED or not remembered:
            self._stats.record_failed(clip, source, error.kind, reason, None)
            if error.reason != str(self._store.faults.current):
                next_retry = self._next_request_at(error) if remembered else None
                fields = _log_fields(clip, error, fetch, next_retry)
                _log.warning(
                    "%s: %s: %s: %s (fetch %s)", clip.key, source, error.kind, error.reason, fetch, extra=fields
                )
            return
        failure = self._store.failures.get(clip)
        due_at = failure.retry_at if failure is not None and failure.retry_at > failure.last_at else None
        self._stats.record_failed(clip, source, error.kind, reason, failure.retry_at if failure else None)
        _log.warning(
            "%s: %s: %s: %s; next retry %s (fetch %s)",
            clip.key,
            source,
            error.kind,
            error.reason,
            "at the next open" if due_at is None else f"after {datetime.fromtimestamp(due_at):%Y-%m-%d %H:%M:%S}",
            fetch,
            extra=_log_fields(clip, error, fetch, due_at),
        )

    def _limit_was_raised(self, reason: str) -> bool:
        """Return whether a failure had a lower --max-archive-download as a cause than this fetcher has."""
        sources = self._sources
        return "archive" in sources.order and failed_below(reason, sources.archive_limit)

    def _next_request_at(self, error: FetchError) -> float | None:
        """Return when the source that blocks this address is asked again, in seconds since the epoch."""
        until = self._store.throttle.blocked_until(error.source)
        return until or (None if error.retry_after is None else time.time() + error.retry_after)


def _log_fields(clip: Clip, error: FetchError, fetch: str, next_retry: float | None) -> dict[str, str]:
    """Return the fields of a failure for a JSON log line; see `kinetics_fs.util.logs`."""
    return {
        "clip": clip.key,
        "fetch": fetch,
        "source": error.source,
        "kind": error.kind,
        "reason": error.reason,
        "next_retry": "at the next open"
        if next_retry is None
        else datetime.fromtimestamp(next_retry).astimezone().isoformat(timespec="seconds"),
    }
