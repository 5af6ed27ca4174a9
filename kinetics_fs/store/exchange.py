"""The file in which knowledge of dead clips goes from one machine to another.

JSON lines, an object per clip, with the names that `Failure` has::

    {"key": "-a1B2c3D4e5_000010_000020", "kind": "gone", "reason": "Video unavailable", "source": "youtube",
     "first_at": 1767225600, "last_at": 1769904000, "attempts": 2}

(in one line). JSON lines and not CSV, for a line is a record whatever stands in it: a broken one costs no other, as an
open quote would. Only `key`, `kind` and `last_at` must be there; other names are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any, BinaryIO, NamedTuple

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.errors import FailureKind, KineticsError
from kinetics_fs.store.failures import LAST_TIME, Failure, FailureReport, one_line

SHAREABLE_KINDS = (FailureKind.GONE, FailureKind.CORRUPT, FailureKind.CREDENTIALS)
"""The kinds that may say something about the clip itself. The others are about a machine, its network or an hour."""

KINDS_SHARED_BY_DEFAULT = (FailureKind.GONE,)
"""The kind that is true everywhere: what is corrupt may be so for a bad connection or an old ffmpeg, and for what one
lacks credentials depends on the country and the account."""

_LONGEST_LINE = 8192
_MOST_BYTES = 256 * 1024**2  # of a file: with all clips of the largest release it has 150 MB
_MOST_ATTEMPTS = 1000


class RefusedLine(NamedTuple):
    """A line of which no use can be made, and why."""

    number: int
    reason: str


def report_line(failure: Failure) -> str:
    """A failure as a line of the file, without its end."""
    return json.dumps(
        {
            "key": failure.key,
            "kind": failure.kind,
            "reason": failure.reason,
            "source": failure.source,
            # Whole seconds, and never later than it was: nobody's own knowledge comes back to them as news.
            "first_at": int(failure.first_at),
            "last_at": int(failure.last_at),
            "attempts": min(failure.attempts, _MOST_ATTEMPTS),
        },
        ensure_ascii=False,
    )


def read_reports(file: BinaryIO) -> Iterator[FailureReport | RefusedLine]:
    """Every line of a file from anywhere, but empty ones: a report, or why it is none.

    Raises:
        KineticsError: the file is too long. Comes while iterating.
    """
    left = _MOST_BYTES
    for number in count(1):
        line = rest = file.readline(_LONGEST_LINE + 1)
        left -= len(line)
        is_long = len(line) > _LONGEST_LINE
        while is_long and left >= 0 and rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
            left -= len(rest)
        if left < 0:
            raise KineticsError(f"the list of failures is longer than {_MOST_BYTES:,} bytes")
        if not line:
            return
        try:
            if is_long:
                raise ValueError(f"it is longer than {_LONGEST_LINE:,} bytes")
            if line.strip():
                yield _parse(line)
        except ValueError as error:
            yield RefusedLine(number, str(error))


def _parse(line: bytes) -> FailureReport:
    """Raises ValueError with the reason."""
    try:
        fields: Any = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    clip = parse_clip_name(f"{fields.get('key')}.mp4")
    if clip is None:
        raise ValueError("its key is not that of a clip")
    kind = fields.get("kind")
    if kind not in SHAREABLE_KINDS:
        raise ValueError(f"its kind is not one of {', '.join(SHAREABLE_KINDS)}")
    last_at = _time(fields, "last_at", None)
    first_at = _time(fields, "first_at", last_at)
    if first_at > last_at:
        raise ValueError("its first_at is after its last_at")
    attempts = fields.get("attempts", 1)
    if type(attempts) is not int or not 1 <= attempts <= _MOST_ATTEMPTS:
        raise ValueError(f"its attempts are not a number from 1 to {_MOST_ATTEMPTS:,}")
    reason, source = fields.get("reason", ""), fields.get("source", "")
    if not isinstance(reason, str) or not isinstance(source, str):
        raise ValueError("its reason or its source is not text")
    return FailureReport(clip, FailureKind(kind), one_line(reason), one_line(source), first_at, last_at, attempts)


def _time(fields: dict[str, Any], name: str, default: float | None) -> float:
    value: Any = fields.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= LAST_TIME:
        raise ValueError(f"its {name} is not a time in seconds since 1970")
    return float(value)
