"""Remembered failures: why a clip is unavailable, when to try again, and their exchange between machines.

The exchange file has JSON lines, an object for each clip, with the names of `Failure`::

    {"key": "-a1B2c3D4e5_000010_000020", "kind": "gone", "reason": "Video unavailable", "source": "youtube",
     "first_at": 1767225600, "last_at": 1769904000, "attempts": 2}

(on one line). JSON lines rather than CSV, because every line is a record whatever it contains: a broken line affects
no other, as an open quote would. Only `key`, `kind` and `last_at` are required; unknown names are ignored.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from errno import errorcode
from itertools import count, dropwhile
from typing import Any, BinaryIO, NamedTuple

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import FailureKind, FetchError, KineticsError, StoreError, printable
from kinetics_fs.store import suspicion
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.util.sqlite import transaction
from kinetics_fs.util.text import without_details

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

_RETRY_AFTER: dict[FailureKind, tuple[float, float]] = {
    # kind: (seconds after the first failure, the maximum); doubled with each further attempt.
    FailureKind.GONE: (7 * _DAY, 90 * _DAY),
    FailureKind.CREDENTIALS: (_DAY, 30 * _DAY),
    FailureKind.BLOCKED: (5 * _MINUTE, _HOUR),
    FailureKind.TRANSIENT: (30.0, _HOUR),
    FailureKind.CORRUPT: (_HOUR, 7 * _DAY),
    # The cause is on this machine, where it can be removed at any moment: shown, but never delays the next retry.
    FailureKind.CONFIG: (0.0, 0.0),
    FailureKind.LOCAL: (0.0, 0.0),
}

MAX_RETRY_DELAY = max(maximum for _, maximum in _RETRY_AFTER.values())
"""The longest delay after a failure, in seconds."""

_MAX_REQUESTED_DELAY = _DAY
"""The longest delay that a source may request: it comes in a header, and must not ban a clip for ever."""

_LONGEST_DELAY = max(_MAX_REQUESTED_DELAY, *(maximum for _, maximum in _RETRY_AFTER.values()))

_IMPORTED = "imported"
"""First word of the source of a failure that another machine has found."""
_MAX_TEXT = 500
_MAX_ATTEMPTS = 10**9
_MAX_TIME = 1e11
"""A time far in the future that is still in the calendar. Times in milliseconds exceed it."""
_CLOCK_STEP = 60.0
"""Seconds by which a time may be ahead without a doubt about the clock."""
_KEY_PATTERN = "[-_A-Za-z0-9]" * 11 + ("_" + "[0-9]" * 6) * 2
"""`Clip.key` as a GLOB pattern of SQL."""
"""The parts that make a reason unique: a token, or a number that is neither a status code nor part of a word."""

LASTING_KINDS = (FailureKind.GONE, FailureKind.CORRUPT, FailureKind.CREDENTIALS)
"""The kinds that may describe the clip itself. The others describe a machine, its network or a moment."""

KINDS_SHARED_BY_DEFAULT = (FailureKind.GONE,)
"""The kind that is true on every machine. A clip may be corrupt only because of a bad connection or an old ffmpeg, and
whether credentials are missing depends on the country and the account."""

_MAX_LINE_BYTES = 8192
_MAX_FILE_BYTES = 256 * 1024**2  # a file with all clips of the largest release has 150 MB
_MAX_SHARED_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip is unavailable.

    Attributes:
        key: `Clip.key`.
        kind: class of the failure.
        reason: one line.
        source: name of the source that failed; empty if no source was asked.
        errno: the errno of the operating system; None if there was none.
        first_at: first of the failures of this kind in a row, in seconds since the epoch.
        last_at: last of them.
        attempts: their number.
        retry_at: before this time the clip is not tried again.
    """

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
        """The clip with this key."""
        return Clip(self.key[:11], int(self.key[12:18]), int(self.key[19:]))

    @property
    def group(self) -> str:
        """The reason with `…` for the parts that make it unique: the id of the video, tokens and numbers."""
        return without_details(self.reason, self.key)

    @property
    def is_of_archives(self) -> bool:
        """Whether the clip is only known to be missing from the archives that this cache used."""
        return self.kind is FailureKind.GONE and without_import(self.source) == "archive"

    def error(self) -> FetchError:
        """Return the failure as the exception that it was."""
        return FetchError(self.kind, self.reason, source=self.source, cause_errno=self.errno)


class LastingFailure(NamedTuple):
    """Why a clip is unavailable for long.

    Attributes:
        retry_at: when the clip may be tried again, in seconds since the epoch.
        source: name of the source that failed.
    """

    retry_at: float
    source: str


class FailureReport(NamedTuple):
    """A failure that another machine met. Times are seconds since the epoch."""

    clip: Clip
    kind: FailureKind
    reason: str
    source: str
    first_at: float
    last_at: float
    attempts: int


class InvalidLine(NamedTuple):
    """An invalid line of an exchange file."""

    number: int
    reason: str


class ImportedFailures(NamedTuple):
    """How many failure reports were imported, and how many were not."""

    new: int
    known: int
    """Reports that are not newer than a failure that is remembered already."""
    cached: int
    """Reports about clips that are cached, or were stored after the failure."""


def without_import(source: str) -> str:
    """Return the name of a source without the word that says that another machine has found the failure."""
    return source.removeprefix(f"{_IMPORTED} ")


def one_line(text: str) -> str:
    """Return `text` on one line of at most 500 characters, with escapes for all that a terminal may interpret."""
    return printable(text[:_MAX_TEXT])[:_MAX_TEXT]


def _is_later(at: Any, limit: float) -> bool:
    return isinstance(at, float) and limit < at <= _MAX_TIME


def retry_delay(kind: FailureKind, attempts: int, requested: float | None = None) -> float:
    """Return how many seconds to wait after a failure before the clip is tried again.

    Args:
        kind: class of the failure.
        attempts: number of failures of this kind in a row.
        requested: delay that the source requested; it counts if it is longer, up to a day.
    """
    first, maximum = _RETRY_AFTER[kind]
    delay = min(first * 2.0 ** min(attempts - 1, 32), maximum)
    return max(delay, min(requested or 0.0, _MAX_REQUESTED_DELAY))


_COLUMNS = ", ".join(field.name for field in fields(Failure))
_LAST_AT = [field.name for field in fields(Failure)].index("last_at")
_MARKS = ", ".join("?" for _ in fields(Failure))
_OF_KINDS = "kind IN (SELECT value FROM json_each(?))"


def _json_list(texts: Iterable[str]) -> str:
    return json.dumps(list(texts))


def _from_row(
    key: Any, kind: Any, reason: Any, source: Any, errno: Any, first_at: Any, last_at: Any, attempts: Any, retry_at: Any
) -> Failure | None:
    """Return the failure in a row; None if the row is invalid: a cache may come from another machine."""
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
    is_valid = (
        parse_clip_name(f"{failure.key}.mp4") is not None
        and all(0 <= at <= _MAX_TIME for at in times)
        and 1 <= failure.attempts <= _MAX_ATTEMPTS
    )
    return failure if is_valid else None


class FailureLog:
    """The remembered failures, at most one for each clip. Safe for threads and processes.

    Args:
        database: keeps the failures.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def get(self, clip: Clip) -> Failure | None:
        """Return the failure of a clip; None if the clip is cached or was never tried."""
        return next(self._select("WHERE key = ?", clip.key), None)

    def is_doubted(self, clip: Clip) -> bool:
        """Return whether the failure of a clip is a verdict that its source has not confirmed by a delivery yet."""
        return bool(self._database.query("SELECT 1 FROM verdict WHERE key = ?", (clip.key,)))

    def all(self, kinds: Collection[FailureKind] = ()) -> Iterator[Failure]:
        """Return all failures, or those of these kinds; the latest first."""
        return self._select(f"WHERE {_OF_KINDS} ORDER BY last_at DESC", _json_list(kinds or FailureKind))

    def of(self, clips: Sequence[Clip]) -> dict[Clip, Failure]:
        """Return the failures of these clips."""
        failures = self._select("WHERE key IN (SELECT value FROM json_each(?))", _json_list(clip.key for clip in clips))
        return {failure.clip: failure for failure in failures}

    def counts(self) -> dict[FailureKind, int]:
        """Return the number of failures of each kind."""
        with self._database.connection() as db:
            rows = db.execute(
                f"SELECT kind, count(*) FROM failure WHERE {_OF_KINDS} GROUP BY kind ORDER BY kind",
                (_json_list(FailureKind),),
            ).fetchall()
        return {FailureKind(kind): count for kind, count in rows}

    def unavailable(
        self, among: Collection[str] | None = None, *, include_due: bool = False
    ) -> dict[str, LastingFailure]:
        """Return the clips with a failure of `LASTING_KINDS` that are not cached and not due for another try.

        Args:
            among: look only at clips with these keys; None for all.
            include_due: return those that are due, too.

        Returns:
            The failures by `Clip.key`.
        """
        if among is None:
            self._correct_times()
        keys = "" if among is None else "key IN (SELECT value FROM json_each(:keys)) AND"
        with self._database.connection() as db:
            # The rows may be many, so they are not checked one by one as in `_from_row`. Only these three columns of
            # a row are used, and an invalid key matches no clip of the catalog.
            rows = db.execute(
                f"SELECT key, retry_at, source FROM failure WHERE {keys} kind IN (SELECT value FROM json_each(:kinds))"
                " AND retry_at > :now AND retry_at <= :last"
                f" AND key GLOB '{_KEY_PATTERN}'"
                " AND NOT EXISTS (SELECT 1 FROM shown WHERE key = failure.key AND cached)",
                {
                    "keys": _json_list(among or ()),
                    "kinds": _json_list(LASTING_KINDS),
                    "now": -math.inf if include_due else time.time(),
                    "last": _MAX_TIME,
                },
            ).fetchall()
        return {key: LastingFailure(retry_at, str(source)) for key, retry_at, source in rows}

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that returns whether any process has written to the database since its last call.

        A call costs next to nothing. The first call returns True. The function must not be called by two threads at
        once.
        """
        with self._database.connection() as db:
            seen = None

            def has_changed() -> bool:
                nonlocal seen
                before, (seen,) = seen, db.execute("PRAGMA data_version").fetchone()
                return bool(seen != before)

            yield has_changed

    def _select(self, rest: str, value: str) -> Iterator[Failure]:
        statement = f"SELECT {_COLUMNS} FROM failure {rest}"
        rows = self._database.query(statement, (value,))
        latest = time.time() + _CLOCK_STEP
        if any(_is_later(row[_LAST_AT], latest) or _is_later(row[-1], latest + _LONGEST_DELAY) for row in rows):
            self._correct_times()
            rows = self._database.query(statement, (value,))
        return (failure for row in rows if (failure := _from_row(*row)) is not None)

    def _correct_times(self) -> None:
        """Begin the delays again of failures that were remembered while the clock was ahead, or last for years."""
        now = time.time()
        latest = now + _CLOCK_STEP
        condition = (
            "typeof(last_at) = 'real' AND typeof(retry_at) = 'real' AND max(last_at, retry_at) <= ?"
            " AND (last_at > ? OR retry_at > ?)"
        )
        span = (_MAX_TIME, latest, latest + _LONGEST_DELAY)
        if not self._database.query(f"SELECT 1 FROM failure WHERE {condition} LIMIT 1", span):
            return
        with suppress(StoreError), self._database.exclusive() as db:  # it is right for now if the disk is read-only
            db.execute(
                "UPDATE failure SET retry_at = ? + max(0, min(retry_at - last_at, ?)), first_at = min(first_at, ?),"
                f" last_at = min(last_at, ?) WHERE {condition}",
                (now, _LONGEST_DELAY, now, now, *span),
            )

    def remember(self, clip: Clip, error: FetchError) -> Failure:
        """Record a failure of a clip. The delay until the next retry grows with each failure of the same kind in a row.

        Returns:
            The failure as it is remembered now. It is transient instead of a verdict if the source is suspected; see
            `kinetics_fs.store.suspicion`.
        """
        now = time.time()
        with self._database.exclusive() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM failure WHERE key = ?", (clip.key,)).fetchone()
            earlier = _from_row(*row) if row else None
            if earlier is None or earlier.kind is not error.kind:
                first_at, attempts = now, 1
            else:
                first_at, attempts = min(earlier.first_at, now), earlier.attempts + 1
            failure = Failure(
                key=clip.key,
                kind=error.kind,
                reason=one_line(error.reason),
                source=one_line(error.source),
                errno=error.cause_errno,
                first_at=first_at,
                last_at=now,
                attempts=attempts,
                retry_at=now + retry_delay(error.kind, attempts, error.retry_after),
            )
            db.execute(f"INSERT OR REPLACE INTO failure ({_COLUMNS}) VALUES ({_MARKS})", astuple(failure))
            if failure.kind not in suspicion.VERDICTS:
                suspicion.drop_verdict(db, clip.key)
            elif failure.source in suspicion.SUSPECTABLE and not suspicion.add_verdict(db, failure.source, clip.key):
                row = db.execute(f"SELECT {_COLUMNS} FROM failure WHERE key = ?", (clip.key,)).fetchone()
                failure = _from_row(*row) or failure
        return failure

    def remember_all(self, clips: Iterable[Clip], error: FetchError) -> None:
        """Record the same failure of many clips, except of those with a failure of this kind already."""
        now = time.time()
        failures = (
            Failure(
                *(clip.key, error.kind, one_line(error.reason), one_line(error.source), error.cause_errno),
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
        """Forget failures.

        Args:
            clips: the clips whose failures are forgotten; None for all.
            kinds: the kinds that are forgotten; none for all.

        Returns:
            The number of forgotten failures.
        """
        with self._database.exclusive() as db:
            if clips is None:
                # Includes rows of unknown kinds, unless kinds are named.
                return db.execute(
                    f"DELETE FROM failure WHERE ? OR {_OF_KINDS}", (not kinds, _json_list(kinds))
                ).rowcount
            statement, of_kinds = f"DELETE FROM failure WHERE key = ? AND {_OF_KINDS}", _json_list(kinds or FailureKind)
            return sum(db.execute(statement, (clip.key, of_kinds)).rowcount for clip in clips)

    def make_due(self, clip: Clip) -> None:
        """End the delay of a clip, so that the next request tries it again. Its failure stays remembered."""
        with self._database.exclusive() as db:
            db.execute("UPDATE failure SET retry_at = last_at WHERE key = ?", (clip.key,))

    def make_due_if(self, phrase: str, accept: Callable[[str], bool]) -> None:
        """End the delay of all clips whose reason contains a phrase and is accepted.

        Args:
            phrase: text to search for; the database does this, so that only few reasons are passed to `accept`.
            accept: receives a reason, and returns whether another try may now succeed.
        """
        with self._database.connection() as db:
            rows = db.execute(
                "SELECT key, reason FROM failure WHERE retry_at > last_at AND instr(reason, ?)", (phrase,)
            ).fetchall()
        if keys := [key for key, reason in rows if accept(str(reason))]:
            with self._database.exclusive() as db:
                db.executemany("UPDATE failure SET retry_at = last_at WHERE key = ?", ((key,) for key in keys))

    def import_reports(self, reports: Iterable[FailureReport]) -> ImportedFailures:
        """Import reports of other machines, except where something as new is known; all of them or, on error, none.

        A report is as old as its time says. A report with a time in the future counts as of now, and is imported only
        if nothing is known about the clip: with a wrong clock, it is impossible to tell which of the two is newer.
        """
        now = time.time()
        with self._database.connection() as db:
            # Collected outside of the state database: `reports` may be slow, and must not keep its lock meanwhile.
            db.execute(f"CREATE TEMP TABLE report ({_COLUMNS}, early, PRIMARY KEY (key)) WITHOUT ROWID")
            try:
                with transaction(db, "DEFERRED"):
                    columns = f"{_COLUMNS}, early".split(", ")[1:]
                    db.executemany(
                        f"INSERT INTO report VALUES ({_MARKS}, ?) ON CONFLICT (key) DO UPDATE SET"
                        + ", ".join(f" {column} = excluded.{column}" for column in columns)
                        + " WHERE excluded.last_at > last_at",
                        ((*astuple(_as_failure(report, now)), report.last_at > now) for report in reports),
                    )
                with transaction(db):
                    cached = db.execute(
                        "DELETE FROM report WHERE EXISTS (SELECT 1 FROM clip"
                        " WHERE clip.key = report.key AND (cached OR early OR stored_at >= last_at))"
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


def _as_failure(report: FailureReport, now: float) -> Failure:
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


def report_line(failure: Failure) -> str:
    """Return a failure as a line of the exchange file, without the line end."""
    return json.dumps(
        {
            "key": failure.key,
            "kind": failure.kind,
            "reason": failure.reason,
            "source": failure.source,
            # Whole seconds, rounded down: a failure never comes back to its own machine as something newer.
            "first_at": int(failure.first_at),
            "last_at": int(failure.last_at),
            "attempts": min(failure.attempts, _MAX_SHARED_ATTEMPTS),
        },
        ensure_ascii=False,
    )


def read_reports(file: BinaryIO) -> Iterator[FailureReport | InvalidLine]:
    """Yield each line of an untrusted exchange file that is not empty: the report, or why the line is invalid.

    Raises:
        KineticsError: the file is too long.
    """
    left = _MAX_FILE_BYTES
    for number in count(1):
        line = rest = file.readline(_MAX_LINE_BYTES + 1)
        left -= len(line)
        is_long = len(line) > _MAX_LINE_BYTES
        while is_long and left >= 0 and rest and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE_BYTES)
            left -= len(rest)
        if left < 0:
            raise KineticsError(
                f"cannot read the failures: the file is larger than {_MAX_FILE_BYTES:,} bytes; split it"
            )
        if not line:
            return
        try:
            if is_long:
                raise ValueError(f"it is longer than {_MAX_LINE_BYTES:,} bytes")
            if line.strip():
                yield _parse_line(line)
        except ValueError as error:
            yield InvalidLine(number, str(error))


def _parse_line(line: bytes) -> FailureReport:
    """Raise ValueError with the reason if the line is invalid."""
    try:
        values: Any = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    clip = parse_clip_name(f"{values.get('key')}.mp4")
    if clip is None:
        raise ValueError("its key is not the key of a clip")
    kind = values.get("kind")
    if kind not in LASTING_KINDS:
        raise ValueError(f"its kind is not one of {', '.join(LASTING_KINDS)}")
    last_at = _parse_time(values, "last_at", None)
    first_at = _parse_time(values, "first_at", last_at)
    if first_at > last_at:
        raise ValueError("its first_at is after its last_at")
    attempts = values.get("attempts", 1)
    if type(attempts) is not int or not 1 <= attempts <= _MAX_SHARED_ATTEMPTS:
        raise ValueError(f"its attempts is not a number from 1 to {_MAX_SHARED_ATTEMPTS:,}")
    reason, source = values.get("reason", ""), values.get("source", "")
    if not isinstance(reason, str) or not isinstance(source, str):
        raise ValueError("its reason or its source is not text")
    return FailureReport(clip, FailureKind(kind), one_line(reason), one_line(source), first_at, last_at, attempts)


def _parse_time(values: dict[str, Any], name: str, default: float | None) -> float:
    value: Any = values.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= _MAX_TIME:
        raise ValueError(f"its {name} is not a time in seconds since 1970")
    return float(value)
