"""Places to mount on: what is mounted where, whether a place will do, and giving it up again."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from kinetics_fs.errors import MountError
from kinetics_fs.mount.probe import run_or_leave

_log = logging.getLogger(__name__)

SUBTYPE = "kinetics-fs"
"""Mounts show as type `fuse.kinetics-fs`."""

_STACKED = {"overlay", "ecryptfs"}

_PATIENCE = 20.0
"""Seconds for the program that unmounts."""

_FUSE_CONF = Path("/etc/fuse.conf")


def find_mounts() -> dict[Path, str]:
    """Where kinetics-fs is mounted, in this process's view, with `major:minor` of each (Linux; empty elsewhere)."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return {}
    # Fields: proc_pid_mountinfo(5). The third is the device, the fifth the mount point, with blanks as octal escapes.
    found = [line.split(b" ") for line in lines if f" - fuse.{SUBTYPE} ".encode() in line]
    return {_unescaped(fields[4]): fields[2].decode() for fields in found}


def _is_automount(path: Path) -> bool:
    """Whether a place waits to be mounted on, so that whoever looks into it has to wait, too; we must not."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    return any(b" - autofs " in line and _unescaped(line.split(b" ")[4]) == path for line in lines)


def is_stacked(path: Path) -> bool:
    """Whether a folder is on a filesystem that is itself on top of another, as those of containers are."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    types = {line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number}
    return not types.isdisjoint(_STACKED)


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that a path is on, as the system calls it; empty if that cannot be told.

    The path is not touched, and must be absolute and without symbolic links.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return ""
    # The last of those that are deepest: one mount may hide another.
    found, deepest = "", -1
    for line in lines:
        place = _unescaped(line.split(b" ")[4])
        if path.is_relative_to(place) and len(place.parts) >= deepest:
            found, deepest = line.partition(b" - ")[2].split()[0].decode(errors="replace"), len(place.parts)
    return found


def _unescaped(field: bytes) -> Path:
    return Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)))


def real_place(path: Path) -> Path:
    """The absolute path, without symbolic links, as the kernel lists it; also of a mount that is dead."""
    return Path(os.path.realpath(path))  # `resolve` fails on a dead mount


def prepare_mountpoint(path: Path, *, allow_other: bool) -> Path:
    """Makes sure that `path` can be mounted on: makes the folder if only that is missing, clears a dead mount.

    Returns:
        The absolute path.

    Raises:
        MountError: it cannot, and why.
    """
    link, path = path, real_place(path)
    if os.path.islink(link) and not os.path.lexists(path) and path not in find_mounts():  # noqa: PTH114  # as above
        raise MountError(f"{link} is a link that leads nowhere")
    try:
        if path in find_mounts():
            # Only a dead one fails to answer this: the kernel may still know what stat says of it.
            os.statvfs(path)
            raise MountError(f"{path} is mounted already: kinetics-fs umount {path}")
        if not path.is_dir():
            if path.exists():
                raise MountError(f"{path} is not a folder")
            path.mkdir()
        if not _is_automount(path) and any(path.iterdir()):
            raise MountError(f"{path} is not empty: mount on an empty folder")
    except OSError as error:
        if error.errno == errno.ENOENT:
            parent = shlex.quote(str(path.parent))
            raise MountError(
                f"cannot mount on {path}: there is no folder for it, make one: mkdir -p {parent}"
            ) from error
        if error.errno != errno.ENOTCONN:
            raise MountError(f"cannot mount on {path}: {error.strerror}") from error
        _log.warning("%s: clearing a mount whose process died", path)
        unmount(path, lazy=True)
        return prepare_mountpoint(path, allow_other=allow_other)
    if sys.platform == "linux":
        _check_fuse(allow_other=allow_other)
    return path


def _check_fuse(*, allow_other: bool) -> None:
    if not Path("/dev/fuse").exists():
        raise MountError("there is no /dev/fuse: load the module (modprobe fuse), or pass --device /dev/fuse to docker")
    if os.geteuid() == 0:
        return
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("/dev/fuse is not open to you: chmod 666 /dev/fuse, as root")
    if find_fusermount() is None:
        raise MountError("fusermount is not installed: install the package fuse3, or mount as root")
    if allow_other and not allows_other():
        raise MountError(f"--allow-other needs a line `user_allow_other` in {_FUSE_CONF}, set by root")


def allows_other() -> bool:
    """Whether the administrator lets users share their mounts."""
    try:
        return any(line.strip() == "user_allow_other" for line in _FUSE_CONF.read_text().splitlines())
    except OSError:
        return False


def find_fusermount() -> str | None:
    """Path of the setuid helper that mounts for users."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmounts.

    Args:
        path: absolute path of the mount point.
        lazy: take it out of the tree now, and end it when the last file in it is closed.

    Raises:
        MountError: it is not a mount, is in use, or is not ours to unmount.
    """
    fusermount = find_fusermount()
    if os.geteuid() == 0 or fusermount is None:
        command = ["umount", *(["-l"] if lazy and sys.platform == "linux" else []), str(path)]
    else:
        command = [fusermount, "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = run_or_leave(command, _PATIENCE)
    except OSError as error:
        raise MountError(f"cannot run {command[0]}: {error.strerror}") from error
    if done is None:
        raise MountError(f"cannot unmount {path}: {command[0]} gets no answer; add --lazy, or end the mount's process")
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    reason = said[-1] if said else f"{command[0]} failed with status {done.returncode}"
    if "busy" in reason:
        raise MountError(f"{path} is in use: close what is open in it (lsof +f -- {path}), or add --lazy")
    raise MountError(f"cannot unmount {path}: {reason}")
