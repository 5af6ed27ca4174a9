"""Click parameter types of the settings: sizes, hourly limits, orders, paths and lists of texts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from kinetics_fs.config import LIST_SEPARATOR, About

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


_DAY = 86_400
"""Seconds."""


class Size(click.ParamType[int]):
    """A number of bytes with its unit: `200GB` (powers of ten), `1.5TiB` (powers of two) or `1500000B`; 0 needs none.

    A number alone is refused: a user who writes 200 rarely means bytes.
    """

    name = "size"
    _per_second = ""
    """A pattern of what may follow the unit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = "" if isinstance(value, bool) else str(value).strip().upper()
        match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*([KMGT]?I?)(B?){self._per_second}", text)
        factor = {**_UNITS, **_BINARY_UNITS}.get(match[2]) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is not a size: write it as 200GB, 1.5TB or 500MiB", param, ctx)
        number = float(match[1])
        if number and not (match[2] or match[3]):
            example = f"{match[1]}GB or {match[1]}MB" if len(match[1]) < 6 else "200GB or 200MB"
            self.fail(f"{value!r} has no unit: write {example}; {match[1]}B if you mean bytes", param, ctx)
        return int(number * factor)


class Limit(Size):
    """A size, or `none`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return "none" if str(value).strip().lower() == "none" else super().convert(value, param, ctx)


class Rate(Size):
    """A size per second: `5MB` or `5MB/s`."""

    name = "rate"
    _per_second = r"\s*(?:/\s*S)?"


class Seconds(click.ParamType[float]):
    """A number of seconds, at most a day."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds: write it as 300 or 0.5", param, ctx)
        if not 0 < seconds <= _DAY:
            self.fail(f"{value} is not in the range of more than 0 to {_DAY:,} seconds", param, ctx)
        return seconds


class Hourly(click.ParamType[int]):
    """A number per hour: `300/h` or `300`."""

    name = "hourly"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,9})\s*(?:/\s*h)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a number per hour: write it as 300/h", param, ctx)
        return int(match[1])


class Order(click.ParamType[tuple[str, ...]]):
    """Some of these names, separated by commas, each at most once."""

    name = "order"

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        chosen = tuple(value) if isinstance(value, list | tuple) else tuple(re.split(r"\s*,\s*", str(value).strip()))
        if not chosen or not set(chosen) <= set(self._names) or len(set(chosen)) < len(chosen):
            self.fail(f"{value!r} is not an order of {', '.join(self._names)}: write it as youtube,archive", param, ctx)
        return chosen


class UntouchedPath(click.Path):
    """A path that parsing does not stat: click's own type does, and the stat of a dead mount can block forever.

    An environment variable may hold several.
    """

    envvar_list_splitter = LIST_SEPARATOR

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not isinstance(value, str | bytes | os.PathLike):  # from the configuration file
            self.fail(f"{value!r} is not a path: write it as a string", param, ctx)
        return Path(os.fsdecode(value))


class ListText(click.ParamType[str]):
    """Text of which an environment variable may hold several."""

    name = "text"
    envvar_list_splitter = LIST_SEPARATOR

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


def type_of(about: About) -> click.ParamType[Any]:
    """Return the parameter type of a setting."""
    match about.kind:
        case "text":
            return ListText()
        case "integer":
            bounded = about.minimum is not None or about.maximum is not None
            return click.IntRange(about.minimum, about.maximum) if bounded else click.INT
        case "seconds":
            return Seconds()
        case "size":
            return Size()
        case "limit":
            return Limit()
        case "rate":
            return Rate()
        case "hourly":
            return Hourly()
        case "order":
            return Order(about.choices)
        case "path":
            return UntouchedPath()
        case "choice":
            return click.Choice(about.choices)
        case "switch":
            return click.BOOL
