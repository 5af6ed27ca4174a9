"""Progress bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from kinetics_fs.cli import progress
from kinetics_fs.cli.progress import ProgressBars
from kinetics_fs.control.describe import describe_progress, prefetch_notes
from kinetics_fs.control.status import PrefetchState
from kinetics_fs.util.text import duration
from tests.support.mounts import wait_until
from tests.support.status import STATUS

[PREFETCH] = STATUS.prefetches


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_speed_follows_the_clock_and_leaves_out_earlier_work(clock: Clock) -> None:
    bar = ProgressBars().add("all archives", "bytes")
    bar.show(900_000_000, 1_000_000_000, without_work=900_000_000)
    clock.now += 10
    assert bar.words() == "900.0 MB of 1.0 GB"
    bar.show(920_000_000, 1_000_000_000, without_work=900_000_000)
    assert bar.words() == "920.0 MB of 1.0 GB, 2.0 MB/s, about 40 s left"
    clock.now += 10  # nothing arrives
    assert bar.words() == "920.0 MB of 1.0 GB, 1.0 MB/s, about 80 s left"
    clock.now += 100
    bar.show(920_000_000, 1_000_000_000, without_work=900_000_000)
    clock.now += 100
    assert bar.words() == "920.0 MB of 1.0 GB"


def test_clips_that_were_there_are_no_speed(clock: Clock) -> None:
    bar = ProgressBars().add("exporting", "clips")
    bar.show(0, 1000, without_work=0, size=0)
    clock.now += 10
    bar.show(910, 1000, without_work=900, size=15_000_000)
    assert bar.words() == "910 of 1,000 clips, 15.0 MB, 1.5 MB/s, about 90 s left"


def test_lines_are_printed_if_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "_LINE_INTERVAL", 60.0)
    lines: list[str] = []
    with ProgressBars() as bars:
        bars.add("hidden", "clips", visible=False)
        bars.add("part", "bytes", detail=True).show(5, 10)
        bars.add("full", "clips").show(2, 2)
        bars.add("verifying", "clips").show(1, 2, notes=["1 bad\x1b[2J"])

        def has_line() -> bool:
            lines.extend(capsys.readouterr().err.splitlines())
            return bool(lines)

        wait_until(has_line)
    assert set(lines) == {r"verifying: 1 of 2 clips; 1 bad\x1b[2J"}
    assert len(lines) < 10, "the time between lines grows"
    assert not sys.stderr.isatty()


def test_words_about_a_prefetch() -> None:
    running = replace(PREFETCH, clips=100, bytes=3_000_000, bytes_per_second=500_000, seconds_left=90.0)
    assert describe_progress(running) == "6 of 100 clips, 3.0 MB, 500.0 kB/s, about 90 s left"
    assert prefetch_notes(running) == ["1 unavailable (1 gone)"]
    limited = replace(running, limit="300 fetches an hour", seconds_left=350_000.0, failed=0)
    assert describe_progress(limited) == "5 of 100 clips, 3.0 MB, 500.0 kB/s"
    assert prefetch_notes(limited) == ["300 fetches an hour: about 4 days left"]
    blocked = replace(
        limited,
        state=PrefetchState.WAITING,
        kind="blocked",
        reason="youtube: HTTP 429",
        retry_at=time.time() + 720,
    )
    assert prefetch_notes(blocked) == ["blocked: next try in 12 min; youtube: HTTP 429"]
    full = replace(blocked, kind="local", reason="the cache is full")
    assert prefetch_notes(full) == ["waiting for space: next try in 12 min; the cache is full"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5_900, "98 min"),
        (6_000, "1 h 40 min"),
        (12_000, "3 h 20 min"),
        (36_000, "10 h"),
        (172_800, "2 days"),
        (350_000, "4 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
