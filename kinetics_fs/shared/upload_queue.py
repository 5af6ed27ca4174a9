"""The clips that wait for their upload to the shared store, in a file that all processes of a cache use.

The queue names cached clips and has no bytes of them. It survives restarts and crashes: an entry that a process took
and did not finish is taken by another one later.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import StoreError
from kinetics_fs.shared.store import is_profile
from kinetics_fs.util.disk import DiskFault
from kinetics_fs.util.sqlite import Database

MAX_QUEUED = 100_000
"""Entries that a queue may have: 12 MB."""
_TAKEN_FOR = 300.0
"""Seconds after which an entry that a process took is given to another one."""
_MAX_AGE = 86400.0 * 365

_SCHEMA = """
PRAGMA journal_mode = WAL;

CREATE TABLE IF NOT EXISTS upload (
    key         TEXT NOT NULL,       -- <youtube id>_<start>_<end>
    profile     TEXT NOT NULL,
    urgent      INTEGER NOT NULL,    -- 1 if other machines may wait for the clip
    added_at    REAL NOT NULL,       -- seconds since the epoch
    due_at      REAL NOT NULL,       -- not taken before this time
    PRIMARY KEY (key, profile)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS upload_in_order ON upload (urgent DESC, added_at);

CREATE TABLE IF NOT EXISTS counter ( -- entries that were dropped, by reason
    name        TEXT PRIMARY KEY,
    count       INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Upload(NamedTuple):
    """A cached clip to upload."""

    clip: Clip
    profile: str


class QueueStatus(NamedTuple):
    """How long a queue is.

    Attributes:
        clips: entries.
        oldest: seconds since the oldest was added; 0 if there are none.
        dropped: entries that were dropped because the queue was full.
        evicted: entries whose clip was no longer cached.
        refused: entries whose clip the store cannot take, for example because it is too large.
    """

    clips: int
    oldest: float
    dropped: int
    evicted: int
    refused: int


class UploadQueue:
    """A queue in a SQLite file. Safe for threads and processes.

    Args:
        path: the file; created if it is missing.
        limit: maximum number of entries; the oldest are dropped.
        now: the time in seconds since the epoch.

    Raises:
        StoreError: the file cannot be used. Any method may raise it later.
    """

    def __init__(self, path: Path, *, limit: int = MAX_QUEUED, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._limit = limit
        self._now = now
        self._database = Database(
            path,
            translate=self._error,
            if_damaged=f"remove {path}*: a later sync finds the clips that it named",
            synchronous="NORMAL",
        )
        with self._database.connection() as db:
            db.executescript(_SCHEMA)

    def _error(self, fault: DiskFault) -> StoreError:
        return StoreError(f"cannot use {self._path}: {fault.cause}; {fault.cure}", errno=fault.errno)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, uploads: Iterable[Upload], *, urgent: bool) -> None:
        """Add entries, or make existing ones urgent. A full queue drops its oldest.

        Args:
            uploads: the clips.
            urgent: other machines may wait for them.
        """
        now = self._now()
        with self._database.exclusive() as db:
            db.executemany(
                "INSERT INTO upload (key, profile, urgent, added_at, due_at) VALUES (?, ?, ?, ?, 0)"
                " ON CONFLICT DO UPDATE SET urgent = max(urgent, excluded.urgent)",
                ((upload.clip.key, upload.profile, urgent, now) for upload in uploads),
            )
            dropped = db.execute(
                "DELETE FROM upload WHERE (key, profile) IN (SELECT key, profile FROM upload ORDER BY added_at"
                " LIMIT max(0, (SELECT count(*) FROM upload) - ?))",
                (self._limit,),
            ).rowcount
            self._count(db, "dropped", dropped)

    def take(self) -> Upload | None:
        """Return the next entry, urgent ones first, for this process alone for some minutes; None if none is due."""
        now = self._now()
        with self._database.exclusive() as db:
            row = db.execute(
                # A time far ahead was written before the clock was set back.
                "SELECT key, profile FROM upload WHERE due_at <= ? OR due_at > ?"
                " ORDER BY urgent DESC, added_at LIMIT 1",
                (now, now + 2 * _TAKEN_FOR),
            ).fetchone()
            if row is None:
                return None
            key, profile = map(str, row)
            db.execute("UPDATE upload SET due_at = ? WHERE key = ? AND profile = ?", (now + _TAKEN_FOR, key, profile))
            clip = parse_clip_name(f"{key}.mp4") if is_profile(profile) else None
            if clip is None:  # damaged
                db.execute("DELETE FROM upload WHERE key = ? AND profile = ?", (key, profile))
        return self.take() if clip is None else Upload(clip, profile)

    def finish(self, upload: Upload, dropped: str = "") -> None:
        """Remove an entry.

        Args:
            upload: the entry.
            dropped: `evicted` or `refused` if the clip was not uploaded; see `QueueStatus`.
        """
        with self._database.exclusive() as db:
            removed = db.execute(
                "DELETE FROM upload WHERE key = ? AND profile = ?", (upload.clip.key, upload.profile)
            ).rowcount
            if dropped:
                self._count(db, dropped, removed)

    def give_back(self, upload: Upload) -> None:
        """Let any process take an entry again."""
        with self._database.exclusive() as db:
            db.execute("UPDATE upload SET due_at = 0 WHERE key = ? AND profile = ?", (upload.clip.key, upload.profile))

    def has(self, upload: Upload) -> bool:
        """Return whether an entry is in the queue, taken or not."""
        return bool(
            self._database.query(
                "SELECT 1 FROM upload WHERE key = ? AND profile = ?", (upload.clip.key, upload.profile)
            )
        )

    def status(self) -> QueueStatus:
        """Return how long the queue is."""
        ((clips, oldest),) = self._database.query("SELECT count(*), min(added_at) FROM upload")
        counts = dict(self._database.query("SELECT name, count FROM counter"))
        age = 0.0 if oldest is None else min(max(0.0, self._now() - oldest), _MAX_AGE)
        return QueueStatus(clips, age, *(int(counts.get(name, 0)) for name in ("dropped", "evicted", "refused")))

    @staticmethod
    def _count(db: sqlite3.Connection, name: str, count: int) -> None:
        if count:
            db.execute(
                "INSERT INTO counter VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                (name, count),
            )
