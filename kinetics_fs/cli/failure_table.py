"""Remembered failures as a table and as CSV, for `failures list`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kinetics_fs.cli.options import print_csv

if TYPE_CHECKING:
    from kinetics_fs.store import Failure

# The columns of .kinetics/failures.csv, with the clip in place of its paths.
_COLUMNS = ("clip", "kind", "reason", "source", "attempts", "first", "last", "retry_after")


def print_failures_csv(failures: Sequence[Failure]) -> None:
    """Print failures as CSV, with times in ISO 8601 and UTC."""
    rows = (
        [
            *(failure.key, failure.kind, failure.reason, failure.source, failure.attempts),
            *(_timestamp(at) for at in (failure.first_at, failure.last_at, failure.retry_at)),
        ]
        for failure in failures
    )
    print_csv(_COLUMNS, rows)


def failure_table(failures: Sequence[Failure]) -> Iterator[str]:
    """Yield a header, then a line per failure."""
    now = time.time()
    width = max(5, *(len(f"{failure.attempts:,}") for failure in failures))
    yield f"{'clip':<25}  {'kind':<11}  {'tries':>{width}}  {'last failure':<16}  {'next retry':<16}  reason"
    for failure in failures:
        next_retry = _local_time(failure.retry_at) if failure.retry_at > now else "when opened"
        source = f"{failure.source}: " if failure.source else ""
        yield (
            f"{failure.key:<25}  {failure.kind:<11}  {failure.attempts:>{width},}  {_local_time(failure.last_at):<16}"
            f"  {next_retry:<16}  {source}{failure.reason}"
        )


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
