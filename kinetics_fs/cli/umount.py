"""`kinetics-fs umount`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from kinetics_fs.errors import MountError

_PATIENCE = 30.0
"""Seconds to wait for the mount's process to put its cache in order."""


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-l", "--lazy", is_flag=True, help="Also if it is in use: it ends when the last file in it is closed.")
def command(mountpoint: Path, lazy: bool) -> None:
    """End the mount on MOUNTPOINT.

    Returns when its process is gone.

    \b
    kinetics-fs umount /mnt/kinetics
    """
    from kinetics_fs.mount import find_mounts, unmount

    place = Path(os.path.abspath(mountpoint))  # noqa: PTH100  # `resolve` would look into a dead mount
    if os.uname().sysname == "Linux" and place not in find_mounts():
        raise MountError(f"{place} is not a mount of kinetics-fs")
    pid = _served_by(place)
    unmount(place, lazy=lazy)
    deadline = time.monotonic() + _PATIENCE
    while pid and not lazy and _is_alive(pid):
        if time.monotonic() > deadline:
            raise MountError(f"{place} is unmounted, but its process {pid} has not ended yet")
        time.sleep(0.02)


def _served_by(place: Path) -> int | None:
    """The mount's process, or None if the mount no longer answers."""
    try:
        return int(json.loads((place / ".kinetics/status.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
