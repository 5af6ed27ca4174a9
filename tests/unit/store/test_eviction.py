"""Eviction: the limit holds, the least recently opened clip goes first, and nothing is evicted without need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_fs.errors import FetchError
from kinetics_fs.store import Store
from tests.support.store import (
    UNIT,
    assert_cache_full,
    assert_in_step,
    cached_numbers,
    clip,
    fast_folder,
    is_absent,
    is_whole,
    keep,
    keep_clips,
    write,
)

# The limit


class Step(NamedTuple):
    """An action on the store, with a clip."""

    verb: str
    number: int
    units: int


class Model:
    """A model of the store: a list of the cached clips, the least recently opened first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cached: list[int] = []
        self.sizes: dict[int, int] = {}

    def make_room(self, units: int) -> None:
        while sum(self.sizes[number] for number in self.cached) + units > self.limit:
            self.cached.pop(0)

    def keep(self, number: int, units: int) -> None:
        self.make_room(self.sizes.get(number, 1))  # the assumed size, at the claim
        self.make_room(units)  # the real size
        if number in self.cached:
            self.cached.remove(number)
        self.cached.append(number)
        self.sizes[number] = units

    def open(self, number: int) -> bool:
        if number not in self.cached:
            return False
        self.cached.remove(number)
        self.cached.append(number)
        return True

    def drop(self, number: int) -> None:
        if number in self.cached:
            self.cached.remove(number)


STEPS = st.lists(
    st.builds(
        Step, st.sampled_from(["keep", "keep", "open", "open", "drop", "reopen"]), st.integers(0, 4), st.integers(1, 3)
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(3, 6))
def test_the_store_behaves_like_the_model(steps: list[Step], limit: int) -> None:
    model = Model(limit)
    with fast_folder() as folder:
        store = Store(folder, limit=limit * UNIT)
        for verb, number, units in steps:
            match verb:
                case "keep":
                    keep(store, clip(number), units * UNIT)
                    model.keep(number, units)
                case "open":
                    assert is_whole(store, clip(number), model.sizes.get(number, 1) * UNIT) == model.open(number)
                case "drop":
                    store.remove(clip(number))
                    model.drop(number)
                case "reopen":
                    store.close()
                    store = Store(folder, limit=limit * UNIT)
            assert cached_numbers(store, 5) == sorted(model.cached)
            assert store.usage().bytes == sum(model.sizes[number] for number in model.cached) * UNIT <= limit * UNIT
            known = {clip(number).key: (units * UNIT, number in model.cached) for number, units in model.sizes.items()}
            assert store.sizes([clip(number).key for number in range(5)]) == known
        assert_in_step(folder)
        store.close()


def test_usage_counts_cached_and_reserved_bytes(folder: Path) -> None:
    with Store(folder, limit=10 * UNIT) as store:
        keep(store, clip(0), 3 * UNIT)
        claim = store.claim(clip(1))
        assert claim is not None
        with claim:
            usage = store.usage()
            assert (usage.clips, usage.bytes, usage.reserved, usage.limit) == (1, 3 * UNIT, UNIT, 10 * UNIT)
            disk = os.statvfs(folder)
            assert usage.disk_free == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.05)
        assert store.usage().reserved == 0


def test_a_smaller_limit_holds_at_once(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 6)
    with Store(folder, limit=2 * UNIT, shrink=True) as store:
        assert cached_numbers(store, 6) == [4, 5]
        assert store.evicted == 4
        keep(store, clip(6))
        assert cached_numbers(store, 7) == [5, 6]


def test_fetches_in_progress_reserve_space(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        keep_clips(store, 3)
        first, second = store.claim(clip(3)), store.claim(clip(4))
        assert first is not None
        assert second is not None
        with first, second:
            assert cached_numbers(store, 3) == [2]
            first.publish(write(first), "test")
            second.publish(write(second), "test")
        assert cached_numbers(store, 5) == [2, 3, 4]


def test_a_clip_of_known_size_reserves_exactly_that(folder: Path) -> None:
    with Store(folder, limit=4 * UNIT) as store:
        keep(store, clip(0), 3 * UNIT)
        store.remove(clip(0))
        keep(store, clip(1))
        keep(store, clip(2))
        claim = store.claim(clip(0))
        assert claim is not None
        with claim:
            assert store.usage().reserved == 3 * UNIT
            assert cached_numbers(store, 3) == [2]


def test_one_claim_can_evict_more_clips_than_one_query_returns(folder: Path) -> None:
    with Store(folder, limit=200 * 1000) as store:
        for number in range(150):
            keep(store, clip(number), 1)
    with Store(folder, limit=UNIT) as store:
        keep(store, clip(200), UNIT)
        assert cached_numbers(store, 201) == [200]
        assert_in_step(folder)


# Clips that cannot fit


def test_a_clip_larger_than_the_limit_is_refused(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        with pytest.raises(FetchError) as caught:
            keep(store, clip(9), 3 * UNIT + 1)
        assert_cache_full(caught.value)
        assert is_absent(store, clip(9))


def test_a_clip_that_is_refused_leaves_the_store_in_step(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        keep_clips(store, 3)
        with pytest.raises(FetchError):
            keep(store, clip(9), 3 * UNIT + 1)
        assert_in_step(folder)


def test_a_clip_that_is_refused_evicts_no_more_than_its_claim_did(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        keep_clips(store, 3)
        with pytest.raises(FetchError):
            keep(store, clip(9), 3 * UNIT + 1)
        assert [number for number in range(3) if is_whole(store, clip(number))] == [1, 2]


def test_a_clip_known_to_be_larger_than_the_limit_is_not_even_fetched(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 2)
        keep(store, clip(9), 4 * UNIT)
        store.remove(clip(9))
    with Store(folder, limit=3 * UNIT) as store:
        with pytest.raises(FetchError) as caught:
            store.claim(clip(9))
        assert_cache_full(caught.value)
        assert [number for number in range(2) if is_whole(store, clip(number))] == [0, 1]
        assert_in_step(folder)


def test_a_limit_below_the_assumed_size_still_holds_small_clips(folder: Path) -> None:
    with Store(folder, limit=UNIT // 2) as store:
        keep(store, clip(0), UNIT // 4)
        assert is_whole(store, clip(0), UNIT // 4)


# What nothing may go for


def test_a_clip_for_which_nothing_may_be_evicted_needs_space_for_itself_alone(folder: Path) -> None:
    with Store(folder, limit=2 * UNIT) as store:
        keep(store, clip(0))
        keep(store, clip(1), UNIT // 2)
        with pytest.raises(FetchError) as caught:
            store.claim(clip(2), size=UNIT // 2 + 1, protect_used_since=0)
        assert_cache_full(caught.value)

        claim = store.claim(clip(2), size=UNIT // 2, protect_used_since=0)
        assert claim is not None
        with claim:
            claim.publish(write(claim, UNIT // 2), "test")
        assert cached_numbers(store, 3) == [0, 1, 2]
        assert_in_step(folder)


def test_a_clip_that_grew_evicts_nothing_if_nothing_may_be_evicted(folder: Path) -> None:
    with Store(folder, limit=2 * UNIT) as store:
        keep(store, clip(0))
        claim = store.claim(clip(1), size=UNIT, protect_used_since=0)
        assert claim is not None
        with claim, pytest.raises(FetchError) as caught:
            claim.publish(write(claim, UNIT + 1), "test")
        assert_cache_full(caught.value)
        assert cached_numbers(store, 2) == [0]
        assert_in_step(folder)
