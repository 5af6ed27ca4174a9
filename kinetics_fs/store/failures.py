"""Remembered failures: what is known of a clip that could not be had, and when to try again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store.ledger import Ledger

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

_RETRY_AFTER: dict[FailureKind, tuple[float, float]] = {
    # kind: (seconds after the first failure, the most it grows to); doubled with each further attempt.
    FailureKind.GONE: (7 * _DAY, 90 * _DAY),
    FailureKind.CREDENTIALS: (_DAY, 30 * _DAY),
    FailureKind.BLOCKED: (5 * _MINUTE, _HOUR),
    FailureKind.TRANSIENT: (30.0, _HOUR),
    FailureKind.CORRUPT: (_HOUR, 7 * _DAY),
    # The fault is on this machine, where it can be mended any moment: shown, but never in the way of a new try.
    FailureKind.CONFIG: (0.0, 0.0),
    FailureKind.LOCAL: (0.0, 0.0),
}

_MOST_ASKED_FOR = _DAY
"""The longest wait that an origin may ask for: what it says is a header, and must not ban a clip for ever."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip could not be had. Times are seconds since the epoch; `attempts` since `first_at` failed alike."""

    key: str
    kind: FailureKind
    reason: str
    source: str
    errno: int | None
    first_at: float
    last_at: float
    attempts: int
    retry_at: float

    def error(self) -> FetchError:
        """The failure as the exception that it was."""
        return FetchError(self.kind, self.reason, source=self.source, errno=self.errno)


def retry_delay(kind: FailureKind, attempts: int, asked: float | None = None) -> float:
    """Seconds to leave a clip alone after its `attempts`-th failure of this kind in a row.

    A wait that the origin `asked` for is honoured where it is longer, up to a day.
    """
    first, most = _RETRY_AFTER[kind]
    return max(min(first * 2.0 ** min(attempts - 1, 32), most), min(asked or 0.0, _MOST_ASKED_FOR))


_COLUMNS = ", ".join(field.name for field in fields(Failure))
_MARKS = ", ".join("?" for _ in fields(Failure))


class FailureLog:
    """The failures that a ledger remembers, one per clip. Safe for threads and processes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, clip: Clip) -> Failure | None:
        """Why the clip could not be had when last tried; None when it is here or was never tried."""
        return next(self._select("WHERE key = ?", (clip.key,)), None)

    def all(self) -> Iterator[Failure]:
        """All of them, the latest first."""
        return self._select("ORDER BY last_at DESC")

    def counts(self) -> dict[FailureKind, int]:
        """How many there are of each kind."""
        with self._ledger.connection() as db:
            rows = db.execute("SELECT kind, count(*) FROM failure GROUP BY kind ORDER BY kind").fetchall()
        return {FailureKind(kind): number for kind, number in rows}

    def _select(self, rest: str, values: tuple[str, ...] = ()) -> Iterator[Failure]:
        with self._ledger.connection() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM failure {rest}", values).fetchall()
        for key, kind, *others in rows:
            yield Failure(key, FailureKind(kind), *others)

    def remember(self, clip: Clip, error: FetchError) -> Failure:
        """Records that a clip could not be had; the wait until the next try grows with each alike failure in a row."""
        now = time.time()
        with self._ledger.exclusive() as db:
            row = db.execute(
                "SELECT first_at, attempts FROM failure WHERE key = ? AND kind = ?", (clip.key, error.kind)
            ).fetchone()
            first_at, attempts = (row[0], row[1] + 1) if row else (now, 1)
            failure = Failure(
                key=clip.key,
                kind=error.kind,
                reason=error.reason.encode(errors="replace").decode(),
                source=error.source,
                errno=error.errno,
                first_at=first_at,
                last_at=now,
                attempts=attempts,
                retry_at=now + retry_delay(error.kind, attempts, error.retry_after),
            )
            db.execute(f"INSERT OR REPLACE INTO failure ({_COLUMNS}) VALUES ({_MARKS})", astuple(failure))
        return failure

    def forget(self, clips: Iterable[Clip] | None = None) -> int:
        """Forgets the failures of these clips, or all; returns how many there were."""
        with self._ledger.exclusive() as db:
            if clips is None:
                return db.execute("DELETE FROM failure").rowcount
            return sum(db.execute("DELETE FROM failure WHERE key = ?", (clip.key,)).rowcount for clip in clips)
