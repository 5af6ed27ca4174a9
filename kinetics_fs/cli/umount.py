"""`kinetics-fs umount`."""

from __future__ import annotations

from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.parameters import UntouchedPath


@click.command("umount", cls=Command)
@click.argument("mountpoint", type=UntouchedPath())
@click.option("-l", "--lazy", is_flag=True, help="Unmount even if files are open; the mount ends with the last one.")
@click.option("--dead", is_flag=True, help="Unmount only if the process of the mount died; otherwise do nothing.")
def command(mountpoint: Path, lazy: bool, dead: bool) -> None:
    """End the mount at MOUNTPOINT.

    Returns when the process of the mount has ended. If the process hangs, the message names the command that kills it.

    \b
    kinetics-fs umount /mnt/kinetics
    """
    from kinetics_fs.mount.query import clear_dead_mount, find_mount, resolve_mountpoint, unmount_and_wait

    if dead:
        clear_dead_mount(resolve_mountpoint(mountpoint))
    else:
        unmount_and_wait(find_mount(mountpoint), lazy=lazy)
