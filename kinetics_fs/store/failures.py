"""Remembered failures: what is known of a clip that could not be had, and when to try again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from errno import errorcode
from itertools import dropwhile
from typing import Any, NamedTuple

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.util.sqlite import transaction

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

_IMPORTED = "imported"
_LONGEST_TEXT = 500
_MOST_ATTEMPTS = 10**9
LAST_TIME = 1e11
"""A time that is far off, but still in the calendar; times in milliseconds are beyond it."""
_KEY_PATTERN = "[-_A-Za-z0-9]" * 11 + ("_" + "[0-9]" * 6) * 2
"""`Clip.key`, in SQL's GLOB."""
_UNIQUE = re.compile(r"\b[0-9a-f]{32}\b|(?<!error )(?<!errno )(?<![a-z0-9])[0-9]+(?:[.,:][0-9]+)*", re.IGNORECASE)
"""What makes a reason unique: a token, or a number that is no status and not part of a word."""


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

    @property
    def clip(self) -> Clip:
        """The clip of that key."""
        return Clip(self.key[:11], int(self.key[12:18]), int(self.key[19:]))

    @property
    def group(self) -> str:
        """The reason, with `…` for what makes it unique: the id of the video, tokens and numbers."""
        return _UNIQUE.sub("…", self.reason.replace(self.key[:11], "…"))

    def error(self) -> FetchError:
        """The failure as the exception that it was."""
        return FetchError(self.kind, self.reason, source=self.source, errno=self.errno)


class FailureReport(NamedTuple):
    """What somebody else found out about a clip. Times are seconds since the epoch."""

    clip: Clip
    kind: FailureKind
    reason: str
    source: str
    first_at: float
    last_at: float
    attempts: int


class ImportedFailures(NamedTuple):
    """What became of reports: how many were news, how many not, and of how many the clip itself is or was here."""

    new: int
    known: int
    cached: int


def one_line(text: str) -> str:
    """`text` cut to 500 characters, in one line, and with everything escaped that a terminal may take for an order."""
    text = " ".join(text[:_LONGEST_TEXT].split())
    if not text.isprintable():
        text = "".join(
            sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text
        )
    return text[:_LONGEST_TEXT]


def retry_delay(kind: FailureKind, attempts: int, asked: float | None = None) -> float:
    """Seconds to leave a clip alone after its `attempts`-th failure of this kind in a row.

    A wait that the origin `asked` for is honoured where it is longer, up to a day.
    """
    first, most = _RETRY_AFTER[kind]
    return max(min(first * 2.0 ** min(attempts - 1, 32), most), min(asked or 0.0, _MOST_ASKED_FOR))


_COLUMNS = ", ".join(field.name for field in fields(Failure))
_MARKS = ", ".join("?" for _ in fields(Failure))
_OF_KINDS = "kind IN (SELECT value FROM json_each(?))"


def _list(texts: Iterable[str]) -> str:
    return json.dumps(list(texts))


def _from_row(
    key: Any, kind: Any, reason: Any, source: Any, errno: Any, first_at: Any, last_at: Any, attempts: Any, retry_at: Any
) -> Failure | None:
    """The failure in a row of the ledger, or None if it is not one that we wrote: a cache may come from elsewhere."""
    try:
        failure = Failure(
            key=str(key),
            kind=FailureKind(kind),
            reason=one_line(str(reason)),
            source=one_line(str(source)),
            errno=errno if errno in errorcode else None,
            first_at=float(first_at),
            last_at=float(last_at),
            attempts=int(attempts),
            retry_at=float(retry_at),
        )
    except (ValueError, TypeError, OverflowError):
        return None
    times = (failure.first_at, failure.last_at, failure.retry_at)
    is_ours = (
        parse_clip_name(f"{failure.key}.mp4") is not None
        and all(0 <= at <= LAST_TIME for at in times)
        and 1 <= failure.attempts <= _MOST_ATTEMPTS
    )
    return failure if is_ours else None


class FailureLog:
    """The failures that a ledger remembers, one per clip. Safe for threads and processes."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def get(self, clip: Clip) -> Failure | None:
        """Why the clip could not be had when last tried; None when it is here or was never tried."""
        return next(self._select("WHERE key = ?", clip.key), None)

    def all(self, kinds: Collection[FailureKind] = ()) -> Iterator[Failure]:
        """All of them, or those of these kinds; the latest first."""
        return self._select(f"WHERE {_OF_KINDS} ORDER BY last_at DESC", _list(kinds or FailureKind))

    def of(self, clips: Sequence[Clip]) -> dict[Clip, Failure]:
        """Those of these clips."""
        failures = self._select("WHERE key IN (SELECT value FROM json_each(?))", _list(clip.key for clip in clips))
        return {failure.clip: failure for failure in failures}

    def counts(self) -> dict[FailureKind, int]:
        """How many there are of each kind."""
        with self._database.connection() as db:
            rows = db.execute(
                f"SELECT kind, count(*) FROM failure WHERE {_OF_KINDS} GROUP BY kind ORDER BY kind",
                (_list(FailureKind),),
            ).fetchall()
        return {FailureKind(kind): number for kind, number in rows}

    def gone(self, among: Collection[str] | None = None) -> dict[str, float]:
        """The clips that are known to be gone, are not here, and not due for another try; of these keys, or of all.

        Returns:
            `Clip.key` → when it may be tried again, in seconds since the epoch.
        """
        keys = "" if among is None else "key IN (SELECT value FROM json_each(:keys)) AND"
        with self._database.connection() as db:
            # Many at once and not looked at one by one, as `_from_row` would: of a row that is not ours only these
            # three columns are believed, and a key that is no clip's is found nowhere.
            rows = db.execute(
                f"SELECT key, retry_at FROM failure WHERE {keys} kind = :kind AND retry_at > :now AND retry_at <= :last"
                f" AND key GLOB '{_KEY_PATTERN}' AND NOT EXISTS (SELECT 1 FROM clip WHERE key = failure.key AND held)",
                {"keys": _list(among or ()), "kind": FailureKind.GONE, "now": time.time(), "last": LAST_TIME},
            ).fetchall()
        return dict(rows)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """A question that costs next to nothing: whether anything was written, by whatever process, since it was asked
        last. The first time it was. To be asked by one thread at a time.
        """
        with self._database.connection() as db:
            seen = None

            def has_changed() -> bool:
                nonlocal seen
                before, (seen,) = seen, db.execute("PRAGMA data_version").fetchone()
                return bool(seen != before)

            yield has_changed

    def _select(self, rest: str, value: str) -> Iterator[Failure]:
        with self._database.connection() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM failure {rest}", (value,)).fetchall()
        return (failure for row in rows if (failure := _from_row(*row)) is not None)

    def remember(self, clip: Clip, error: FetchError) -> Failure:
        """Records that a clip could not be had; the wait until the next try grows with each alike failure in a row."""
        now = time.time()
        with self._database.exclusive() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM failure WHERE key = ?", (clip.key,)).fetchone()
            before = _from_row(*row) if row else None
            if before is None or before.kind is not error.kind:
                first_at, attempts = now, 1
            else:
                first_at, attempts = before.first_at, before.attempts + 1
            failure = Failure(
                key=clip.key,
                kind=error.kind,
                reason=one_line(error.reason),
                source=one_line(error.source),
                errno=error.errno,
                first_at=first_at,
                last_at=now,
                attempts=attempts,
                retry_at=now + retry_delay(error.kind, attempts, error.retry_after),
            )
            db.execute(f"INSERT OR REPLACE INTO failure ({_COLUMNS}) VALUES ({_MARKS})", astuple(failure))
        return failure

    def remember_all(self, clips: Iterable[Clip], error: FetchError) -> None:
        """Records of many clips at once that they could not be had, where nothing of this kind is known already."""
        now = time.time()
        failures = (
            Failure(
                *(clip.key, error.kind, one_line(error.reason), one_line(error.source), error.errno),
                *(now, now, 1, now + retry_delay(error.kind, 1, error.retry_after)),
            )
            for clip in clips
        )
        with self._database.exclusive() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO failure ({_COLUMNS}) SELECT {_MARKS}"
                " WHERE NOT EXISTS (SELECT 1 FROM failure WHERE key = ? AND kind = ?)",
                ((*astuple(failure), failure.key, failure.kind) for failure in failures),
            )

    def forget(self, clips: Iterable[Clip] | None = None, kinds: Collection[FailureKind] = ()) -> int:
        """Forgets the failures of these clips, or all; of these kinds, or any. Returns how many there were."""
        with self._database.exclusive() as db:
            if clips is None:
                # With those of unknown kinds, unless kinds are named.
                return db.execute(f"DELETE FROM failure WHERE ? OR {_OF_KINDS}", (not kinds, _list(kinds))).rowcount
            statement, of_kinds = f"DELETE FROM failure WHERE key = ? AND {_OF_KINDS}", _list(kinds or FailureKind)
            return sum(db.execute(statement, (clip.key, of_kinds)).rowcount for clip in clips)

    def make_due(self, clip: Clip) -> None:
        """Ends the wait of a clip, so that who asks for it next has it tried; what is known of it stays."""
        with self._database.exclusive() as db:
            db.execute("UPDATE failure SET retry_at = last_at WHERE key = ?", (clip.key,))

    def import_reports(self, reports: Iterable[FailureReport]) -> ImportedFailures:
        """Believes what others found out, where nothing as new is known here; all of it, or, after an error, nothing.

        A report counts as old as it says. One of the future counts as of now, and only if nothing at all is known of
        the clip: whose clock is wrong cannot tell what is news.
        """
        now = time.time()
        with self._database.connection() as db:
            # Beside the ledger at first: who brings the reports may be slow, and nobody shall wait for that.
            db.execute(f"CREATE TEMP TABLE report ({_COLUMNS}, early, PRIMARY KEY (key)) WITHOUT ROWID")
            try:
                with transaction(db, "DEFERRED"):
                    columns = f"{_COLUMNS}, early".split(", ")[1:]
                    db.executemany(
                        f"INSERT INTO report VALUES ({_MARKS}, ?) ON CONFLICT (key) DO UPDATE SET"
                        + ", ".join(f" {column} = excluded.{column}" for column in columns)
                        + " WHERE excluded.last_at > last_at",
                        ((*astuple(_believed(report, now)), report.last_at > now) for report in reports),
                    )
                with transaction(db):
                    cached = db.execute(
                        "DELETE FROM report WHERE EXISTS (SELECT 1 FROM clip"
                        " WHERE clip.key = report.key AND (held OR early OR stored_at >= last_at))"
                    ).rowcount
                    known = db.execute(
                        "DELETE FROM report WHERE EXISTS (SELECT 1 FROM failure"
                        " WHERE failure.key = report.key AND (early OR failure.last_at >= report.last_at))"
                    ).rowcount
                    new = db.execute(
                        f"INSERT OR REPLACE INTO failure ({_COLUMNS}) SELECT {_COLUMNS} FROM report"
                    ).rowcount
            finally:
                db.execute("DROP TABLE report")
        return ImportedFailures(new, known, cached)


def _believed(report: FailureReport, now: float) -> Failure:
    last_at = min(report.last_at, now)
    return Failure(
        key=report.clip.key,
        kind=report.kind,
        reason=one_line(report.reason),
        source=" ".join([_IMPORTED, *dropwhile(_IMPORTED.__eq__, one_line(report.source).split())]),
        errno=None,
        first_at=min(report.first_at, last_at),
        last_at=last_at,
        attempts=report.attempts,
        retry_at=last_at + retry_delay(report.kind, report.attempts),
    )
