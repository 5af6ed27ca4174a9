"""Pins: pinned clips are never evicted, and all others are evicted as without pins."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FetchError
from kinetics_fs.store import CacheLayout, PinCounts, Store
from kinetics_fs.store.eviction import EVICTABLE, PINNED
from tests.support.store import (
    UNIT,
    SmallDisk,
    assert_cache_full,
    assert_in_step,
    cached_numbers,
    clip,
    is_whole,
    keep,
    keep_clips,
    lose,
    query,
    write,
)


def test_pinned_clips_stay_and_count_toward_the_limit(folder: Path) -> None:
    with Store(folder, limit=4 * UNIT) as store:
        keep_clips(store, 4)
        assert store.pins.add([clip(0), clip(1), clip(1)]) == (PinCounts(2, 2, 2 * UNIT), 2)
        for number in range(4, 9):
            keep(store, clip(number))
        assert cached_numbers(store, 9) == [0, 1, 7, 8]
        assert store.usage().bytes == 4 * UNIT
    with Store(folder, limit=3 * UNIT, shrink=True) as store:
        assert cached_numbers(store, 9) == [0, 1, 8]
        keep(store, clip(9))
        assert cached_numbers(store, 10) == [0, 1, 9]
        store.mark_unused(clip(0))
        keep(store, clip(10))
        assert cached_numbers(store, 11) == [0, 1, 10]
        assert_in_step(folder)


def test_a_pin_applies_to_clips_that_are_stored_later_or_again(folder: Path) -> None:
    with Store(folder, limit=2 * UNIT) as store:
        assert store.pins.add([clip(0)]) == (PinCounts(1, 0, 0), 1)
        assert store.pins.add([clip(0)]) == (PinCounts(1, 0, 0), 0)
        keep_clips(store, 3)
        assert cached_numbers(store, 3) == [0, 2]

        store.remove(clip(0))
        assert store.pins.totals() == (1, 0, 0)
        for number in (0, 1, 2):
            keep(store, clip(number))
        assert cached_numbers(store, 3) == [0, 2]


def test_unpinned_clips_are_evicted_by_access_time(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        store.pins.add(map(clip, range(3)))
        keep_clips(store, 3)
        assert store.pins.remove([clip(0), clip(8)]) == (1, 1, UNIT)
        assert cached_numbers(store, 3) == [0, 1, 2], "nothing is evicted before space is needed"
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [1, 2, 3]
        store.pins.add([clip(9)])
        assert store.pins.remove_all() == (3, 2, 2 * UNIT)
        assert store.pins.totals() == (0, 0, 0)
        for number in range(4, 6):
            keep(store, clip(number))
        assert cached_numbers(store, 6) == [3, 4, 5]
        store.remove(clip(3))
        for number in (0, 1, 4):
            keep(store, clip(number))
        assert cached_numbers(store, 6) == [0, 1, 4], "no clip is pinned any more"


def test_pins_take_effect_in_processes_that_run_already(folder: Path) -> None:
    with Store(folder, limit=2 * UNIT) as store, Store(folder, limit=2 * UNIT) as other:
        keep(store, clip(0))
        keep(store, clip(1))
        other.pins.add([clip(0)])
        keep(store, clip(2))
        assert cached_numbers(store, 3) == [0, 2]
        other.pins.remove_all()
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [2, 3]


def test_a_failed_pin_pins_nothing(store: Store) -> None:
    def clips() -> Iterator[Clip]:
        yield clip(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.pins.add(clips())
    assert store.pins.totals() == (0, 0, 0)
    assert store.pins.add([clip(1)]).new == 1


def test_status_counts_pins(store: Store) -> None:
    keep(store, clip(0))
    store.pins.add([clip(0), clip(1)])
    cache = store.status().cache
    assert (cache.pinned_clips, cache.pinned_cached, cache.pinned_bytes) == (2, 1, UNIT)
    assert store.pins.of([clip(1).key, clip(2).key]) == (1, 0, 0)


# Where there is nothing else to evict


def test_a_fetch_that_does_not_fit_beside_pins_does_not_begin(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        store.pins.add(map(clip, range(3)))
        keep_clips(store, 2)
        keep(store, clip(9))
        keep(store, clip(2))  # the clip fits, because unpinned clips are evicted
        assert cached_numbers(store, 10) == [0, 1, 2]
        for wanted, size in ((clip(3), None), (clip(3), 1), (clip(9), None)):
            with pytest.raises(FetchError) as caught:
                store.claim(wanted, size=size)
            assert_cache_full(caught.value)
            assert "kinetics-fs pin remove" in caught.value.reason
        assert_in_step(folder)
        store.pins.remove([clip(1)])
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [0, 2, 3]


def test_a_clip_that_turns_out_too_large_beside_pins_costs_no_other(folder: Path) -> None:
    with Store(folder, limit=4 * UNIT) as store:
        store.pins.add(map(clip, range(2)))
        keep_clips(store, 3)
        claim = store.claim(clip(3))
        assert claim is not None
        with claim, pytest.raises(FetchError) as caught:
            claim.publish(write(claim, 2 * UNIT + 1), "test")
        assert "kinetics-fs pin remove" in caught.value.reason
        assert cached_numbers(store, 4) == [0, 1, 2]
        assert_in_step(folder)


def test_other_fetches_in_progress_do_not_prevent_a_fetch(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        store.pins.add(map(clip, range(2)))
        keep_clips(store, 2)
        first, second = store.claim(clip(2)), store.claim(clip(3))
        assert first is not None
        assert second is not None
        with first, second:
            first.publish(write(first), "test")
            second.publish(write(second), "test")
        assert cached_numbers(store, 4) == [0, 1, 3]


def test_a_clip_that_took_the_last_space_is_found_by_a_waiting_caller(folder: Path) -> None:
    with Store(folder, limit=UNIT) as store, Store(folder, limit=UNIT) as waiting:
        store.pins.add([clip(0)])
        keep(store, clip(0))
        claim = waiting.claim(clip(0))
        assert claim is not None
        with claim:
            assert is_whole(waiting, clip(0))
        assert_in_step(folder, processes=2)


def test_the_error_does_not_name_pins_if_nothing_may_be_evicted_anyway(folder: Path) -> None:
    with Store(folder, limit=UNIT) as store:
        store.pins.add([clip(0)])
        keep(store, clip(0))
        with pytest.raises(FetchError) as caught:
            store.claim(clip(1), size=1, protect_used_since=0)
        assert "pin remove" not in caught.value.reason
        with pytest.raises(FetchError) as caught:
            store.claim(clip(1), size=1, protect_used_since=time.time() + 1)
        assert "pin remove" in caught.value.reason


def test_min_free_holds_on_a_disk_with_pinned_clips_alone(small_disk: SmallDisk) -> None:
    folder = small_disk(40 * UNIT) / "cache"
    with Store(folder) as store:
        for number in range(4):
            claim = store.claim(clip(number))
            assert claim is not None
            with claim:
                path = claim.folder / "finished.mp4"
                path.write_bytes(os.urandom(4 * UNIT))
                claim.publish(path, "test")
        free = store.usage().disk_free
    with Store(folder, min_free=free - UNIT // 2) as store:
        store.pins.add(map(clip, range(4)))
        with pytest.raises(FetchError) as caught:
            store.claim(clip(4))
        assert_cache_full(caught.value)
        assert "kinetics-fs pin remove" in caught.value.reason
        store.pins.remove([clip(0)])
        claim = store.claim(clip(4))
        assert claim is not None
        with claim:
            assert cached_numbers(store, 4) == [1, 2, 3]


# What becomes of the state database


def test_pins_outlive_a_lost_table_of_files(folder: Path) -> None:
    with Store(folder) as store:
        store.pins.add([clip(0)])
        keep(store, clip(0))
    lose(CacheLayout(folder).clip_table)
    with Store(folder, limit=2 * UNIT) as store:
        assert store.pins.totals() == (1, 0, 0)
        keep_clips(store, 3)
        assert cached_numbers(store, 3) == [0, 2]


def test_a_clip_whose_process_died_before_the_state_database_knew_it_is_pinned(folder: Path) -> None:
    with Store(folder) as store:
        store.pins.add([clip(0)])
        keep(store, clip(0))
    query(CacheLayout(folder).state_database, "DELETE FROM clip")
    with Store(folder) as store:
        assert store.pins.totals() == (1, 1, UNIT)


def test_eviction_does_not_read_the_rows_of_pinned_clips(store: Store) -> None:
    store.pins.add(map(clip, range(100_000)))
    with store._database.exclusive() as db:
        db.executemany(
            "INSERT INTO clip VALUES (?, 'source', 1, '', '', 0, 0, 1, 1, NULL)",
            ((clip(number).key,) for number in range(100_000)),
        )

    def plan(statement: str) -> str:
        with store._database.connection() as db:
            return "; ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", (1,)))

    by_index = "SEARCH clip USING COVERING INDEX clip_by_pin_and_use (pinned=? AND opened_at<?)"
    assert plan(f"SELECT key, size {EVICTABLE} LIMIT 1") == by_index
    assert plan(f"SELECT size {EVICTABLE}") == by_index
    assert plan(f"SELECT 1 {PINNED} LIMIT 1") == by_index
    assert store.pins.totals() == (100_000, 100_000, 100_000)
