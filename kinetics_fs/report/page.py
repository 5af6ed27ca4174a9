"""Rendering of the collected data as a page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import filesize

from kinetics_fs.report.chart import Chart, Series, chart
from kinetics_fs.report.pictures import Picture
from kinetics_fs.store.history import STEP

_REASONS_SHOWN = 20
_HOUR = 3600.0
_SLOTS = (
    (16, STEP, "5 minutes"),
    (8 * 24, 3600, "hour"),
    (50 * 24, 6 * 3600, "6 hours"),
    (10**9, 12 * 3600, "12 hours"),
)
"""Width of the slots of the charts: (longest history in hours, slot in seconds, slot in words)."""
_FAR = 4
"""A limit above this multiple of the cached bytes is not drawn, because it would flatten the curve."""


def render(gathered: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Return the page as HTML.

    Args:
        gathered: the result of `gather`.
        pictures: the results of `pictures`.
    """
    environment = Environment(
        loader=PackageLoader("kinetics_fs.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "size": _size, "share": _share}
    style, script = (
        resources.files("kinetics_fs.report").joinpath(name).read_text() for name in ("page.css", "page.js")
    )
    made = datetime.fromisoformat(gathered["made"])
    samples = gathered["history"]
    return environment.get_template("page.html.j2").render(
        gathered,
        made_on=f"{made:%Y-%m-%d %H:%M %Z}",
        # The package's own files, and the only content that is not escaped; the policy allows them by their hashes.
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        pictures=pictures,
        charts=_charts(samples, gathered["cache"], made.timestamp()) if samples else [],
        days=_days(samples),
        reasons_shown=_REASONS_SHOWN,
    )


def _charts(samples: Sequence[Mapping[str, int]], cache: Mapping[str, Any], now: float) -> list[Chart]:
    first, now = samples[0]["at"], max(now, samples[-1]["at"])  # a sample can be newer than `made`
    slot, in_words = next((seconds, words) for hours, seconds, words in _SLOTS if now - first <= hours * _HOUR)
    begin = first // slot * slot
    number = int((now - begin) // slot) + 1
    end = begin + number * slot
    span = (min(begin, end - _HOUR), end)
    sums = {name: [0] * number for name in ("fetched", "failed", "from_cache", "not_in_cache")}
    for sample in samples:
        for name, values in sums.items():
            values[(sample["at"] - begin) // slot] += sample[name]

    def series(label: str, name: str) -> Series:
        return Series(label, [(begin + (turn + 0.5) * slot, value) for turn, value in enumerate(sums[name])])

    cached = Series("cached", [*((min(one["at"] + STEP, now), one["bytes"]) for one in samples), (now, cache["bytes"])])
    size = [cached]
    limit = cache["limit"]
    if limit is not None and limit <= _FAR * max(value for _, value in cached.values):
        size.append(Series("limit", [(begin, limit), (now, limit)]))
    return [
        chart("bytes", "Bytes of clips in the cache", size, span, _size),
        chart(
            "fetches",
            f"Clips fetched, in each {in_words}",
            [series("fetched", "fetched"), series("failed", "failed")],
            span,
            _number,
            step=1,
        ),
        chart(
            "opens",
            f"Clips opened in mounts, in each {in_words}",
            [series("from the cache", "from_cache"), series("not in the cache", "not_in_cache")],
            span,
            _number,
            step=1,
        ),
    ]


def _days(samples: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    """Return the samples summed by day, the latest day first."""
    days: dict[str, dict[str, Any]] = {}
    for sample in samples:
        name = f"{datetime.fromtimestamp(sample['at']):%Y-%m-%d}"
        day = days.setdefault(name, {"day": name, "fetched": 0, "failed": 0, "from_cache": 0, "not_in_cache": 0})
        day |= {"clips": sample["clips"], "bytes": sample["bytes"]}
        for count in ("fetched", "failed", "from_cache", "not_in_cache"):
            day[count] += sample[count]
    return list(reversed(days.values()))


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "–" if value is None else str(value)


def _size(value: Any) -> str:
    return filesize.decimal(round(value)) if isinstance(value, int | float) else _number(value)


def _share(part: int, whole: int) -> str:
    """Return a part of a whole in percent, rounded to one decimal; 0 and 100 only if they are exact."""
    percent = 100 * part / whole if whole else 0.0
    return f"{min(max(percent, 0.1), 99.9) if 0 < part < whole else percent:.1f}"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
