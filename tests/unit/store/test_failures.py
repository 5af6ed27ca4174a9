"""Remembered failures: their content, the delay until the next retry, and untrusted rows."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import Failure, Store
from kinetics_fs.store.failures import retry_delay
from tests.support.store import clip, keep, query

DAY = 86_400.0

FIRST_AND_MOST = {
    FailureKind.GONE: (7 * DAY, 90 * DAY),
    FailureKind.CREDENTIALS: (DAY, 30 * DAY),
    FailureKind.BLOCKED: (300.0, 3600.0),
    FailureKind.TRANSIENT: (30.0, 3600.0),
    FailureKind.CORRUPT: (3600.0, 7 * DAY),
    FailureKind.CONFIG: (0.0, 0.0),
    FailureKind.LOCAL: (0.0, 0.0),
}
"""Delay in seconds: after the first failure, and its maximum."""


def wait(failure: Failure) -> float:
    return failure.retry_at - failure.last_at


def test_every_kind_has_its_delay() -> None:
    assert set(FIRST_AND_MOST) == set(FailureKind)


@pytest.mark.parametrize("kind", FailureKind)
def test_the_delay_doubles_with_each_failure_up_to_a_maximum(store: Store, kind: FailureKind) -> None:
    first, most = FIRST_AND_MOST[kind]
    waits = [wait(store.failures.remember(clip(0), FetchError(kind, "no"))) for _ in range(10)]
    assert waits == pytest.approx([min(first * 2**attempt, most) for attempt in range(10)])


@given(st.sampled_from(FailureKind), st.integers(1, 10**9), st.none() | st.floats())
def test_no_delay_is_shorter_than_the_one_before_or_than_requested_up_to_a_day(
    kind: FailureKind, attempts: int, asked: float | None
) -> None:
    delay = retry_delay(kind, attempts, asked)
    wanted = min(asked or 0, DAY)
    assert delay <= retry_delay(kind, attempts + 1, asked)
    assert not delay < wanted  # nor for what is no number
    assert delay <= max(FIRST_AND_MOST[kind][1], DAY if asked else 0)


@pytest.mark.parametrize("asked", [DAY + 1, 1e9, 1e300])
def test_no_source_can_ban_a_clip_for_longer_than_a_day(store: Store, asked: float) -> None:
    failure = store.failures.remember(clip(0), FetchError(FailureKind.BLOCKED, "no", retry_after=asked))
    assert wait(failure) == pytest.approx(DAY)


def test_a_failure_of_another_kind_resets_the_attempts(store: Store) -> None:
    for _ in range(3):
        trouble = store.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "no"))
    assert trouble.attempts == 3
    gone = store.failures.remember(clip(0), FetchError(FailureKind.GONE, "no"))
    assert gone.attempts == 1
    assert wait(gone) == pytest.approx(7 * DAY)
    assert gone.first_at == gone.last_at > trouble.last_at
    again = store.failures.remember(clip(0), FetchError(FailureKind.GONE, "for another reason"))
    assert (again.attempts, again.first_at) == (2, gone.first_at)


def test_a_longer_delay_that_the_source_requests_is_used(store: Store) -> None:
    long = store.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "no", retry_after=5000))
    short = store.failures.remember(clip(1), FetchError(FailureKind.TRANSIENT, "no", retry_after=5))
    assert wait(long) == pytest.approx(5000)
    assert wait(short) == pytest.approx(30)


def test_a_failure_of_this_machine_never_delays_the_next_try(store: Store) -> None:
    failure = store.failures.remember(clip(0), FetchError(FailureKind.CONFIG, "no ffmpeg"))
    assert failure.retry_at <= time.time()
    assert store.failures.get(clip(0)) == failure


def test_a_failure_outlives_a_restart(folder: Path) -> None:
    error = FetchError(FailureKind.TRANSIENT, "timed out – 読み込み", source="youtube", cause_errno=errno.ETIMEDOUT)
    before = time.time()
    with Store(folder) as store:
        first = store.failures.remember(clip(0), FetchError(FailureKind.TRANSIENT, "at first"))
        store.failures.remember(clip(0), error)
    with Store(folder) as store:
        failure = store.failures.get(clip(0))
    assert failure is not None
    assert (failure.key, failure.kind, failure.reason, failure.source, failure.errno, failure.attempts) == (
        clip(0).key,
        FailureKind.TRANSIENT,
        "timed out – 読み込み",
        "youtube",
        errno.ETIMEDOUT,
        2,
    )
    assert before <= first.first_at == failure.first_at <= failure.last_at <= time.time()
    again = failure.error()
    assert (again.kind, again.reason, again.source, again.errno) == (
        error.kind,
        error.reason,
        error.source,
        error.cause_errno,
    )


def test_a_clip_that_was_never_tried_has_no_failure(store: Store) -> None:
    assert store.failures.get(clip(0)) is None
    assert list(store.failures.all()) == []


def test_publishing_forgets_the_failure_of_that_clip_alone(store: Store) -> None:
    for number in range(2):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, "no"))
    keep(store, clip(0))
    assert store.failures.get(clip(0)) is None
    assert store.failures.get(clip(1)) is not None
    store.remove(clip(0))
    assert wait(store.failures.remember(clip(0), FetchError(FailureKind.GONE, "no"))) == pytest.approx(7 * DAY)


def test_failures_are_listed_the_latest_first(store: Store) -> None:
    for number in (1, 0, 2, 1):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, "no"))
    assert [failure.key for failure in store.failures.all()] == [clip(number).key for number in (1, 2, 0)]


def test_failures_are_counted_by_kind(store: Store) -> None:
    assert store.failures.counts() == {}
    for number, kind in enumerate([FailureKind.GONE, FailureKind.BLOCKED, FailureKind.GONE]):
        store.failures.remember(clip(number), FetchError(kind, "no"))
    assert store.failures.counts() == {FailureKind.GONE: 2, FailureKind.BLOCKED: 1}


def test_failures_can_be_forgotten_one_by_one_or_all_at_once(store: Store) -> None:
    for number in range(4):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, "no"))
    assert store.failures.forget([clip(0), clip(2), clip(9)]) == 2
    assert {failure.key for failure in store.failures.all()} == {clip(1).key, clip(3).key}
    assert store.failures.forget([]) == 0
    assert store.failures.forget() == 2
    assert store.failures.forget() == 0
    assert list(store.failures.all()) == []


def test_failures_of_another_process_are_known(store: Store) -> None:
    with Store(store.folder) as other:
        other.failures.remember(clip(0), FetchError(FailureKind.GONE, "no"))
        assert store.failures.get(clip(0)) == other.failures.get(clip(0))


def test_failures_of_some_kinds(store: Store) -> None:
    kinds = [FailureKind.GONE, FailureKind.BLOCKED, FailureKind.GONE, FailureKind.LOCAL]
    for number, kind in enumerate(kinds):
        store.failures.remember(clip(number), FetchError(kind, "no"))
    log = store.failures
    assert [failure.clip for failure in log.all([FailureKind.GONE])] == [clip(2), clip(0)]
    assert len(list(log.all([FailureKind.GONE, FailureKind.LOCAL]))) == 3
    assert log.forget([clip(0), clip(1)], [FailureKind.GONE]) == 1
    assert log.forget(kinds=[FailureKind.GONE, FailureKind.CORRUPT]) == 1
    assert {failure.clip for failure in log.all()} == {clip(1), clip(3)}


def test_failures_of_some_clips(store: Store) -> None:
    for number in range(3):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, str(number)))
    wanted = [clip(number) for number in (2, 0, 7)]
    found = store.failures.of(wanted)
    assert {wanted: failure.reason for wanted, failure in found.items()} == {clip(0): "0", clip(2): "2"}
    assert store.failures.of([]) == {}


def test_a_delay_can_be_ended_without_forgetting_the_failure(store: Store) -> None:
    for number in range(2):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, "no"))
    store.failures.make_due(clip(0))
    due, other = store.failures.get(clip(0)), store.failures.get(clip(1))
    assert due is not None and due.retry_at <= time.time()
    assert other is not None and other.retry_at > time.time()
    assert store.failures.remember(clip(0), FetchError(FailureKind.GONE, "no")).attempts == 2


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        ("{id}: Video unavailable", "…: Video unavailable"),
        ("Unsupported URL: http://host/watch/{id}", "Unsupported URL: http://host/watch/…"),
        ("the video ends after 12.3 s, before the clip begins at 20.0 s",) * 2,
        ("no room for 1,500,000 bytes", "no room for … bytes"),
        ("incoming/0123456789abcdef0123456789abcdef/source.mp4: h264", "incoming/…/source.mp4: h264"),
        ("HTTP Error 404: Not OpenClipFile",) * 2,
        ("[Errno 28] No space left on device",) * 2,
    ],
)
def test_reasons_are_grouped_without_the_parts_that_make_them_unique(store: Store, reason: str, group: str) -> None:
    failures = []
    for number in range(2):
        text = reason.format(id=clip(number).youtube_id).replace("12.3", f"{number + 5}.{number}")
        failures.append(store.failures.remember(clip(number), FetchError(FailureKind.GONE, text)))
    assert len({failure.group for failure in failures}) == 1
    if "12.3" not in group:
        assert failures[0].group == group


def test_reasons_with_different_status_codes_are_not_grouped(store: Store) -> None:
    groups = {
        store.failures.remember(clip(0), FetchError(FailureKind.GONE, f"HTTP Error {status}: no")).group
        for status in (404, 410)
    }
    assert len(groups) == 2


def test_control_characters_of_a_reason_are_escaped(store: Store) -> None:
    reason = "one\r\ntwo \x1b[2J\x1b]0;title\x07 \x9b31m \u202e \u2028 \ud83d café"
    remembered = store.failures.remember(clip(0), FetchError(FailureKind.GONE, reason))
    assert store.failures.get(clip(0)) == remembered
    assert remembered.reason.isprintable()
    assert remembered.reason.startswith("one two \\x1b[2J")
    assert remembered.reason.endswith("café")


ODD: dict[str, list[object]] = {
    "key": ["../../x", "", 5, b"\xff"],
    "kind": ["no such kind", "", 7],
    "first_at": ["yesterday", -1.0, float("inf")],
    "retry_at": [1e300, b"x"],
    "attempts": ["many", b"\x00", 0, 2**63 - 1],
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in ODD.items() for value in values])
def test_an_invalid_row_is_ignored(store: Store, column: str, value: object) -> None:
    for number in range(2):
        store.failures.remember(clip(number), FetchError(FailureKind.GONE, "no"))
    query(store.layout.state_database, f"UPDATE failure SET {column} = ? WHERE key = ?", value, clip(0).key)
    assert [failure.clip for failure in store.failures.all()] == [clip(1)]
    assert store.failures.get(clip(0)) is None
    assert set(store.failures.counts()) == {FailureKind.GONE}
    assert store.failures.remember(clip(0), FetchError(FailureKind.GONE, "no")).attempts == 1
    assert store.failures.forget() == (3 if column == "key" else 2)


def test_control_characters_in_a_row_are_escaped(store: Store) -> None:
    store.failures.remember(clip(0), FetchError(FailureKind.GONE, "no"))
    query(store.layout.state_database, "UPDATE failure SET reason = ?, errno = 99999", "\x1b[2J" + "x" * 10_000)
    failure = store.failures.get(clip(0))
    assert failure is not None
    assert failure.reason.isprintable() and len(failure.reason) <= 500
    assert failure.errno is None


@pytest.mark.parametrize("reason", ["", "half of a character \ud83d", "a\0b", "x" * 1_000_000])
def test_no_reason_is_too_strange_to_be_remembered(store: Store, reason: str) -> None:
    store.failures.remember(clip(0), FetchError(FailureKind.GONE, reason))
    failure = store.failures.get(clip(0))
    assert failure is not None
    assert failure.kind is FailureKind.GONE
