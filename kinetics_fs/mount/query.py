"""Asking mounts how they are, so that none that hangs keeps who asks.

A mount of ours is asked by its socket. Its files are touched only where there is none that answers, and then by a
process that can be left behind.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kinetics_fs.control import connect
from kinetics_fs.errors import MountError
from kinetics_fs.mount import find_mounts
from kinetics_fs.mount.probe import look_at

PATIENCE = 5.0
"""Seconds that a mount may take for an answer."""

_AT_ONCE = 16

Status = dict[str, Any]
"""What a mount says of itself; or, of one that does not, `mountpoint`, `dead` with the reason, and `to_do`. If it hangs
rather than is dead, also `hangs`, and `pid`, as far as that is known."""


def place_of(mountpoint: Path) -> Path:
    """The absolute path of a mount point, without symbolic links, as the kernel lists it.

    Raises:
        MountError: the path does not answer.
    """
    # As it is written first: a mount that hangs may not answer who resolves its name.
    place = Path(os.path.abspath(mountpoint))  # noqa: PTH100  # see above
    if place in find_mounts():
        return place
    looked = look_at(place)
    if looked is None:
        raise MountError(f"{mountpoint} does not answer: what is mounted there hangs; see kinetics-fs status")
    return Path(looked.path) if looked.exists else place


def mount_on(mountpoint: Path) -> Path:
    """The same, of a mount of kinetics-fs.

    Raises:
        MountError: it is none, as far as the system tells, or the path does not answer.
    """
    place = place_of(mountpoint)
    if sys.platform == "linux" and place not in find_mounts():
        raise MountError(f"{place} is not a mount of kinetics-fs")
    return place


def statuses(place: Path | None = None) -> list[Status]:
    """What the mount on a place says, or what all say, asked at the same time.

    Args:
        place: as `place_of` has it.
    """
    if place is not None:
        return [status_of(place)]
    places = list(find_mounts())
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        said = list(threads.map(status_of, places))
    # One that was unmounted meanwhile is not dead, but gone.
    mounted = find_mounts()
    return [status for place, status in zip(places, said, strict=True) if "dead" not in status or place in mounted]


def status_of(place: Path) -> Status:
    """What the mount on a place says.

    Args:
        place: as `place_of` has it.
    """
    connection = connect(place, PATIENCE)
    if connection is not None:
        with connection:
            try:
                status: Status = connection.ask("status")
                return status
            except MountError:
                if connection.pid is not None and _is_alive(connection.pid):
                    return _hung(place, connection.pid)
    # Somebody else's, or dead.
    looked = look_at(place)
    if looked is None:
        return _hung(place, None)
    if (said := _parse(looked.status)) is not None:
        return said
    if looked.errno in (errno.EACCES, errno.EPERM):
        return _dead(place, "another user's, who keeps it to himself", "ask him, or as root")
    reason = "its process has ended" if looked.errno == errno.ENOTCONN else "it does not say how it is"
    return _dead(place, reason, f"clear it: kinetics-fs umount {shlex.quote(str(place))}")


def _hung(place: Path, pid: int | None) -> Status:
    who = "its process" if pid is None else f"its process {pid}"
    end = "end its process" if pid is None else f"kill -KILL {pid}"
    to_do = f"to end it: kinetics-fs umount --lazy {shlex.quote(str(place))}, then {end}"
    return {**_dead(place, f"{who} does not answer", to_do), "hangs": True, "pid": pid}


def _dead(place: Path, reason: str, to_do: str) -> Status:
    return {"mountpoint": str(place), "dead": reason, "to_do": to_do}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parse(text: str | None) -> Status | None:
    try:
        status = json.loads(text or "")
    except ValueError:
        return None
    return status if isinstance(status, dict) else None
