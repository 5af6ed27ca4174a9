"""`kinetics-fs status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import UntouchedPath, json_option, with_settings
from kinetics_fs.config import Settings


@click.command("status", cls=Command, short_help="Show the status of mounts and of the cache.")
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option("-w", "--watch", "live", is_flag=True, help="Show the mounts live, updated every second; q ends it.")
@click.option("--classes", is_flag=True, help="With MOUNTPOINT: cached clips of each class; may take seconds.")
@with_settings("cache")
@json_option
def command(mountpoint: Path | None, live: bool, classes: bool, settings: Settings, as_json: bool) -> int:
    """Show the status of the mount on MOUNTPOINT, or of all mounts and of the cache.

    If a mount hangs or is dead, the output names the command that ends it. With MOUNTPOINT the exit code is then 1.

    With --watch, q or Ctrl-C ends the command. If the output is not a terminal, the status is shown once.

    \b
    kinetics-fs status
    kinetics-fs status --watch
    kinetics-fs status --json /mnt/kinetics
    kinetics-fs status --classes /mnt/kinetics
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.control.describe import describe_mount, describe_store
    from kinetics_fs.control.status import MountStatus, UnreachableMount
    from kinetics_fs.mount.query import find_mount, query_coverage, query_status, query_statuses

    if classes and mountpoint is None:
        raise click.UsageError("--classes needs a mount; give MOUNTPOINT")
    if live and (as_json or classes):
        raise click.UsageError("--watch shows the status on a terminal; give it without --json and --classes")
    path = None if mountpoint is None else find_mount(mountpoint)

    def query() -> list[MountStatus | UnreachableMount]:
        return query_statuses() if path is None else [query_status(path)]

    if live:
        from kinetics_fs.cli.watch import watch

        watch(query)
        return 0
    mounts = query()
    unreachable = any(isinstance(mount, UnreachableMount) for mount in mounts)
    coverage = query_coverage(path) if classes and path is not None and not unreachable else None
    cache = None
    if path is None:
        with open_store(settings) as store:
            cache = store.status()
    if as_json:
        report: dict[str, Any] = {"mounts": [mount.to_json() for mount in mounts]}
        if coverage is not None:
            report["mounts"][0]["by_class"] = coverage
        if cache is not None:
            report |= cache.to_json()
        click.echo(json.dumps(report, indent=2))
    else:
        for mount in mounts:
            click.echo("\n".join(describe_mount(mount)))
        if not mounts:
            click.echo("No mounts.")
        if coverage is not None:
            _print_classes(coverage)
        if cache is not None:
            click.echo("\n".join(describe_store(cache)))
    return 1 if unreachable and path is not None else 0


def _print_classes(classes: list[dict[str, Any]]) -> None:
    width = max((len(one["label"]) for one in classes), default=0)
    click.echo(f"\n{'split':<10}  {'class':<{width}}  {'clips':>8}  {'cached':>8}              unavailable")
    for one in classes:
        share = one["cached"] / one["clips"] if one["clips"] else 1.0
        click.echo(
            f"{one['split']:<10}  {one['label']:<{width}}  {one['clips']:>8,}  {one['cached']:>8,}  {share:>6.1%}"
            f"  {one['unavailable']:>15,}"
        )
