"""Layout of line charts over time, which the template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 26
_TICKS = 4
_DAY = 86400.0
_FEW = 60
"""Largest number of points at which each point gets a dot."""


@dataclass(frozen=True)
class Series:
    """A named series of pairs (time in seconds since the epoch, value), in order of time."""

    name: str
    values: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """The drawing of a series. `points` has the syntax of the attribute of an SVG polyline."""

    name: str
    points: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in pixels and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """The layout of a chart. `in_words` describes it to readers who cannot see it."""

    name: str
    title: str
    in_words: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart(
    name: str,
    title: str,
    series: Sequence[Series],
    span: tuple[float, float],
    readable: Callable[[float], str],
    *,
    step: float = 0,
) -> Chart:
    """Lay out a chart.

    Args:
        name: id of the chart in the page.
        title: heading of the chart.
        series: the series to draw.
        span: times of the left and the right edge, in seconds since the epoch.
        readable: formats a value for display.
        step: the smallest distance between two labels of the value axis; 0 for any.
    """
    begin, end = span[0], max(span[1], span[0] + 1)
    steps = _steps(max((value for one in series for _, value in one.values), default=0.0), step)
    most = steps[-1]

    def place(at: float, value: float) -> tuple[float, float]:
        across = _LEFT + (at - begin) / (end - begin) * (WIDTH - _LEFT - _RIGHT)
        up = HEIGHT - _BOTTOM - value / most * (HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(up, 1)

    lines = []
    for one in series:
        spots = [place(at, value) for at, value in one.values]
        lines.append(Line(one.name, " ".join(f"{x},{y}" for x, y in spots), spots if len(spots) <= _FEW else []))
    when = "%H:%M" if end - begin <= _DAY else "%d %b"
    times = [begin + (end - begin) * turn / (_TICKS - 1) for turn in range(_TICKS)]
    return Chart(
        name=name,
        title=title,
        in_words=" ".join(_in_words(one, readable) for one in series if one.values),
        lines=lines,
        across=[Tick(place(at, 0)[0], f"{datetime.fromtimestamp(at):{when}}") for at in times],
        up=[Tick(place(begin, value)[1], readable(value)) for value in steps],
    )


def _steps(most: float, least: float) -> list[float]:
    """Return round values from 0 to `most` or a little more, at least `least` apart."""
    rough = max(most, least, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9)), least)
    return [step * turn for turn in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _in_words(series: Series, readable: Callable[[float], str]) -> str:
    values = [value for _, value in series.values]
    return (
        f"{series.name}: {readable(values[0])} at first, {readable(values[-1])} at last,"
        f" between {readable(min(values))} and {readable(max(values))}."
    )
