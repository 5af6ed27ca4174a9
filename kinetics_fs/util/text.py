"""Words for people, and text of other programs."""

from __future__ import annotations

import json
import pwd
import re
import time
from datetime import datetime
from typing import Any

_DETAIL = re.compile(r"\b[0-9a-f]{32}\b|(?<!error )(?<!errno )(?<![a-z0-9])[0-9]+(?:[.,:][0-9]+)*", re.IGNORECASE)


def count(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural except for 1: `1 clip`, `0 clips`, `1,200 fetches`."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith(('s', 'sh', 'ch', 'x')) else 's'}"


def duration(seconds: float) -> str:
    """Return a time span in the unit that fits it: `40 s`, `12 min`, `3 h 20 min`, `4 days`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 10:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours} h" if hours < 48 else count(round(hours / 24), "day")


def short_time(at: float) -> str:
    """Return a time in seconds since the epoch in the zone of the user: `14:32` today, else `2026-11-27 14:32`."""
    try:
        local = datetime.fromtimestamp(at)
    except (OverflowError, OSError, ValueError):  # of a mount that reports anything
        return "an unknown time"
    is_today = local.date() == datetime.fromtimestamp(time.time()).date()
    return f"{local:%H:%M}" if is_today else f"{local:%Y-%m-%d %H:%M}"


def without_details(reason: str, key: str) -> str:
    """Return the reason of a failure with `…` for the parts that make it unique: the id of the video, tokens, numbers.

    Args:
        reason: the reason.
        key: `Clip.key` of the clip, which begins with the id.
    """
    return _DETAIL.sub("…", reason.replace(key[:11], "…"))


def user_name(uid: int) -> str:
    """Return the name of a user of this machine, or the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that another program wrote.

    Raises:
        ValueError: the text is not JSON, or is nested more deeply than Python's recursion limit.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
