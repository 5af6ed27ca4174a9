"""The limit of a cache: the cache keeps it, and nothing is evicted for a smaller one unless that is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kinetics_fs.errors import FetchError, StoreError
from kinetics_fs.store import Store, summarize_cache
from tests.support.store import (
    UNIT,
    assert_cache_full,
    assert_in_step,
    cached_numbers,
    clip,
    keep,
    keep_clips,
    write,
)


def test_the_limit_stays_with_the_cache(folder: Path) -> None:
    Store(folder, limit=3 * UNIT).close()
    with Store(folder) as store:
        assert store.usage().limit == 3 * UNIT
        assert store.capacity() == 3 * UNIT
        assert store.space().total == 3 * UNIT
        keep_clips(store, 5)
        assert cached_numbers(store, 5) == [2, 3, 4]
    summary = summarize_cache(folder)
    assert summary is not None
    assert summary.limit == 3 * UNIT


def test_a_new_cache_has_no_limit(folder: Path) -> None:
    with Store(folder) as store:
        assert store.usage().limit is None


def test_the_limit_is_replaced_and_removed(folder: Path) -> None:
    Store(folder, limit=3 * UNIT).close()
    with Store(folder, limit=4 * UNIT) as store:
        assert store.usage().limit == 4 * UNIT
    with Store(folder, limit="none") as store:
        assert store.usage().limit is None
        keep_clips(store, 5)
        assert cached_numbers(store, 5) == [0, 1, 2, 3, 4]


def test_a_limit_below_the_cached_bytes_is_refused(folder: Path) -> None:
    with Store(folder, limit=7 * UNIT) as store:
        keep_clips(store, 5)
    with pytest.raises(StoreError, match=r"so that 3 clips \(6\.3 MB\) would be evicted; give --shrink"):
        Store(folder, limit=2 * UNIT)
    with Store(folder) as store:
        assert store.usage().limit == 7 * UNIT
        assert cached_numbers(store, 5) == [0, 1, 2, 3, 4]
    assert_in_step(folder, processes=0)


def test_a_limit_of_exactly_the_cached_bytes_is_accepted(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 3)
    with Store(folder, limit=3 * UNIT) as store:
        assert cached_numbers(store, 3) == [0, 1, 2]


def test_shrinking_evicts_at_once_and_says_how_much(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(folder) as store:
        keep_clips(store, 5)
        store.touch(clip(0))
    with Store(folder, limit=2 * UNIT, shrink=True) as store:
        assert cached_numbers(store, 5) == [0, 4]
        assert store.usage().limit == 2 * UNIT
        assert_in_step(folder)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"evicted 3 clips (6.3 MB) from {folder}, because its limit is now 4.2 MB"
    ]


def test_pinned_clips_are_not_evicted_for_a_smaller_limit(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 4)
        store.pins.add([clip(0), clip(1)])
    for shrink in False, True:
        with pytest.raises(StoreError, match=r"4\.2 MB of them are pinned; .*kinetics-fs pin remove"):
            Store(folder, limit=2 * UNIT - 1, shrink=shrink)
    with pytest.raises(StoreError, match="2 clips"):
        Store(folder, limit=2 * UNIT)
    with Store(folder, limit=2 * UNIT, shrink=True) as store:
        assert cached_numbers(store, 4) == [0, 1]


def test_an_open_store_follows_a_limit_that_is_given_elsewhere(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(folder) as store:
        keep_clips(store, 4)
        with Store(folder, limit=2 * UNIT, shrink=True):
            pass
        caplog.clear()
        keep(store, clip(4))
        assert cached_numbers(store, 5) == [3, 4]
        assert store.usage().limit == 2 * UNIT
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            f"the limit of the cache {folder} was changed from no limit to 4.2 MB"
        ]


def test_the_last_limit_wins_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(folder, limit=3 * UNIT) as first, Store(folder, limit=2 * UNIT) as second:
        assert "was changed from 6.3 MB to 4.2 MB" in caplog.text
        assert first.usage().limit == second.usage().limit == 2 * UNIT
        keep_clips(first, 3)
        assert cached_numbers(first, 3) == [1, 2]
    caplog.clear()
    Store(folder, limit=2 * UNIT).close()
    assert not caplog.records


# Clips that cannot fit


def test_nothing_is_evicted_for_a_clip_that_does_not_fit_beside_the_pins(folder: Path) -> None:
    with Store(folder, limit=6 * UNIT) as store:
        keep_clips(store, 6)
        store.pins.add([clip(0), clip(1), clip(2)])
        with pytest.raises(FetchError) as caught:
            store.claim(clip(9), size=3 * UNIT + 1)
        assert_cache_full(caught.value)
        assert cached_numbers(store, 6) == [0, 1, 2, 3, 4, 5]
        claim = store.claim(clip(9), size=3 * UNIT)
        assert claim is not None
        with claim:
            assert cached_numbers(store, 6) == [0, 1, 2]


def test_nothing_is_evicted_for_a_finished_clip_that_does_not_fit(folder: Path) -> None:
    with Store(folder, limit=6 * UNIT) as store:
        keep_clips(store, 6)
        store.pins.add([clip(0), clip(1), clip(2)])
        claim = store.claim(clip(9), size=1)
        assert claim is not None
        with claim, pytest.raises(FetchError) as caught:
            claim.publish(write(claim, 3 * UNIT + 1), "test")
        assert_cache_full(caught.value)
        assert cached_numbers(store, 6) == [0, 1, 2, 4, 5], "the claim had evicted one for its byte"
        assert_in_step(folder)


def test_a_cache_smaller_than_a_typical_clip_evicts_only_for_sizes_that_are_known(folder: Path) -> None:
    with Store(folder, limit=UNIT // 2) as store:
        for number in range(4):
            keep(store, clip(number), UNIT // 8)
        with pytest.raises(FetchError) as caught:
            keep(store, clip(9), UNIT)
        assert_cache_full(caught.value)
        assert cached_numbers(store, 4) == [0, 1, 2, 3]
        keep(store, clip(4), UNIT // 8)
        assert cached_numbers(store, 5) == [1, 2, 3, 4]
