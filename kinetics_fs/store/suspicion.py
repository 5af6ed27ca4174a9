"""Suspicion of a source: many verdicts in a row, without a clip in between, may be about this client.

A site that refuses an account, an address or a client can use the same words as for a removed video. After
`MAX_VERDICTS` verdicts in a row about different videos, the source is therefore suspected. Its verdicts no longer
count: the clips are remembered as transient failures. Then controls are tried, which are videos that were available
before. If one of them is available, the verdicts were true and count again. If none is, the circuit breaker pauses the
source, and the verdicts are dropped.

Every function needs a connection; those that write need a transaction.
"""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.errors import FailureKind

SUSPECTABLE = frozenset({"youtube"})
"""The sources that can be suspected: those whose verdicts depend on the client."""

VERDICTS = frozenset({FailureKind.GONE, FailureKind.CREDENTIALS})
"""The kinds of failure that say something about a video."""

MAX_VERDICTS = 10
"""Verdicts in a row about different videos after which a source is suspected."""

CONTROLS = 2
"""Controls in a round."""

_CONTROL_TIMEOUT = 120.0
"""Seconds after which a control without an outcome counts as lost, for example because its process died."""

_RETRY_AFTER = 30.0
"""Seconds after which a clip whose verdict does not count is tried again, if its source is not paused."""

_MAX_AGE = 2 * 3600.0
"""Seconds of suspicion after which a control no longer proves the verdicts: its cause may have passed."""

_NOTE = "not certain, because too many videos in a row were unavailable: "
"""Begins the reason of a failure whose verdict does not count."""

_SAVED = "kind, reason, errno, first_at, last_at, attempts, retry_at"
_IS_VERDICT = f"kind IN ('{FailureKind.GONE}', '{FailureKind.CREDENTIALS}')"


class Suspicion(NamedTuple):
    """A row of the table `suspect`. Times are seconds since the epoch.

    Attributes:
        at: when the source was first suspected.
        tried: number of controls that proved nothing.
        failed_at: when the last round of controls ended that proved nothing; 0 before the first.
        control_until: when a control in progress counts as lost; 0 if none is in progress.
    """

    at: float
    tried: int
    failed_at: float
    control_until: float

    @property
    def ends_round(self) -> bool:
        """True if the next control is the last one of its round."""
        return self.tried % CONTROLS == CONTROLS - 1


def read(db: sqlite3.Connection, source: str) -> Suspicion | None:
    """Return the suspicion of a source; None if there is none, or its row is invalid."""
    row = db.execute(
        "SELECT suspected_at, tried, failed_at, control_until FROM suspect WHERE source = ?", (source,)
    ).fetchone()
    if row is None:
        return None
    now = time.time()
    try:
        at, tried, failed_at, control_until = row
        suspicion = Suspicion(float(at), int(tried), float(failed_at), float(control_until))
    except (TypeError, ValueError, OverflowError):
        return None
    # Times that are too late were written while the clock was ahead.
    return suspicion._replace(
        at=suspicion.at if suspicion.at <= now else 0.0,
        failed_at=min(suspicion.failed_at, 1.0) if suspicion.failed_at > now else suspicion.failed_at,
        control_until=suspicion.control_until if suspicion.control_until <= now + _CONTROL_TIMEOUT else 0.0,
    )


def add_verdict(db: sqlite3.Connection, source: str, key: str) -> bool:
    """Count a verdict of a source that was remembered just now, and return whether it counts.

    If it makes the source suspected, the earlier verdicts in the row no longer count either.
    """
    suspicion = read(db, source)
    if suspicion is None or not suspicion.failed_at:
        db.execute(
            f"INSERT OR REPLACE INTO verdict (source, key, {_SAVED})"
            f" SELECT ?, key, {_SAVED} FROM failure WHERE key = ?",
            (source, key),
        )
    if suspicion is None:
        [(videos,)] = db.execute(
            "SELECT count(DISTINCT substr(key, 1, 11)) FROM verdict WHERE source = ?", (source,)
        ).fetchall()
        if videos < MAX_VERDICTS:
            return True
        db.execute(
            "INSERT OR REPLACE INTO suspect (source, suspected_at, tried, failed_at, control_until)"
            " VALUES (?, ?, 0, 0, 0)",
            (source, time.time()),
        )
    db.execute(
        f"UPDATE failure SET kind = ?, reason = ? || reason, first_at = last_at, attempts = 1, retry_at = last_at + ?"
        f" WHERE source = ? AND {_IS_VERDICT}"
        " AND (key = ? OR key IN (SELECT key FROM verdict WHERE source = ?))",
        (FailureKind.TRANSIENT, _NOTE, _RETRY_AFTER, source, key, source),
    )
    return False


def drop_verdict(db: sqlite3.Connection, key: str) -> None:
    """Drop the verdict about a clip, because another failure of it is newer."""
    db.execute("DELETE FROM verdict WHERE key = ?", (key,))


def begin_control(db: sqlite3.Connection, source: str, now: float) -> None:
    """Note that a control is in progress."""
    db.execute("UPDATE suspect SET control_until = ? WHERE source = ?", (now + _CONTROL_TIMEOUT, source))


def end_control(db: sqlite3.Connection, source: str, suspicion: Suspicion) -> None:
    """Note that a control proved nothing. At the end of a round, the verdicts are dropped: the clips are retried."""
    failed_at = time.time() if suspicion.ends_round else suspicion.failed_at
    db.execute(
        "UPDATE suspect SET tried = ?, failed_at = ?, control_until = 0 WHERE source = ?",
        (suspicion.tried + 1, failed_at, source),
    )
    if suspicion.ends_round:
        db.execute("DELETE FROM verdict WHERE source = ?", (source,))


def cancel_control(db: sqlite3.Connection, source: str) -> None:
    """Note that the control in progress was not tried."""
    db.execute("UPDATE suspect SET control_until = 0 WHERE source = ?", (source,))


def end(db: sqlite3.Connection, source: str) -> int:
    """End a row of verdicts, because the source has delivered something. Return how many verdicts count again."""
    restored, suspicion = 0, read(db, source)
    if suspicion is not None and suspicion.at > time.time() - _MAX_AGE:
        restored = db.execute(
            f"INSERT OR REPLACE INTO failure (key, source, {_SAVED}) SELECT key, source, {_SAVED} FROM verdict"
            " WHERE source = ? AND key IN (SELECT key FROM failure WHERE source = ? AND instr(reason, ?) = 1)",
            (source, source, _NOTE),
        ).rowcount
    for table in ("suspect", "verdict"):
        db.execute(f"DELETE FROM {table} WHERE source = ?", (source,))
    return restored


def has_verdicts(db: sqlite3.Connection, source: str) -> bool:
    """Return whether a source has reported verdicts since it last delivered a clip, or is suspected."""
    return any(
        db.execute(f"SELECT 1 FROM {table} WHERE source = ? LIMIT 1", (source,)).fetchone()
        for table in ("verdict", "suspect")
    )


def make_due(db: sqlite3.Connection) -> None:
    """Have controls of all suspected sources tried before the next request; let a clip test the source if they fail."""
    db.execute("UPDATE suspect SET failed_at = min(failed_at, 1), control_until = 0")


def recent_videos(db: sqlite3.Connection, source: str) -> list[str]:
    """Return the ids of the videos that a source delivered last, without those it now calls unavailable."""
    rows = db.execute(
        "SELECT substr(key, 1, 11) FROM clip WHERE source = ? AND substr(key, 1, 11) NOT IN"
        " (SELECT substr(key, 1, 11) FROM verdict WHERE source = ?) ORDER BY stored_at DESC LIMIT ?",
        (source, source, 20 * CONTROLS),
    ).fetchall()
    videos = dict.fromkeys(str(video) for (video,) in rows)
    return [video for video in videos if parse_clip_name(f"{video}_000000_000001.mp4")][:CONTROLS]
