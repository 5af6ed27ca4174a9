"""The history of a cache: sums over all processes, and a limited number of rows."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from kinetics_fs.store import ActivityCounts, CacheLayout, HistoryRecorder, Store
from kinetics_fs.store import history as history_module
from tests.support.store import UNIT, clip, keep, query

_HOUR, _DAY = 3600, 86400
NOW = 1_800_000_000 // _HOUR * _HOUR + 1234


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the history sees; a test can change it."""
    clock = [float(NOW)]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    return clock


def test_the_activity_of_all_processes_in_a_step_is_one_row(folder: Path, clock: list[float]) -> None:
    with Store(folder) as one, Store(folder) as other:
        one.history.add(ActivityCounts(fetched=2, failed=1))
        keep(one, clip(0))
        clock[0] += 1
        other.history.add(ActivityCounts(fetched=3, from_cache=5, not_in_cache=7))
        at = NOW // history_module.STEP * history_module.STEP
        assert one.history.samples() == [(at, 1, UNIT, 5, 1, 5, 7)]
        clock[0] += history_module.STEP
        one.history.add(ActivityCounts())
        assert other.history.samples()[1:] == [(at + history_module.STEP, 1, UNIT, 0, 0, 0, 0)]


def test_old_rows_become_hours_and_are_removed_in_the_end(folder: Path, store: Store, clock: list[float]) -> None:
    # Every five minutes for 100 days, by somebody who never came to sum them up.
    first = (NOW - 100 * _DAY) // _HOUR * _HOUR
    times = range(first, NOW, history_module.STEP)
    rows = ", ".join(f"({at}, {turn}, {turn * 10}, 1, 2, 3, 4)" for turn, at in enumerate(times))
    query(CacheLayout(folder).state_database, f"INSERT INTO history VALUES {rows}")

    store.history.add(ActivityCounts(fetched=1000))

    samples = store.history.samples()
    assert len(samples) == query(CacheLayout(folder).state_database, "SELECT count(*) FROM history")[0][0] <= 2450
    assert samples[0].at >= NOW - 90 * _DAY > samples[0].at - _HOUR
    assert samples[0][1:] == (*last_of_hour(times, samples[0].at), 12, 24, 36, 48)
    old = [sample for sample in samples if sample.at < NOW - _DAY - _HOUR]
    assert len(old) >= 88 * 24
    assert {(sample.at % _HOUR, sample.fetched) for sample in old} == {(0, 12)}
    # Nothing that is summed up is lost, and what is summed up already stays so.
    kept = sum(at >= samples[0].at for at in times)
    assert sum(sample.fetched for sample in samples) == kept + 1000
    store.history.add(ActivityCounts())
    assert [sample[:1] + sample[3:] for sample in store.history.samples()] == [one[:1] + one[3:] for one in samples]


def last_of_hour(times: range, at: int) -> tuple[int, int]:
    """Return clips and bytes at the end of an hour."""
    turn = max(turn for turn, one in enumerate(times) if at <= one < at + _HOUR)
    return turn, turn * 10


def test_invalid_rows_are_ignored(folder: Path, store: Store) -> None:
    now = int(time.time())
    odd = ["1e300", "'much'", "x'00'", "-1", str(2**63 - 1)]
    rows = ", ".join(f"({now - age}, {value}, 0, 0, 0, 0, 0)" for age, value in enumerate(odd, 1))
    query(CacheLayout(folder).state_database, f"INSERT INTO history VALUES {rows}, ({2**62}, 0, 0, 0, 0, 0, 0)")

    assert store.history.samples() == []
    store.history.add(ActivityCounts(fetched=1))
    assert [sample.fetched for sample in store.history.samples()] == [1]


def test_activity_is_recorded_meanwhile_and_at_the_end(store: Store) -> None:
    done, noted = [ActivityCounts(fetched=90)], threading.Event()

    class Noted:
        def add(self, counts: ActivityCounts) -> None:
            store.history.add(counts)
            if counts.fetched:
                noted.set()

    with HistoryRecorder(Noted(), lambda: done[0], interval=0.01):  # type: ignore[arg-type]  # as much of a history as it needs
        done[0] = ActivityCounts(fetched=92)
        assert noted.wait(30)
        assert sum(sample.fetched for sample in store.history.samples()) == 2
        done[0] = ActivityCounts(fetched=97, from_cache=1)
    assert sum(sample.fetched for sample in store.history.samples()) == 7
    assert sum(sample.from_cache for sample in store.history.samples()) == 1


def test_activity_that_cannot_be_written_is_recorded_later(folder: Path, store: Store) -> None:
    query(CacheLayout(folder).state_database, "ALTER TABLE history RENAME TO away")
    done = ActivityCounts()
    recorder = HistoryRecorder(store.history, lambda: done)
    with recorder:
        done = ActivityCounts(fetched=3)
        recorder._record()
        query(CacheLayout(folder).state_database, "ALTER TABLE away RENAME TO history")
    assert [sample.fetched for sample in store.history.samples()] == [3]
