"""Access times: the least recently opened clip is evicted first, and an open writes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kinetics_fs.store import CacheLayout, Store, eviction
from tests.support.store import UNIT, cached_numbers, clip, is_absent, keep, query, read_clip


def test_the_least_recently_opened_clip_is_evicted_first(three: Path) -> None:
    with Store(three, limit=3 * UNIT) as store:
        assert read_clip(store, clip(1))
        assert read_clip(store, clip(0))
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [0, 1, 3]
        keep(store, clip(4))
        assert cached_numbers(store, 5) == [0, 3, 4]


def test_access_times_outlive_the_process(three: Path) -> None:
    with Store(three) as store:
        assert read_clip(store, clip(0))
    with Store(three, limit=3 * UNIT) as store:
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [0, 2, 3]


def test_an_older_access_time_does_not_replace_a_later_one(three: Path) -> None:
    with Store(three) as slow:
        assert read_clip(slow, clip(0))
        assert read_clip(slow, clip(1))
        with Store(three) as quick:
            assert read_clip(quick, clip(0))
    with Store(three, limit=3 * UNIT) as store:
        keep(store, clip(3), 2 * UNIT)
        assert cached_numbers(store, 4) == [0, 3]


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what any write changes: time and size of all files except the shared memory of SQLite."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }


def test_an_open_writes_nothing(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_WRITE_INTERVAL", 60.0)
    with Store(three) as store:
        before = state_of(three)
        for _ in range(100):
            for number in range(3):
                assert not is_absent(store, clip(number))
            assert is_absent(store, clip(9))
        assert state_of(three) == before


def test_access_times_of_many_opens_are_written_together(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_WRITE_INTERVAL", 0.05)

    def opened_at() -> list[float]:
        return [at for (at,) in query(CacheLayout(three).state_database, "SELECT opened_at FROM clip ORDER BY key")]

    with Store(three) as store:
        before = time.time()
        for number in range(3):
            assert not is_absent(store, clip(number))
        assert max(opened_at()) < before, "written at once"
        deadline = time.monotonic() + 10
        while min(opened_at()) < before:
            assert time.monotonic() < deadline, "never written"
            time.sleep(0.01)
