"""Click options made from the settings table, options that commands share, and the way from options to `Settings`."""

from __future__ import annotations

import contextlib
import csv
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from kinetics_fs.cli.command import Option, origin_of
from kinetics_fs.cli.parameters import type_of
from kinetics_fs.config import SECTIONS, Setting, Settings, table
from kinetics_fs.errors import FailureKind, KineticsError
from kinetics_fs.util import logs
from kinetics_fs.util.files import atomic_write

P = ParamSpec("P")
R = TypeVar("R")

WHOLE = frozenset({"release", "annotations", "annotations-only", "archive-clips"})
"""Settings of the selection that say which clips there are, and leave none out."""


def _option(setting: Setting) -> Callable[[Callable[P, R]], Callable[P, R]]:
    name, about, default = setting.name, setting.about, setting.default
    if about.kind == "size" and default is not None:
        default = f"{default}B"  # click converts a default like a value that a user gives
    return click.option(
        f"--{name}/--no-{name}" if about.kind == "switch" else f"--{name}",
        setting.field,
        cls=Option,
        section=SECTIONS[about.group],
        rare=about.rare,
        type=type_of(about),
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
        groups: keys of `SECTIONS`, or single options, such as `--shared`.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        chosen = [
            setting for setting in table().values() if setting.about.group in groups or f"--{setting.name}" in groups
        ]

        @functools.wraps(function)
        def command(**values: Any) -> R:
            given = {setting.field: values.pop(setting.field) for setting in chosen}
            if "log_format" in given:
                logs.set_up(style=given["log_format"])
            configured = click.get_current_context().default_map or {}
            _check_sampling(given)
            try:
                return function(settings=Settings(**given, ytdlp=configured.get("ytdlp", {})), **values)
            except KineticsError as error:
                _add_origins(error)
                raise

        decorated: Callable[..., R] = command
        for setting in reversed(chosen):
            decorated = _option(setting)(decorated)
        return decorated

    return decorate


def _check_sampling(given: Mapping[str, Any]) -> None:
    """Refuse flags that have no effect.

    Raises:
        click.UsageError: there is `--seed` without `--shuffle`, or `--shuffle` without `--max-samples`.
    """
    flags = given_settings()
    for flag, needed in (("shuffle", "max_samples"), ("seed", "shuffle")):
        if flag in flags and given.get(flag) not in (None, False) and not given.get(needed):
            raise click.UsageError(
                f"cannot use --{flag}: it has no effect without --{needed.replace('_', '-')}; give both or none"
            )


def _add_origins(error: KineticsError) -> None:
    """Let an error say where the flags in its message were set, if not on the command line."""
    context = click.get_current_context()
    text = str(error)
    for option in context.command.params:
        if not isinstance(option, Option) or not re.search(rf"{re.escape(option.opts[0])}(?![\w-])", text):
            continue
        if origin := origin_of(option, context):
            text = f"{text} ({option.opts[0]} comes from {origin})"
    error.args = (text, *error.args[1:])


def selection_given() -> bool:
    """Return whether the current command was given a selection: by flag, environment or configuration file."""
    context = click.get_current_context()
    return any(
        setting.about.group == "selection"
        and context.get_parameter_source(setting.field) not in (ParameterSource.DEFAULT, None)
        for setting in table().values()
    )


def selection_narrowed() -> bool:
    """Return whether the current command was given a part of a release or of a list, not only which one."""
    context = click.get_current_context()
    return any(
        setting.about.group == "selection"
        and setting.name not in WHOLE
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


def dask_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--dask` and `--worker-cache-dir`."""
    function = click.option(
        "--worker-cache-dir",
        metavar="PATH",
        help="With --dask, cache directory on the machines of the workers, on a local disk. {worker} is replaced by the"
        " name of the worker.  [default: the path of --cache-dir]",
    )(function)
    return click.option(
        "--dask",
        metavar="ADDRESS",
        help="Scheduler of a dask cluster whose workers read the archives, such as tcp://scheduler:8786. Each thread of"
        " a worker reads one archive at a time; --jobs has no effect. Needs the extra dask.",
    )(function)


def archive_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add `--archive` with this help text."""
    return click.option("--archive", "archives", metavar="NAME", multiple=True, help=help)


def kind_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add `--kind` for kinds of failures, with this help text."""
    return click.option(
        "--kind",
        "kinds",
        type=click.Choice([str(kind) for kind in FailureKind]),
        metavar="KIND",
        multiple=True,
        help=help,
        callback=lambda context, option, values: tuple(FailureKind(value) for value in values),
    )


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
