"""Click options made from the table of settings, and the way from options to `Settings`."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from kinetics_fs.config import (
    ENVIRONMENT_PREFIX,
    LIST_SEPARATOR,
    About,
    Settings,
    setting_name,
    table,
)
from kinetics_fs.errors import KineticsError
from kinetics_fs.util import logs
from kinetics_fs.util.files import atomic_write

P = ParamSpec("P")
R = TypeVar("R")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Size(click.ParamType[int]):
    """Bytes, as `1500000`, `200GB` (powers of ten) or `1.5TiB` (powers of two)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if type(value) is int and value >= 0:  # a bool is an int, too
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(value).strip().upper())
        factor = {**_UNITS, **_BINARY_UNITS}.get(match[2]) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is not a size: write it as 200GB, 1.5TB or 500MiB", param, ctx)
        return int(float(match[1]) * factor)


class Rate(click.ParamType[int]):
    """Clips an hour, as `300/h` or `300`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,9})\s*(?:/\s*h)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a rate: write it as 300/h", param, ctx)
        return int(match[1])


class Order(click.ParamType[tuple[str, ...]]):
    """Some of these names, with commas between them, none of them twice."""

    name = "order"

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        chosen = tuple(value) if isinstance(value, list | tuple) else tuple(re.split(r"\s*,\s*", str(value).strip()))
        if not chosen or not set(chosen) <= set(self._names) or len(set(chosen)) < len(chosen):
            self.fail(f"{value!r} is not an order of {', '.join(self._names)}: write it as youtube,archive", param, ctx)
        return chosen


class UntouchedPath(click.Path):
    """A path that is not looked at: click's own asks for its status, and may wait for ever for that of a dead mount.

    An environment variable may hold several.
    """

    envvar_list_splitter = LIST_SEPARATOR

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(os.fsdecode(value))


class ListText(click.ParamType[str]):
    """Text of which an environment variable may hold several."""

    name = "text"
    envvar_list_splitter = LIST_SEPARATOR

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


def _type_of(about: About) -> click.ParamType[Any]:
    match about.kind:
        case "count":
            return click.IntRange(min=1)
        case "number of clips":
            return click.IntRange(min=0)
        case "integer":
            return click.INT
        case "number":
            return click.FloatRange(min=0, min_open=True)
        case "height":
            return click.IntRange(min=2)
        case "port":
            return click.IntRange(min=0, max=65535)
        case "size":
            return Size()
        case "rate":
            return Rate()
        case "order":
            return Order(about.choices)
        case "path":
            return UntouchedPath()
        case "choice":
            return click.Choice(about.choices)
        case "switch":
            return click.BOOL
        case _:
            return ListText()


class _SettingOption(click.Option):
    """An option that looks into the configuration file before it takes its default."""

    def consume_value(self, ctx: click.Context, opts: Any) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        config: dict[str, Any] = ctx.find_root().obj or {}
        name = setting_name(self.name or "")
        if source is ParameterSource.DEFAULT and name in config:
            value = config[name]
            if self.multiple and not isinstance(value, list):
                value = [value]
            for one in value if self.multiple else [value]:
                if isinstance(self.type, click.Path) and not isinstance(one, str):
                    raise click.BadParameter(f"{one!r} is not a path", ctx, self)
            source = ParameterSource.DEFAULT_MAP
        return value, source


def _option(name: str, attribute: str, about: About, default: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    switch = about.kind == "switch"
    declaration = f"--{name}/--no-{name}" if switch else f"--{name}"
    return click.option(
        declaration,
        attribute,
        cls=_SettingOption,
        type=_type_of(about),
        default=default,
        multiple=about.many,
        metavar=about.metavar or None,
        help=about.help,
        envvar=ENVIRONMENT_PREFIX + name.upper().replace("-", "_"),
        show_default=about.shown_default or default not in (None, ()),
    )


def with_settings(*groups: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Gives a command the options of these groups, and its function one argument `settings` for them all."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        chosen = [(name, *row) for name, row in table().items() if row[1].group in groups]

        @functools.wraps(function)
        def command(**values: Any) -> R:
            given = {attribute: values.pop(attribute) for _, attribute, _, _ in chosen}
            if "log_format" in given:
                logs.set_up(style=given["log_format"])
            config = click.get_current_context().find_root().obj or {}
            return function(settings=Settings(**given, ytdlp=config.get("ytdlp", {})), **values)

        decorated: Callable[..., R] = command
        for name, attribute, about, default in reversed(chosen):
            decorated = _option(name, attribute, about, default)(decorated)
        return decorated

    return decorate


def selection_given() -> bool:
    """Whether the command that runs was told what to select, in whatever place settings come from."""
    context = click.get_current_context()
    return any(
        about.group == "selection" and context.get_parameter_source(attribute) is not ParameterSource.DEFAULT
        for attribute, about, _ in table().values()
    )


def given_settings() -> set[str]:
    """The settings for which the command that runs was given flags."""
    context = click.get_current_context()
    return {
        name
        for name, (attribute, _, _) in table().items()
        if context.get_parameter_source(attribute) is ParameterSource.COMMANDLINE
    }


def json_option(function: Callable[..., R]) -> Callable[..., R]:
    """`--json`, for every command that reports."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def verify_option(function: Callable[..., R]) -> Callable[..., R]:
    """`--verify`."""
    return click.option(
        "--verify",
        "depth",
        type=click.Choice(["none", "container", "decode"]),
        default="container",
        show_default=True,
        metavar="HOW",
        help="How closely clips are looked at: not at all (none), all frames are there (container), all decode"
        " (decode).",
    )(function)


def archive_options(function: Callable[..., R]) -> Callable[..., R]:
    """`--archive` and `--jobs`."""
    function = click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        metavar="N",
        help="Archives to read at the same time.",
    )(function)
    return archive_option("Only this archive, by its path below --archive-url; repeatable.")(function)


def archive_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`--archive`."""
    return click.option("--archive", "archives", metavar="NAME", multiple=True, help=help)


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open the file that a command writes for its user; `-` is standard output.

    A regular file appears when it is complete and replaces an earlier one. A pipe or a device is written to directly.

    Raises:
        KineticsError: the file cannot be written.
    """
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        target = path.resolve()
        with target.open("wb") if target.exists() and not target.is_file() else atomic_write(target) as file:
            yield file
    except OSError as error:
        raise KineticsError(f"cannot write {path}: {error.strerror}") from error
