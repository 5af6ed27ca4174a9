"""`kinetics-fs status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import (
    check_format,
    csv_option,
    json_option,
    print_csv,
    selection_flags,
    with_settings,
)
from kinetics_fs.cli.parameters import UntouchedPath
from kinetics_fs.config import Settings


@click.command("status", cls=Command, short_help="Show the status of mounts and of the cache.")
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option("-w", "--watch", "live", is_flag=True, help="Show the mounts live, updated every second; q ends it.")
@click.option(
    "--coverage",
    "show_coverage",
    is_flag=True,
    help="Show how many clips of each class are cached, and why others are unavailable: of a selection, or of the mount"
    " at MOUNTPOINT. This may take seconds.",
)
@with_settings("selection", "cache", "limits", "cut")
@json_option
@csv_option
def command(
    mountpoint: Path | None, live: bool, show_coverage: bool, settings: Settings, as_json: bool, as_csv: bool
) -> int:
    """Show the status of the mount at MOUNTPOINT, or of all mounts and of the cache.

    If a mount hangs or is dead, the output names the command that ends it. With MOUNTPOINT the exit code is then 1.

    With --watch, q or Ctrl-C ends the command. If the output is not a terminal, the status is shown once.

    With --coverage, the command shows how much of a selection is cached, how many of these clips are short (less than
    90 % of the annotated time), and why the rest is not cached. It reads the cache, or asks the mount, and does not use
    the network. --coverage --csv lists the path, label, kind and reason of every unavailable clip, for example to
    exclude it.

    \b
    kinetics-fs status
    kinetics-fs status --watch
    kinetics-fs status --json /mnt/kinetics
    kinetics-fs status --coverage --split train --split validation
    kinetics-fs status --coverage --release 400 --csv > unavailable.csv
    kinetics-fs status --coverage /mnt/kinetics
    """
    from kinetics_fs.app import open_store_to_read
    from kinetics_fs.control.describe import describe_statuses
    from kinetics_fs.control.status import MountStatus, UnreachableMount
    from kinetics_fs.mount.query import find_mount, query_status, query_statuses

    check_format(as_json, as_csv)
    if live and (as_json or show_coverage):
        raise click.UsageError(
            "cannot show the status live: --watch shows the status as text; leave out --json and --coverage"
        )
    if as_csv and not show_coverage:
        raise click.UsageError("cannot print the status as CSV: it is not a table; give --json, or --coverage --csv")
    if flags := selection_flags():
        if not show_coverage:
            raise click.UsageError(f"cannot select with --{min(flags)}: only coverage has a selection; give --coverage")
        if mountpoint is not None:
            raise click.UsageError(
                f"cannot select with --{min(flags)}: a mount has its own selection; leave out MOUNTPOINT or the option"
            )
    if show_coverage:
        _show_coverage(mountpoint, settings, as_json, as_csv)
        return 0
    path = None if mountpoint is None else find_mount(mountpoint)

    def query() -> list[MountStatus | UnreachableMount]:
        return query_statuses() if path is None else [query_status(path)]

    if live:
        from kinetics_fs.cli.watch import watch

        watch(query)
        return 0
    mounts = query()
    unreachable = any(isinstance(mount, UnreachableMount) for mount in mounts)
    cache = None
    if path is None:
        with open_store_to_read(settings)[0] as store:
            cache = store.status()
    if as_json:
        report: dict[str, Any] = {"mounts": [mount.to_json() for mount in mounts]}
        if cache is not None:
            report |= cache.to_json()
        click.echo(json.dumps(report, indent=2))
    else:
        if not mounts:
            click.echo("No mounts.")
        for line in describe_statuses(mounts, cache):
            click.echo(line)
    return 1 if unreachable and path is not None else 0


def _show_coverage(mountpoint: Path | None, settings: Settings, as_json: bool, as_csv: bool) -> None:
    from kinetics_fs.cli.coverage import coverage_lines
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.mount.query import query_coverage

    if mountpoint is not None and as_csv:
        raise click.UsageError(
            "cannot print the coverage of a mount as CSV: the mount has the file .kinetics/failures.csv for that; read"
            " that file, or leave out MOUNTPOINT"
        )
    if mountpoint is not None:
        coverage = query_coverage(mountpoint)
    else:
        with open_library(settings) as library:
            if as_csv:
                rows = (
                    [one.path, one.directory.label, one.failure.kind, one.failure.reason]
                    for one in library.unavailable()
                )
                print_csv(["path", "label", "kind", "reason"], rows)
                return
            coverage = library.coverage()
    if as_json:
        click.echo(json.dumps(coverage.to_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(coverage_lines(coverage)))
