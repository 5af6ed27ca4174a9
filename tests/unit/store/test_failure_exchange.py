"""Failure reports of other machines: which lines are read, which reports are imported, and what they never replace."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.store import FailureReport, ImportedFailures, InvalidLine, Store, read_reports, report_line
from tests.support.store import clip, is_whole, keep, keep_clips, query

DAY = 86_400.0
NOW = time.time()


def report(number: int = 0, kind: FailureKind = FailureKind.GONE, **others: Any) -> FailureReport:
    values: dict[str, Any] = {
        "reason": "removed",
        "source": "youtube",
        "first_at": NOW - 9 * DAY,
        "last_at": NOW - DAY,
        "attempts": 2,
    }
    return FailureReport(clip(number), kind, **(values | others))


def line(**others: Any) -> bytes:
    values: dict[str, Any] = {"key": clip(0).key, "kind": "gone", "last_at": 1_700_000_000} | others
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()


def parse(*lines: bytes) -> list[FailureReport | InvalidLine]:
    return list(read_reports(io.BytesIO(b"\n".join(lines))))


# The file


def test_a_written_line_is_read_back(store: Store) -> None:
    said = 'he said: "gone", \\ 読み込み 🦊'
    failure = store.failures.remember(clip(1), FetchError(FailureKind.GONE, said, source="youtube"))

    [found] = parse(report_line(failure).encode())

    assert isinstance(found, FailureReport)
    assert (found.clip, found.kind, found.reason, found.source) == (clip(1), FailureKind.GONE, said, "youtube")
    assert failure.last_at - 1 < found.last_at <= failure.last_at
    assert found.attempts == 1


@pytest.mark.parametrize("sign", ["\\", '"', "🦊", "\x1b"])
def test_the_longest_reason_and_source_fit_into_a_line(store: Store, sign: str) -> None:
    error = FetchError(FailureKind.GONE, sign * 9999, source=sign * 9999)
    store.failures.remember(clip(0), error)
    failure = store.failures.get(clip(0))
    assert failure is not None

    [found] = parse(report_line(failure).encode())

    assert isinstance(found, FailureReport)
    assert found.reason == failure.reason


def test_only_key_kind_and_time_are_required() -> None:
    [found] = parse(line(more={"x": [1]}))

    assert found == FailureReport(clip(0), FailureKind.GONE, "", "", 1_700_000_000, 1_700_000_000, 1)


BAD = [
    b"nonsense",
    b"\xff\xfe",
    b"5",
    b"[" * 5000,
    b"{" * 5000,
    b'{"key": "' + b"x" * 9000 + b'"}',
    line(key=None),
    line(key="../../etc/passwd"),
    line(key="-abcdefghij_000020_000010"),
    line(key=["x"]),
    line(kind=None),
    line(kind="nothing"),
    line(kind={"gone": 1}),
    line(kind="blocked"),
    line(kind="transient"),
    line(kind="config"),
    line(kind="local"),
    line(last_at=None),
    line(last_at="2026-01-01"),
    line(last_at=True),
    line(last_at=-1),
    line(last_at=float("nan")),
    line(last_at=float("inf")),
    line(last_at=10**400),
    line(last_at=1_700_000_000_000),
    line(first_at=1_700_000_001),
    line(attempts=0),
    line(attempts=1.5),
    line(attempts=10**9),
    line(reason=5),
    line(source=["youtube"]),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_an_invalid_line_is_yielded_with_its_number_and_costs_no_other(bad: bytes) -> None:
    first, invalid, last = parse(line(), b"", bad, line(key=clip(1).key))

    assert isinstance(first, FailureReport)
    assert isinstance(invalid, InvalidLine)
    assert invalid.number == 3
    assert invalid.reason.isprintable()
    assert isinstance(last, FailureReport) and last.clip == clip(1)


@given(st.binary(max_size=300))
def test_no_line_stops_the_reading(data: bytes) -> None:
    found = parse(data, line())
    assert isinstance(found[-1], FailureReport)


def test_control_characters_are_escaped() -> None:
    [found] = parse(line(reason="a\x1b[2Jb\nc\x9b", source="you\x07tube" + "x" * 5000))

    assert isinstance(found, FailureReport)
    assert found.reason.isprintable() and found.source.isprintable()
    assert len(found.source) <= 500


class Endless(io.RawIOBase):
    """An endless file, perhaps of one endless line."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = (self._piece * (len(buffer) // len(self._piece) + 1))[: len(buffer)]
        buffer[:] = data
        return len(data)


@pytest.mark.parametrize("piece", [b"x", b"x" * 5000 + b"\n"])
def test_an_endless_file_is_refused(piece: bytes) -> None:
    with pytest.raises(KineticsError, match="larger than"):
        for _ in read_reports(io.BufferedReader(Endless(piece))):
            pass


# Import


def take(store: Store, *reports: FailureReport) -> ImportedFailures:
    return store.failures.import_reports(reports)


def test_a_report_becomes_a_failure_that_says_where_it_is_from(store: Store) -> None:
    assert take(store, report(), report(1, attempts=1)) == ImportedFailures(new=2, known=0, cached=0)

    failure = store.failures.get(clip(0))
    assert failure is not None
    assert (failure.kind, failure.reason, failure.source) == (FailureKind.GONE, "removed", "imported youtube")
    assert (failure.first_at, failure.last_at, failure.attempts) == (NOW - 9 * DAY, NOW - DAY, 2)
    # The wait is counted from when it failed there.
    assert failure.retry_at == pytest.approx(NOW - DAY + 14 * DAY)


def test_to_import_twice_changes_nothing(store: Store) -> None:
    reports = [report(), report(1, kind=FailureKind.CORRUPT), report(2, last_at=NOW + 99 * DAY)]
    take(store, *reports)
    before = list(store.failures.all())

    assert take(store, *reports) == ImportedFailures(new=0, known=3, cached=0)

    assert list(store.failures.all()) == before


def test_an_imported_failure_that_comes_back_stays_as_it_is(store: Store) -> None:
    take(store, report())
    failure = store.failures.get(clip(0))
    assert failure is not None
    [again] = parse(report_line(failure).encode())
    assert isinstance(again, FailureReport)

    with Store(store.folder.with_name("other")) as other:
        take(other, again)
        found = other.failures.get(clip(0))

    assert found is not None
    assert found.source == "imported youtube"
    assert take(store, again) == ImportedFailures(new=0, known=1, cached=0)


def test_a_newer_failure_of_this_machine_stays(store: Store) -> None:
    own = store.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "timed out", source="youtube"))

    assert take(store, report(last_at=own.last_at - 5)) == ImportedFailures(new=0, known=1, cached=0)

    assert store.failures.get(clip(0)) == own


def test_newer_reports_replace_what_was_known(store: Store) -> None:
    store.failures.remember(clip(0), FetchError(FailureKind.BLOCKED, "not a bot?", source="youtube"))
    query(store.layout.state_database, "UPDATE failure SET first_at = 5, last_at = 5")
    take(store, report(1))

    assert take(store, report(0), report(1, last_at=NOW - 5, reason="news")) == ImportedFailures(
        new=2, known=0, cached=0
    )

    assert {failure.kind for failure in store.failures.all()} == {FailureKind.GONE}
    assert {failure.reason for failure in store.failures.all()} == {"removed", "news"}


def test_of_two_reports_of_a_clip_the_later_counts(store: Store) -> None:
    for order in (1, -1):
        take(store, *[report(0, reason="later"), report(0, last_at=NOW - 2 * DAY)][::order])
        failure = store.failures.get(clip(0))
        assert failure is not None and failure.reason == "later"
        store.failures.forget()


def test_a_clip_that_is_cached_or_was_stored_later_is_not_gone(store: Store) -> None:
    keep_clips(store, 2)
    store.remove(clip(1))

    reports = [report(number, last_at=last_at) for number in range(2) for last_at in (NOW - DAY, NOW + DAY)]
    for one in reports:
        assert take(store, one) == ImportedFailures(new=0, known=0, cached=1)

    assert is_whole(store, clip(0))
    assert list(store.failures.all()) == []
    query(store.layout.state_database, "UPDATE clip SET stored_at = 5")
    assert take(store, report(0), report(1)) == ImportedFailures(new=1, known=0, cached=1)


def test_a_report_with_a_time_in_the_future_bans_a_clip_no_longer_than_one_of_now(store: Store) -> None:
    take(store, report(first_at=NOW + DAY, last_at=1e11, attempts=1))
    failure = store.failures.get(clip(0))
    assert failure is not None
    assert failure.first_at <= failure.last_at <= time.time()
    assert failure.retry_at - failure.last_at == pytest.approx(7 * DAY)


def test_a_report_with_a_time_in_the_future_replaces_nothing(store: Store) -> None:
    own = store.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "timed out"))
    take(store, report(1))
    before = store.failures.get(clip(1))

    assert take(store, report(0, last_at=NOW + DAY), report(1, last_at=NOW + DAY)).new == 0

    assert store.failures.get(clip(0)) == own
    assert store.failures.get(clip(1)) == before


def test_an_error_imports_nothing(store: Store) -> None:
    def reports() -> Iterator[FailureReport]:
        yield report(0)
        raise KineticsError("the list breaks off")

    for _ in range(2):  # nor does anything remain that prevents the next import
        with pytest.raises(KineticsError):
            store.failures.import_reports(reports())
    assert list(store.failures.all()) == []
    assert take(store, report(0)).new == 1


def test_a_slow_import_does_not_keep_the_lock(store: Store, folder: Path) -> None:
    def reports() -> Iterator[FailureReport]:
        with Store(folder) as other:
            other.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "meanwhile"))
            keep(other, clip(1))
        yield report(0)
        yield report(1)
        yield report(2)

    assert store.failures.import_reports(reports()) == ImportedFailures(new=1, known=1, cached=1)
