"""`kinetics-fs mount`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import with_settings
from kinetics_fs.config import Settings

_log = logging.getLogger(__name__)


@click.command("mount", cls=Command)
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option(
    "--prefetch-class",
    "prefetch_classes",
    metavar="LABEL",
    multiple=True,
    help="Prefetch this class as soon as it is mounted; repeatable.",
)
@with_settings(
    "selection", "cache", "limits", "shared", "cut", "sources", "network", "archive", "names", "mount", "log"
)
def command(mountpoint: Path, foreground: bool, prefetch_classes: tuple[str, ...], settings: Settings) -> None:
    """Show the clips of a release as files under MOUNTPOINT.

    The command returns when the mount can be used. A process in the background serves it until `kinetics-fs umount`.

    \b
    kinetics-fs mount /mnt/kinetics
    kinetics-fs mount --release 700-2020 --split train ~/kinetics
    kinetics-fs mount --annotations my.csv --class-names underscore ~/kinetics
    kinetics-fs mount --split train --hide-unavailable ~/kinetics
    kinetics-fs mount --prefetch-class "surfing water" --readahead 16 ~/kinetics
    """
    from kinetics_fs.cli.library import CatalogBars, warn_of_refused_rows
    from kinetics_fs.mount import session
    from kinetics_fs.mount.systemd import Notifier

    notifier = Notifier.from_environment() if foreground else Notifier()
    notifier.send(STATUS="reading the annotations")
    with CatalogBars() as progress:
        plan = session.plan_mount(
            settings,
            mountpoint,
            prefetch_classes=prefetch_classes,
            on_catalog=warn_of_refused_rows,
            progress=progress,
        )
    if foreground:
        session.run(plan, notifier, lambda: _log.info("%s, on %s", plan.title, plan.mountpoint))
    else:
        pid, log = session.start(plan)
        click.echo(f"{plan.title}, on {plan.mountpoint} (process {pid}, log {log})")
