"""Click options made from the settings table, options that commands share, and the way from options to `Settings`."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from kinetics_fs.cli.command import Option
from kinetics_fs.config import LIST_SEPARATOR, SECTIONS, About, Setting, Settings, table
from kinetics_fs.errors import KineticsError
from kinetics_fs.util import logs
from kinetics_fs.util.files import atomic_write

P = ParamSpec("P")
R = TypeVar("R")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Size(click.ParamType[int]):
    """A number of bytes: `1500000`, `200GB` (powers of ten) or `1.5TiB` (powers of two)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if type(value) is int and value >= 0:  # excludes bool, a subclass of int
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(value).strip().upper())
        factor = {**_UNITS, **_BINARY_UNITS}.get(match[2]) if match else None
        if match is None or factor is None:
            self.fail(f"{value!r} is not a size: write it as 200GB, 1.5TB or 500MiB", param, ctx)
        return int(float(match[1]) * factor)


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


def _type_of(about: About) -> click.ParamType[Any]:
    match about.kind:
        case "text":
            return ListText()
        case "integer":
            bounded = about.minimum is not None or about.maximum is not None
            return click.IntRange(about.minimum, about.maximum) if bounded else click.INT
        case "seconds":
            return click.FloatRange(min=0, min_open=True)
        case "size":
            return Size()
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


def _option(setting: Setting) -> Callable[[Callable[P, R]], Callable[P, R]]:
    name, about, default = setting.name, setting.about, setting.default
    return click.option(
        f"--{name}/--no-{name}" if about.kind == "switch" else f"--{name}",
        setting.field,
        cls=Option,
        section=SECTIONS[about.group],
        rare=about.rare,
        type=_type_of(about),
        default=default,
        multiple=about.repeatable,
        metavar=about.metavar or None,
        help=about.help,
        envvar=setting.variable,
        show_default=about.default_text or default not in (None, ()),
    )


def with_settings(*groups: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add the options of these groups of settings to a command, and pass them as one argument `settings`.

    Args:
        groups: keys of `SECTIONS`.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        chosen = [setting for setting in table().values() if setting.about.group in groups]

        @functools.wraps(function)
        def command(**values: Any) -> R:
            given = {setting.field: values.pop(setting.field) for setting in chosen}
            if "log_format" in given:
                logs.set_up(style=given["log_format"])
            configured = click.get_current_context().default_map or {}
            return function(settings=Settings(**given, ytdlp=configured.get("ytdlp", {})), **values)

        decorated: Callable[..., R] = command
        for setting in reversed(chosen):
            decorated = _option(setting)(decorated)
        return decorated

    return decorate


def selection_given() -> bool:
    """Return whether the current command was given a selection: by flag, environment or configuration file."""
    context = click.get_current_context()
    return any(
        setting.about.group == "selection"
        and context.get_parameter_source(setting.field) not in (ParameterSource.DEFAULT, None)
        for setting in table().values()
    )


def given_settings() -> set[str]:
    """Return the names of the settings that the current command was given as flags."""
    context = click.get_current_context()
    return {
        setting.name
        for setting in table().values()
        if context.get_parameter_source(setting.field) is ParameterSource.COMMANDLINE
    }


def selection_flags() -> set[str]:
    """Return the names of the settings of the selection that the current command was given as flags."""
    return {name for name in given_settings() if table()[name].about.group == "selection"}


def json_option(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--json`."""
    return click.option("--json", "as_json", cls=Option, section="Output", is_flag=True, help="Print JSON.")(function)


def csv_option(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--csv`."""
    return click.option("--csv", "as_csv", cls=Option, section="Output", is_flag=True, help="Print CSV.")(function)


def check_format(as_json: bool, as_csv: bool) -> None:
    """Refuse `--json` and `--csv` together.

    Raises:
        click.UsageError: both are given.
    """
    if as_json and as_csv:
        raise click.UsageError("cannot print the result: --json and --csv exclude each other; give one of them")


def print_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as CSV with line feeds."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    sys.stdout.flush()


def verify_option(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--verify`."""
    return click.option(
        "--verify",
        "verify",
        type=click.Choice(["none", "container", "decode"]),
        default="container",
        show_default=True,
        metavar="HOW",
        help="How to verify each clip: none, container (the file contains all frames) or decode (every frame decodes).",
    )(function)


def archive_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--archive` and `--jobs`."""
    function = click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        metavar="N",
        help="Number of archives to read at the same time.",
    )(function)
    return archive_option("Archive to read, as a path below --archive-url. Repeatable.")(function)


def archive_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add `--archive` with this help text."""
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
