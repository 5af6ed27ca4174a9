"""`kinetics-fs umount`."""

from __future__ import annotations

from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.parameters import UntouchedPath


@click.command("umount", cls=Command)
@click.argument("mountpoint", type=UntouchedPath())
@click.option("-l", "--lazy", is_flag=True, help="Unmount even if files are open; the mount ends with the last one.")
@click.option("--drain", is_flag=True, help="Upload all clips that wait for the shared store before.")
@click.option("--dead", is_flag=True, help="Unmount only if the process of the mount died; otherwise do nothing.")
def command(mountpoint: Path, lazy: bool, drain: bool, dead: bool) -> None:
    """End the mount at MOUNTPOINT.

    Returns when the process of the mount has ended. If the process hangs, the message names the command that kills it.
    A mount with a shared store uploads for up to 30 seconds what waits for its upload; the rest stays in the cache, and
    the next mount or kinetics-fs shared sync uploads it.

    \b
    kinetics-fs umount /mnt/kinetics
    kinetics-fs umount --drain /mnt/kinetics
    """
    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.mount.query import (
        clear_dead_mount,
        drain_uploads,
        find_mount,
        resolve_mountpoint,
        unmount_and_wait,
    )

    if dead:
        clear_dead_mount(resolve_mountpoint(mountpoint))
        return
    mount = find_mount(mountpoint)
    if drain:
        with ProgressBars() as bars:
            bar, most = bars.add("upload", "clips", visible=False), 0

            def show(left: int) -> None:
                nonlocal most
                most = max(most, left)
                bar.show(most - left, most)

            drain_uploads(mount, show)
    unmount_and_wait(mount, lazy=lazy)
