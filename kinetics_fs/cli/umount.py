"""`kinetics-fs umount`."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import UntouchedPath
from kinetics_fs.errors import MountError

_PATIENCE = 30.0
"""Seconds to wait for the mount's process to put its cache in order."""

_PATIENCE_WITH_HUNG = 1.0
"""The same, of one that does not answer."""


@click.command("umount", cls=Command)
@click.argument("mountpoint", type=UntouchedPath())
@click.option("-l", "--lazy", is_flag=True, help="Also if it is in use: it ends when the last file in it is closed.")
@click.option("--dead", is_flag=True, help="Only if its process died, and else leave it without a word.")
def command(mountpoint: Path, lazy: bool, dead: bool) -> None:
    """End the mount on MOUNTPOINT.

    Returns when its process is gone; one that hangs is named, and left to be killed.

    \b
    kinetics-fs umount /mnt/kinetics
    """
    from kinetics_fs.mount import find_mounts, unmount
    from kinetics_fs.mount.query import mount_on, place_of, status_of

    if dead:
        place = place_of(mountpoint)
        if place in find_mounts() and not _answers(place):
            unmount(place, lazy=True)
        return
    place = mount_on(mountpoint)
    status = status_of(place)
    pid, hangs = status.get("pid"), "hangs" in status
    if hangs and not lazy:  # who unmounts it would hang, too
        raise MountError(f"{place}: {status['dead']}; {status['to_do']}")
    process = _open_process(pid)
    unmount(place, lazy=lazy)
    if process is not None and hangs and not select.select([process], [], [], _PATIENCE_WITH_HUNG)[0]:
        raise MountError(f"{place} is unmounted, but its process does not answer: kill -KILL {pid}")
    if process is not None and not lazy and not select.select([process], [], [], _PATIENCE)[0]:
        raise MountError(
            f"{place} is unmounted, but its process goes on: a container that was started meanwhile may still hold it"
        )


def _answers(place: Path) -> bool:
    try:
        os.statvfs(place)  # never out of the kernel's memory
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none (Linux alone has)."""
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
