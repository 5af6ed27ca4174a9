"""Eviction: how much the cache may hold, and which clips are removed for others.

The limit belongs to the cache: it is in the state database, and every process that uses the cache obeys it.

The least recently opened clips go first. Access times are collected in memory (`AccessTimes`) and written to the state
database every few seconds; `Evictor.make_room` reads them there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sqlite3
import threading
import time
from typing import Literal, NamedTuple

from rich import filesize

from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store.clip_files import ClipFiles
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.layout import CacheLayout
from kinetics_fs.util.disk import fault_of
from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)

TYPICAL_CLIP_BYTES = 2 * 1024 * 1024
"""Space reserved while a clip of unknown size is fetched: a little over the mean of Kinetics clips (1.5 MB)."""

_BY_ACCESS_TIME = (
    "FROM clip INDEXED BY clip_by_pin_and_use WHERE cached AND pinned = {} AND opened_at < ? ORDER BY opened_at"
)
EVICTABLE = _BY_ACCESS_TIME.format(0)
PINNED = _BY_ACCESS_TIME.format(1)
"""Parts of statements. Their one value is a time in seconds since the epoch: clips used since then are protected."""

_BATCH = 64

_MAX_UNWRITTEN = 65536
"""Access times that are kept in memory while they cannot be written: about 10 MB."""

_WRITE_INTERVAL = 5.0
"""Seconds between two writes of access times: a write for each open would cost four times the open itself."""

MAX_FETCHES_PER_OPEN = 3
"""Fetches for one open of a clip. A second one is needed only if the clip was evicted before it could be opened."""

_NEVER = 0.0
"""The access time of a clip that counts as never used."""


def evicted_too_early() -> FetchError:
    """Return the error of an open whose clip was evicted after each of `MAX_FETCHES_PER_OPEN` fetches."""
    reason = "evicted before it could be opened: the cache is too small; raise --cache-size"
    return FetchError(FailureKind.LOCAL, reason, cause_errno=errno.ENOSPC)


class LimitRefused(StoreError):
    """A limit below the bytes of the cached clips, which may not be evicted for it."""


class _Excess(NamedTuple):
    """The number of clips to evict, and their bytes."""

    clips: int
    bytes: int

    def __str__(self) -> str:
        return f"{count(self.clips, 'clip')} ({filesize.decimal(self.bytes)})"


class Evictor:
    """Keeps a cache below its limit. Every change happens in a transaction of the state database, which is the lock.

    Args:
        layout: the paths of the cache.
        faults: receives what is wrong with the disk.
        database: the state database, which has the limit.
        files: the clip files.
        min_free: bytes to leave free on the disk, whatever the limit is.
    """

    def __init__(
        self, layout: CacheLayout, faults: CacheFaults, database: StateDatabase, files: ClipFiles, *, min_free: int
    ) -> None:
        self._layout = layout
        self._faults = faults
        self._database = database
        self._files = files
        self._min_free = min_free
        self._last_limit: int | Literal["unread"] | None = "unread"
        self.evicted = 0
        """Clips that this process has evicted."""

    def limit(self) -> int | None:
        """Return the maximum bytes of clips; None for no limit. Warn if another process has changed it."""
        limit, last = self._read_limit(), self._last_limit
        self._last_limit = limit
        if last != "unread" and limit != last:
            _log.warning(_change_of_limit(self._layout, last, limit))
        return limit

    def set_limit(self, db: sqlite3.Connection, given: int | Literal["none"], *, shrink: bool) -> None:
        """Replace the limit of the cache, and evict the clips that exceed the new one.

        Args:
            db: a connection in a transaction.
            given: maximum bytes of clips; `none` for no limit.
            shrink: clips may be evicted for this.

        Raises:
            LimitRefused: clips would have to be evicted and may not, or pinned clips exceed the limit.
        """
        limit, last = None if given == "none" else given, self._read_limit()
        if limit is not None and (cached := self._cached_bytes()) > limit:
            refusal = f"cannot limit the cache {self._layout.root} to {filesize.decimal(limit)}"
            held = f"it has {filesize.decimal(cached)} of clips"
            (pinned,) = db.execute("SELECT coalesce(sum(size), 0) FROM clip WHERE cached AND pinned = 1").fetchone()
            if pinned > limit:
                raise LimitRefused(
                    f"{refusal}: {held}, and {filesize.decimal(pinned)} of them are pinned;"
                    " give a larger --cache-size or unpin clips (kinetics-fs pin remove)"
                )
            excess = _clips_to_evict(db, cached - limit)
            if not shrink:
                raise LimitRefused(
                    f"{refusal}: {held}, so that {excess} would be evicted;"
                    " give --shrink to evict them, or a larger --cache-size"
                )
            self._evict(db, cached - limit, math.inf)
            _log.warning("evicted %s from %s, because its limit is now %s", excess, self._layout.root, _in_words(limit))
        if limit == last:
            return
        db.execute("DELETE FROM size_limit")
        if limit is not None:
            db.execute("INSERT INTO size_limit (only, bytes) VALUES (1, ?)", (limit,))
        if last is not None:
            _log.warning(_change_of_limit(self._layout, last, limit))
        self._last_limit = limit

    def _read_limit(self) -> int | None:
        rows = self._database.query("SELECT bytes FROM size_limit")
        return rows[0][0] if rows else None

    def capacity(self) -> int:
        """Return the maximum bytes of clips that the limit and the disk allow now."""
        capacity, limit = self._cached_bytes() + self.disk_free() - self._min_free, self.limit()
        return capacity if limit is None else min(capacity, limit)

    def disk_free(self) -> int:
        """Return the free bytes of the disk.

        Raises:
            StoreError: the disk does not answer.
        """
        try:
            disk = os.statvfs(self._layout.root)
        except OSError as error:
            raise self._faults.error(fault_of(error, self._layout.root)) from error
        return disk.f_bavail * disk.f_frsize

    def make_room(self, db: sqlite3.Connection, wanted: int, *, certain: bool, protect_used_since: float) -> None:
        """Evict the least recently opened clips until `wanted` more bytes fit beside the fetches in progress.

        Nothing is evicted for a clip that does not fit beside the clips that must stay. The sizes of the fetches in
        progress are estimates: if only they are too much, as many clips as possible are evicted for them.

        Args:
            db: a connection in a transaction.
            wanted: bytes.
            certain: True if `wanted` is the size of a finished file, which is on the disk already.
            protect_used_since: clips used since this time stay, in seconds since the epoch. If any clip is protected
                this way, `wanted` must fit beside the fetches in progress, too.

        Raises:
            FetchError: there is not enough space (LOCAL, ENOSPC).
        """
        limit = self.limit()
        # Read once, because some filesystems count the space of a removed file much later.
        alone = self._shortage(limit, wanted, on_disk=wanted if certain else 0)
        (reserved,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM fetch").fetchone()
        shortage = alone + reserved
        if shortage > 0:
            needed = shortage if protect_used_since < math.inf else alone
            if needed > _evictable_bytes(db, protect_used_since, enough=needed):
                on_disk = limit is None or self._shortage(None, wanted, on_disk=wanted if certain else 0) > 0
                raise self._no_space(wanted, on_disk=on_disk, pins=_pins_hold_space(db, protect_used_since))
            self._evict(db, shortage, protect_used_since)
        if certain and limit is not None and self._cached_bytes() + wanted > limit:
            raise self._no_space(wanted, on_disk=False, pins=False)

    def remove(self, db: sqlite3.Connection, key: str, profile: str) -> bool:
        """Remove a clip of one profile; its size stays known. Return whether it was cached."""
        db.execute("UPDATE clip SET cached = 0 WHERE key = ? AND profile = ?", (key, profile))
        return self._files.remove(key, profile)

    def _evict(self, db: sqlite3.Connection, shortage: int, protect_used_since: float) -> None:
        """Evict clips until `shortage` bytes are freed or no clip is left that may go."""
        while shortage > 0:
            statement = f"SELECT key, profile, size {EVICTABLE} LIMIT ?"
            victims = db.execute(statement, (protect_used_since, _BATCH)).fetchall()
            if not victims:
                return
            for key, profile, size in victims:
                if self.remove(db, key, profile):
                    self.evicted += 1
                    _log.info("%s: evicted, %d bytes", key, size)
                    shortage -= size
                if shortage <= 0:
                    return

    def _shortage(self, limit: int | None, wanted: int, on_disk: int) -> int:
        """Return how many bytes must go before `wanted` more, of which some are on the disk, keep both limits."""
        shortage = wanted - on_disk + self._min_free - self.disk_free()
        if limit is not None:
            shortage = max(shortage, self._cached_bytes() + wanted - limit)
        return shortage

    def _cached_bytes(self) -> int:
        return self._files.totals()[1]

    def _no_space(self, wanted: int, *, on_disk: bool, pins: bool) -> FetchError:
        cause = f"no space for {wanted:,} bytes in {self._layout.root}"
        remedy = "raise --cache-size or lower --min-free"
        if on_disk:
            free, kept = filesize.decimal(self.disk_free()), filesize.decimal(self._min_free)
            cause = f"{cause}: its disk has {free} free, of which --min-free keeps {kept}"
            remedy = "free space on the disk or lower --min-free"
        if pins:
            cause, remedy = f"{cause} beside the pinned clips", f"unpin clips (kinetics-fs pin remove), {remedy}"
        return FetchError(FailureKind.LOCAL, f"{cause}; {remedy}", cause_errno=errno.ENOSPC)


def _in_words(limit: int | None) -> str:
    return "no limit" if limit is None else filesize.decimal(limit)


def _change_of_limit(layout: CacheLayout, before: int | None, now: int | None) -> str:
    return f"the limit of the cache {layout.root} was changed from {_in_words(before)} to {_in_words(now)}"


def _clips_to_evict(db: sqlite3.Connection, shortage: int) -> _Excess:
    """Return how many of the clips that may be evicted must go until `shortage` bytes are freed."""
    clips = total = 0
    with contextlib.closing(db.execute(f"SELECT size {EVICTABLE}", (math.inf,))) as sizes:
        for (size,) in sizes:
            clips, total = clips + 1, total + size
            if total >= shortage:
                break
    return _Excess(clips, total)


def _evictable_bytes(db: sqlite3.Connection, protect_used_since: float, *, enough: int) -> int:
    """Return the bytes that may be evicted, counted up to `enough`: a cache may hold very many clips."""
    total = 0
    with contextlib.closing(db.execute(f"SELECT size {EVICTABLE}", (protect_used_since,))) as sizes:
        for (size,) in sizes:
            total += size
            if total >= enough:
                break
    return total


def _pins_hold_space(db: sqlite3.Connection, protect_used_since: float) -> bool:
    """Return whether a pin alone keeps any clip from being evicted."""
    return db.execute(f"SELECT 1 {PINNED} LIMIT 1", (protect_used_since,)).fetchone() is not None


class AccessTimes:
    """When each clip was last used. Times are collected in memory and written every few seconds. Safe for threads.

    Args:
        database: where the times are written.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._timer: threading.Timer | None = None

    def touch(self, key: str) -> None:
        """Set the access time of a clip to now."""
        self._set(key, time.time())

    def reset(self, key: str) -> None:
        """Make a clip count as never used: it is among the first to be evicted."""
        self._set(key, _NEVER)

    def _set(self, key: str, at: float) -> None:
        with self._lock:
            self._times[key] = at
            if self._timer is None:
                self._timer = threading.Timer(_WRITE_INTERVAL, self._write_later)
                self._timer.daemon = True
                self._timer.start()

    def _write_later(self) -> None:
        with contextlib.suppress(StoreError):  # the next use starts the timer again
            self.write()

    def write(self) -> None:
        """Write the times that are only in memory. After an error they stay there for the next call.

        Raises:
            StoreError: the state database cannot be written.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            times, self._times = self._times, {}
        if not times:
            return
        try:
            with self._database.exclusive() as db:
                db.executemany(
                    "UPDATE clip SET opened_at = CASE ?1 WHEN ?2 THEN ?2 ELSE max(opened_at, ?1) END"
                    " WHERE key = ?3 AND profile = (SELECT profile FROM shown WHERE key = ?3)",
                    [(at, _NEVER, key) for key, at in times.items()],
                )
        except StoreError:
            if len(times) < _MAX_UNWRITTEN:
                with self._lock:
                    self._times = {**times, **self._times}
            raise
