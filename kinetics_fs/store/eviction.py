"""Room: how much a store may hold, and which clips go for others."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sqlite3
from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store.clip_files import ClipFiles

_log = logging.getLogger(__name__)

TYPICAL_CLIP_BYTES = 2 * 1024 * 1024
"""Room kept for a clip of unknown size while it is fetched: a little over the mean of Kinetics clips (1.5 MB)."""

_IN_ORDER_OF_USE = (
    "FROM clip INDEXED BY clip_by_pin_and_use WHERE held AND pinned = {} AND opened_at < ? ORDER BY opened_at"
)
EVICTABLE = _IN_ORDER_OF_USE.format(0)
PINNED = _IN_ORDER_OF_USE.format(1)
"""Parts of statements, with one value: the time, in seconds since the epoch, after which what was used stays."""

_EVICT_AT_ONCE = 64


class Room:
    """The room of one store. All that changes it is done in a transaction of the ledger, which is the lock for it.

    Args:
        folder: the cache folder.
        incoming: the folder in it where fetches under way write.
        table: the files that are here.
        limit: most bytes of clips to hold, None for no limit of our own.
        min_free: bytes of the disk to leave free, whatever the limit says.
    """

    def __init__(self, folder: Path, incoming: Path, table: ClipFiles, *, limit: int | None, min_free: int) -> None:
        self._folder = folder
        self._incoming = incoming
        self._table = table
        self._min_free = min_free
        self.limit = limit
        self.evicted = 0
        """Clips that were evicted by this process."""

    def capacity(self) -> int:
        """The bytes of clips that there can be at most, as limit and disk are now."""
        most = self._held() + self.disk_free() - self._min_free
        return most if self.limit is None else min(most, self.limit)

    def disk_free(self) -> int:
        """Bytes."""
        disk = os.statvfs(self._incoming)
        return disk.f_bavail * disk.f_frsize

    def make(
        self, db: sqlite3.Connection, wanted: int, *, certain: bool, known: bool, protect_used_since: float
    ) -> None:
        """Evicts the least recently opened clips until `wanted` more bytes fit beside all that is under way.

        What was used after `protect_used_since` stays: where it does, they must fit without that.

        A fetch that begins is not `certain`: its size and those of the others under way are guesses, so that it
        may begin as long as the guesses alone are too much. A finished clip is: what would break the limit fails.
        Where pins hold room, that cannot get better: a clip that does not fit beside them is not begun, by its guess.

        Raises:
            FetchError: there is no room (LOCAL, ENOSPC).
        """
        (reserved,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM flight").fetchone()
        # Asked once, for some filesystems count the room of a removed file much later.
        short = self._shortage(wanted + reserved, on_disk=wanted if certain else 0)
        too_large = known and self.limit is not None and wanted > self.limit
        # Judged before anything goes: what cannot be had must not cost the clips that are here.
        protects = protect_used_since < math.inf
        pins = False
        if short > 0:
            lacking = short - _evictable(db, protect_used_since, enough=short)
            pins = lacking > 0 and _pins_hold(db, protect_used_since)
            if protects or pins or not certain:
                tolerable = 0 if protects else reserved if pins else wanted + reserved
                too_large = too_large or lacking > tolerable
        if too_large:
            raise self._none(wanted, pins=pins)
        self._evict(db, short, protect_used_since)
        if certain and self.limit is not None and self._held() + wanted > self.limit:
            raise self._none(wanted, pins=pins)

    def drop(self, db: sqlite3.Connection, key: str) -> bool:
        """Removes a clip, whose size stays known; whether it was there."""
        db.execute("UPDATE clip SET held = 0 WHERE key = ?", (key,))
        return self._table.remove(key)

    def _evict(self, db: sqlite3.Connection, short: int, protect_used_since: float) -> None:
        """Evicts so many bytes, or all that may go."""
        while short > 0:
            victims = db.execute(
                f"SELECT key, size {EVICTABLE} LIMIT ?", (protect_used_since, _EVICT_AT_ONCE)
            ).fetchall()
            if not victims:
                return
            for key, size in victims:
                if self.drop(db, key):
                    self.evicted += 1
                    _log.info("%s: evicted, %d bytes", key, size)
                    short -= size
                if short <= 0:
                    return

    def _shortage(self, wanted: int, on_disk: int) -> int:
        """How many bytes must go before `wanted` more bytes, some of them on the disk already, keep both limits."""
        short = wanted - on_disk + self._min_free - self.disk_free()
        if self.limit is not None:
            short = max(short, self._held() + wanted - self.limit)
        return short

    def _held(self) -> int:
        return self._table.totals()[1]

    def _none(self, wanted: int, *, pins: bool) -> FetchError:
        what = f"no room for {wanted:,} bytes in {self._folder}"
        ways = "see --cache-size and --min-free"
        if pins:
            what, ways = f"{what} beside the clips that are pinned", f"kinetics-fs pin remove gives room back; {ways}"
        return FetchError(FailureKind.LOCAL, f"{what} ({ways})", errno=errno.ENOSPC)


def _evictable(db: sqlite3.Connection, protect_used_since: float, *, enough: int) -> int:
    """The bytes that may go; counted no further than to `enough`, for a cache may hold very many clips."""
    total = 0
    with contextlib.closing(db.execute(f"SELECT size {EVICTABLE}", (protect_used_since,))) as sizes:
        for (size,) in sizes:
            total += size
            if total >= enough:
                break
    return total


def _pins_hold(db: sqlite3.Connection, protect_used_since: float) -> bool:
    """Whether there is anything that could go but for a pin."""
    return db.execute(f"SELECT 1 {PINNED} LIMIT 1", (protect_used_since,)).fetchone() is not None
