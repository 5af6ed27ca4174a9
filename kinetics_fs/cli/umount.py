"""`kinetics-fs umount`."""

from __future__ import annotations

import errno
import json
import os
import select
from pathlib import Path

import click

from kinetics_fs.errors import MountError

_PATIENCE = 30.0
"""Seconds to wait for the mount's process to put its cache in order."""


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-l", "--lazy", is_flag=True, help="Also if it is in use: it ends when the last file in it is closed.")
@click.option("--dead", is_flag=True, help="Only if its process died, and else leave it without a word.")
def command(mountpoint: Path, lazy: bool, dead: bool) -> None:
    """End the mount on MOUNTPOINT.

    Returns when its process is gone.

    \b
    kinetics-fs umount /mnt/kinetics
    """
    from kinetics_fs.mount import find_mounts, real_place, unmount

    place = real_place(mountpoint)
    if dead:
        if place in find_mounts() and not _answers(place):
            unmount(place, lazy=True)
        return
    if os.uname().sysname == "Linux" and place not in find_mounts():
        raise MountError(f"{place} is not a mount of kinetics-fs")
    process = _open_process(_served_by(place))
    unmount(place, lazy=lazy)
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


def _served_by(place: Path) -> int | None:
    """The mount's process, or None if the mount no longer answers."""
    try:
        return int(json.loads((place / ".kinetics/status.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none (Linux alone has)."""
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
