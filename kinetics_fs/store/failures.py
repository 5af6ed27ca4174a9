"""Remembered failures: what is known of a clip that could not be had, and when to try again."""

from __future__ import annotations

from dataclasses import dataclass

from kinetics_fs.errors import FailureKind, FetchError

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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip could not be had. Times are seconds since the epoch."""

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


def retry_delay(error: FetchError, attempts: int) -> float:
    """Seconds to leave a clip alone after its `attempts`-th failure in a row.

    A wait that the origin asked for is honoured where it is longer.
    """
    first, most = _RETRY_AFTER[error.kind]
    return max(min(first * 2.0 ** min(attempts - 1, 32), most), error.retry_after or 0.0)
