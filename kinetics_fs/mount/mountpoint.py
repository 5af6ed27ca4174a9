"""Mount points: find them, prepare a path for mounting, unmount."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from kinetics_fs.errors import MountError
from kinetics_fs.mount.fusermount import (
    OTHERS_NOT_ALLOWED,
    SUBTYPE,
    allows_other,
    cannot_mount,
    device_error,
    find_fusermount,
    forbidden_right,
    no_fusermount,
)
from kinetics_fs.mount.probe import run_or_abandon
from kinetics_fs.util.mount_table import mount_table

_log = logging.getLogger(__name__)

_STACKED = {"overlay", "ecryptfs"}

_UMOUNT_TIMEOUT = 20.0
"""Seconds to wait for the program that unmounts."""
_IN_USE_PATIENCE = 2.0
"""Seconds to wait for what uses a mount: programs that look at all mounts visit it for a moment."""
_IN_USE_PAUSE = 0.1


def find_mounts() -> dict[Path, str]:
    """Return the mount points of kinetics-fs that this process sees, with `major:minor` of each (Linux only)."""
    return {mount.path: mount.device for mount in mount_table() if mount.type == f"fuse.{SUBTYPE}"}


def mount_owners() -> dict[Path, int]:
    """Return the mount points of kinetics-fs that this process sees, with the user who mounted each (Linux only)."""
    owners = {}
    for mount in mount_table():
        owner = re.search(r"(?:^|,)user_id=(\d+)", mount.options)
        if mount.type == f"fuse.{SUBTYPE}" and owner is not None:
            owners[mount.path] = int(owner[1])
    return owners


def _is_automount(path: Path) -> bool:
    """Return True if listing a path would make autofs mount on it, and wait for this very process to do that."""
    return any(mount.type == "autofs" and mount.path == path for mount in mount_table())


def is_stacked(path: Path) -> bool:
    """Return True if a directory is on a filesystem that is on top of another one, as in containers."""
    device = path.stat().st_dev
    device_number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount.device == device_number and mount.type in _STACKED for mount in mount_table())


def real_path(path: Path) -> Path:
    """Return the absolute path without symbolic links, as the kernel lists it; also of a dead mount."""
    return Path(os.path.realpath(path))  # `resolve` fails on a dead mount


def is_below(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder, or in it, whether they exist or not; by whatever links and bind mounts."""
    path = real_path(path)
    if path.is_relative_to(folder := real_path(folder)):
        return True
    try:
        status = folder.stat()
    except OSError:
        return False
    for parent in (path, *path.parents):
        with suppress(OSError):
            if os.path.samestat(parent.stat(), status):
                return True
    return False


def prepare_mountpoint(path: Path, *, allow_other: bool) -> Path:
    """Check that a path can be mounted on; create a missing directory, and clear a dead mount.

    Args:
        path: the mount point.
        allow_other: whether other users will be allowed in.

    Returns:
        The absolute path.

    Raises:
        MountError: the path cannot be mounted on.
    """
    link, path = path, real_path(path)
    if os.path.islink(link) and not os.path.lexists(path) and path not in find_mounts():  # noqa: PTH114  # as above
        raise MountError(f"cannot mount on {link}: it is a symbolic link to {path}, which does not exist")
    try:
        if path in find_mounts():
            # A dead mount fails here and only here: the kernel may still have cached what stat returns.
            os.statvfs(path)
            raise MountError(f"cannot mount on {path}: it is mounted already; run kinetics-fs umount {path}")
        if not path.is_dir():
            if path.exists():
                raise MountError(f"cannot mount on {path}: it is not a directory; give an empty directory")
            path.mkdir()
        if not _is_automount(path) and any(path.iterdir()):
            raise MountError(f"cannot mount on {path}: it is not empty; give an empty directory")
    except OSError as error:
        if error.errno == errno.ENOENT:
            parent = shlex.quote(str(path.parent))
            raise MountError(
                f"cannot mount on {path}: its parent directory does not exist; run mkdir -p {parent}"
            ) from error
        if error.errno != errno.ENOTCONN:
            raise MountError(f"cannot mount on {path}: {error.strerror}") from error
        _log.warning("%s: unmounting a mount whose process has died", path)
        unmount(path, lazy=True)
        return prepare_mountpoint(path, allow_other=allow_other)
    if sys.platform == "linux":
        _check_fuse(path, allow_other=allow_other)
    return path


def _check_fuse(path: Path, *, allow_other: bool) -> None:
    """Check what would fail later, after the annotations have been downloaded.

    Raises:
        MountError: neither this process nor fusermount3 can mount.
    """
    error = device_error()
    if find_fusermount() is None and (error is not None or os.geteuid() != 0):
        raise cannot_mount(path, no_fusermount(error), error)
    if (refusal := forbidden_right()) is not None:
        raise cannot_mount(path, refusal, error)
    # A fusermount3 that opens the device elsewhere has its own configuration.
    if os.geteuid() != 0 and error is None and allow_other and not allows_other():
        raise cannot_mount(path, OTHERS_NOT_ALLOWED, None)


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount. A mount that is in use is tried again for some seconds.

    Args:
        path: absolute path of the mount point.
        lazy: release the mount point now, and end the mount when the last file in it is closed.

    Raises:
        MountError: the path is not a mount, is in use, or may not be unmounted by this user.
    """
    end = time.monotonic() + _IN_USE_PATIENCE
    while "busy" in (reason := _try_to_unmount(path, lazy=lazy)):
        if time.monotonic() > end:
            raise MountError(
                f"cannot unmount {path}: it is in use; close the files that are open in it (lsof +f -- {path}),"
                " or add --lazy"
            )
        time.sleep(_IN_USE_PAUSE)
    if reason:
        raise MountError(f"cannot unmount {path}: {reason}")


def _try_to_unmount(path: Path, *, lazy: bool) -> str:
    """Unmount, and return "" or why it failed. Arguments as of `unmount`.

    Raises:
        MountError: the program that unmounts hangs.
    """
    fusermount = find_fusermount()
    commands = []
    if os.geteuid() == 0 or fusermount is None:
        commands.append(["umount", *(["-l"] if lazy and sys.platform == "linux" else []), str(path)])
    if fusermount is not None:  # also for root, which may have no privileges in a container
        commands.append([fusermount, "-u", *(["-z"] if lazy else []), "--", str(path)])
    reasons = []
    for command in commands:
        try:
            done = run_or_abandon(command, _UMOUNT_TIMEOUT)
        except OSError as error:
            reasons.append(f"cannot run {command[0]}: {error.strerror}")
            continue
        if done is None:
            raise MountError(
                f"cannot unmount {path}: {command[0]} did not end within {_UMOUNT_TIMEOUT:.0f} s;"
                " add --lazy, or end the process of the mount"
            )
        if done.returncode == 0:
            return ""
        errors = done.stderr.strip().splitlines()
        reasons.append(errors[-1] if errors else f"{command[0]} failed with status {done.returncode}")
        if "busy" in reasons[-1]:
            return reasons[-1]
    return reasons[0]
