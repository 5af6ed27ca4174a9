"""Counts and rates of fetches."""

from __future__ import annotations

from kinetics_fs.catalog import Clip
from kinetics_fs.control.status import FetchRate
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.stats import FetchStats, RecentRate


def test_rate_covers_a_sliding_minute() -> None:
    now = 1000.0
    recent = RecentRate(60.0, lambda: now)
    recent.add(clips=1, size=600)
    recent.add(clips=1, size=600)
    assert recent.rate() == FetchRate(clips_per_minute=2.0, bytes_per_second=20)
    now = 1030.0
    recent.add(clips=1, size=1200)
    assert recent.rate() == FetchRate(clips_per_minute=3.0, bytes_per_second=40)
    now = 1060.0  # the first two are older than a minute, and the ring reuses their slot
    recent.add(clips=1, size=600)
    assert recent.rate() == FetchRate(clips_per_minute=2.0, bytes_per_second=30)
    now = 1091.0
    assert recent.rate() == FetchRate(clips_per_minute=1.0, bytes_per_second=10)
    now = 1060.0 + 60 * 10**6
    assert recent.rate() == FetchRate(clips_per_minute=0.0, bytes_per_second=0)


def test_rate_of_a_young_process_covers_its_life() -> None:
    now = 0.0
    recent = RecentRate(3600.0, lambda: now)
    recent.add(clips=1, size=60)
    now = 120.0
    assert recent.rate() == FetchRate(clips_per_minute=0.5, bytes_per_second=0)


def test_last_failures_are_five_and_the_latest_comes_first() -> None:
    stats = FetchStats()
    for number in range(7):
        stats.record_failed(Clip("-demo_video", number, number + 1), "youtube", FailureKind.GONE, "private", 5.0)
    assert stats.failed == 7
    assert [failure.clip for failure in stats.last_failures()] == [
        Clip("-demo_video", number, number + 1).key for number in (6, 5, 4, 3, 2)
    ]


class Observer:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def on_fetched(self, source: str, size: int, seconds: float | None) -> None:
        self.calls.append((source, size, seconds))

    def on_undelivered(self, source: str, kind: FailureKind) -> None:
        self.calls.append((source, kind))


def test_observer_receives_each_result() -> None:
    stats = FetchStats()
    stats.observer = observer = Observer()
    stats.record_fetched("archive", 100, 1.5)
    stats.record_fetched("archive", 50)
    stats.record_undelivered("youtube", FailureKind.BLOCKED)
    assert observer.calls == [("archive", 100, 1.5), ("archive", 50, None), ("youtube", FailureKind.BLOCKED)]
    assert stats.fetched == 2
