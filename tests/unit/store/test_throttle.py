"""Circuit breaker and rate limit: a source that blocks this address gets no requests, and none gets too many."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import Permit, RateLimited, Store

HOUR = 3600.0


def acquire(store: Store, *, max_per_hour: int | None = None, urgent: bool = True) -> Permit:
    return store.throttle.acquire("youtube", max_per_hour=max_per_hour, urgent=urgent)


def refused(store: Store) -> FetchError:
    with pytest.raises(FetchError) as caught:
        acquire(store)
    assert caught.value.kind is FailureKind.BLOCKED
    assert caught.value.source == "youtube"
    return caught.value


def blocked(retry_after: float | None = None) -> FetchError:
    return FetchError(FailureKind.BLOCKED, "HTTP 429", source="youtube", retry_after=retry_after)


def pass_time(store: Store, seconds: float) -> None:
    """Make everything that is remembered older by some seconds."""
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        for column in ("blocked_at", "blocked_until", "probe_until", "recovered_at"):
            db.execute(f"UPDATE breaker SET {column} = {column} - ?", (seconds,))
        db.execute("UPDATE request SET at = at - ?", (seconds,))


def left(store: Store) -> float:
    """Return the seconds until the end of the block."""
    [state] = store.throttle.states()
    assert state.blocked_until is not None
    return state.blocked_until - time.time()


def test_a_block_stops_all_processes_until_it_ends(store: Store) -> None:
    store.throttle.record(acquire(store), blocked(retry_after=90))

    error = refused(store)
    assert "HTTP 429" in error.reason
    assert 85 < (error.retry_after or 0) <= 90
    with Store(store.folder) as another:
        refused(another)
    pass_time(store, 91)
    assert acquire(store).is_probe


def test_other_sources_are_not_affected(store: Store) -> None:
    store.throttle.record(acquire(store), blocked())

    assert store.throttle.acquire("archive", max_per_hour=None, urgent=True)


def test_one_probe_at_a_time_is_allowed(store: Store) -> None:
    store.throttle.record(acquire(store), blocked())
    pass_time(store, 61)

    probe = acquire(store)
    assert "tests the source" in refused(store).reason
    store.throttle.record(probe, None)
    assert not acquire(store).is_probe
    assert not acquire(store).is_probe


@pytest.mark.parametrize("kind", [FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT])
def test_a_verdict_on_a_clip_ends_the_block(store: Store, kind: FailureKind) -> None:
    store.throttle.record(acquire(store), blocked())
    pass_time(store, 61)

    store.throttle.record(acquire(store), FetchError(kind, "…"))

    assert not acquire(store).is_probe


@pytest.mark.parametrize("kind", [FailureKind.TRANSIENT, FailureKind.LOCAL, FailureKind.CONFIG])
def test_trouble_on_the_way_does_not_end_the_block(store: Store, kind: FailureKind) -> None:
    store.throttle.record(acquire(store), blocked())
    pass_time(store, 61)

    store.throttle.record(acquire(store), FetchError(kind, "…"))

    assert acquire(store).is_probe


def test_a_probe_without_an_outcome_counts_as_lost(store: Store) -> None:
    store.throttle.record(acquire(store), blocked())
    pass_time(store, 61)
    acquire(store)
    refused(store)

    pass_time(store, 601)

    assert acquire(store).is_probe


def test_the_pause_grows_up_to_a_maximum(store: Store) -> None:
    store.throttle.record(acquire(store), blocked(retry_after=1000))
    waits = []
    for _ in range(12):
        waits.append(left(store))
        pass_time(store, waits[-1] + 1)
        store.throttle.record(acquire(store), blocked(retry_after=1000))

    assert waits[:3] == [pytest.approx(1000, abs=5), pytest.approx(2000, abs=5), pytest.approx(4000, abs=5)]
    assert waits[-1] == pytest.approx(24 * HOUR, abs=5)


def test_the_growth_outlives_a_short_recovery_but_not_a_long_one(store: Store) -> None:
    for wait, peace in ((60, 60), (120, 7 * HOUR), (60, 0)):
        store.throttle.record(acquire(store), blocked())
        assert left(store) == pytest.approx(wait, abs=5)
        pass_time(store, wait + 1)
        store.throttle.record(acquire(store), None)
        pass_time(store, peace)


def test_outcomes_of_requests_that_began_before_the_block_change_nothing(store: Store) -> None:
    first, second, third = (acquire(store) for _ in range(3))
    store.throttle.record(first, blocked(retry_after=60))

    store.throttle.record(second, blocked(retry_after=60))
    store.throttle.record(third, None)

    assert left(store) == pytest.approx(60, abs=5)
    refused(store)


def test_blocks_can_be_reset(store: Store) -> None:
    store.throttle.record(acquire(store), blocked(retry_after=10 * HOUR))

    assert store.throttle.reset_blocks() == 1

    assert not acquire(store).is_probe
    assert store.throttle.reset_blocks() == 0


@pytest.mark.parametrize("until", ["1e300", "9e999", "'soon'", "NULL", "x'00'"])
def test_invalid_rows_block_nothing(store: Store, until: str) -> None:
    store.throttle.record(acquire(store), blocked())
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute(f"UPDATE OR IGNORE breaker SET blocked_until = coalesce({until}, 0), trips = 'many'")

    assert not acquire(store).is_probe
    assert all(state.blocked_until is None for state in store.throttle.states())


def test_a_clock_that_was_set_back_blocks_for_a_day_at_most(store: Store) -> None:
    store.throttle.record(acquire(store), blocked(retry_after=60))
    pass_time(store, -1000 * HOUR)

    assert left(store) <= 24 * HOUR


def test_the_budget_of_an_hour(store: Store) -> None:
    for _ in range(10):
        acquire(store, max_per_hour=10)
    with Store(store.folder) as another, pytest.raises(RateLimited) as caught:
        acquire(another, max_per_hour=10)
    assert 3590 < caught.value.seconds <= 3600

    pass_time(store, 3590)
    with pytest.raises(RateLimited) as caught:
        acquire(store, max_per_hour=10)
    assert 0 < caught.value.seconds <= 10
    pass_time(store, 11)
    acquire(store, max_per_hour=10)
    assert [state.fetches_last_hour for state in store.throttle.states()] == [1]


def test_the_reserve_is_for_urgent_requests(store: Store) -> None:
    for _ in range(8):
        acquire(store, max_per_hour=10, urgent=False)
    with pytest.raises(RateLimited):
        acquire(store, max_per_hour=10, urgent=False)

    acquire(store, max_per_hour=10, urgent=True)
    acquire(store, max_per_hour=10, urgent=True)
    with pytest.raises(RateLimited):
        acquire(store, max_per_hour=10, urgent=True)


def test_the_smallest_budget_has_no_reserve(store: Store) -> None:
    acquire(store, max_per_hour=1, urgent=False)
    with pytest.raises(RateLimited):
        acquire(store, max_per_hour=1, urgent=True)


def test_a_used_up_budget_starts_no_probe(store: Store) -> None:
    store.throttle.record(acquire(store, max_per_hour=1), blocked())
    pass_time(store, 61)

    with pytest.raises(RateLimited):
        acquire(store, max_per_hour=1)

    assert acquire(store, max_per_hour=2).is_probe


def test_a_cancelled_request_counts_for_nothing(store: Store) -> None:
    store.throttle.record(acquire(store), blocked())
    pass_time(store, 61)

    for _ in range(3):
        probe = acquire(store, max_per_hour=2)
        assert probe.is_probe
        store.throttle.cancel(probe)

    assert acquire(store, max_per_hour=2).is_probe
