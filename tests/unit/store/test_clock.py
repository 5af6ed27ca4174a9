"""Times that were remembered while the clock was ahead: no delay lasts until the clock catches up."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import Store
from tests.support.store import clip

DAY = 86_400.0
YEAR = 365 * DAY
GONE = FetchError(FailureKind.GONE, "Video unavailable", source="youtube")


class Clock:
    """The time of the program, some seconds ahead of the right time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = YEAR
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("read", ["get", "all", "of", "unavailable"])
def test_delay_of_a_failure_begins_when_the_clock_is_right_again(store: Store, clock: Clock, read: str) -> None:
    store.failures.remember(clip(0), GONE)
    clock.ahead = 0.0
    readers: dict[str, Callable[[], object]] = {
        "get": lambda: store.failures.get(clip(0)),
        "all": lambda: list(store.failures.all()),
        "of": lambda: store.failures.of([clip(0)]),
        "unavailable": store.failures.unavailable,
    }
    readers[read]()

    failure = store.failures.get(clip(0))
    assert failure is not None
    assert failure.last_at <= time.time()
    assert failure.retry_at - time.time() == pytest.approx(7 * DAY, abs=5)
    clock.ahead = 7 * DAY + 60
    assert store.failures.unavailable() == {}
    failure = store.failures.get(clip(0))
    assert failure is not None and failure.retry_at < time.time()


@pytest.mark.parametrize("kind", [FailureKind.GONE, FailureKind.TRANSIENT, FailureKind.CONFIG])
def test_no_row_delays_a_retry_for_longer_than_its_kind_allows(store: Store, kind: FailureKind) -> None:
    store.failures.remember(clip(0), FetchError(kind, "no"))
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE failure SET retry_at = last_at + ?", (10 * YEAR,))

    failure = store.failures.get(clip(0))

    assert failure is not None
    assert failure.retry_at - failure.last_at <= 90 * DAY + 60
    assert all(clip.retry_at - time.time() <= 90 * DAY for clip in store.failures.unavailable().values())


def test_block_ends_although_the_clock_was_ahead(store: Store, clock: Clock) -> None:
    permit = store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
    store.throttle.record(permit, FetchError(FailureKind.BLOCKED, "HTTP 429", source="youtube", retry_after=60))
    clock.ahead = 0.0
    with pytest.raises(FetchError):
        store.throttle.acquire("youtube", max_per_hour=None, urgent=True)

    clock.ahead = 61.0
    probe = store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
    assert probe.is_probe
    clock.ahead = 0.0
    store.throttle.record(probe, None)
    assert not store.throttle.acquire("youtube", max_per_hour=None, urgent=True).is_probe


def test_lost_probe_of_a_wrong_clock_is_none(store: Store, clock: Clock) -> None:
    permit = store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
    store.throttle.record(permit, FetchError(FailureKind.BLOCKED, "HTTP 429", source="youtube", retry_after=60))
    clock.ahead += 61
    assert store.throttle.acquire("youtube", max_per_hour=None, urgent=True).is_probe

    clock.ahead = 0.0
    with pytest.raises(FetchError):
        store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
    clock.ahead = 3600.0
    assert store.throttle.acquire("youtube", max_per_hour=None, urgent=True).is_probe


def test_requests_of_a_wrong_clock_use_up_no_budget(store: Store, clock: Clock) -> None:
    store.throttle.acquire("youtube", max_per_hour=1, urgent=True)
    clock.ahead = 0.0

    assert store.throttle.acquire("youtube", max_per_hour=1, urgent=True)


def test_suspicion_of_a_wrong_clock_ends(store: Store, clock: Clock) -> None:
    for number in range(10):
        store.failures.remember(clip(number), GONE)
    for _ in range(2):
        control = store.throttle.acquire_control("youtube", max_per_hour=None)
        assert control is not None
        store.throttle.record_control(control, GONE)
    clock.ahead = 0.0
    with pytest.raises(FetchError):
        store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
    clock.ahead = 3600.0

    control = store.throttle.acquire_control("youtube", max_per_hour=None)
    assert control is not None
    store.throttle.record_control(control, None)

    assert not store.throttle.is_suspected("youtube")
    assert store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
