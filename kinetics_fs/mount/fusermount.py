"""The right to mount: the device /dev/fuse, and the program fusermount3, which mounts for users without privileges.

fusermount3 is setuid root. In a container it can be a proxy that opens the device and mounts from elsewhere, so the
device need not be accessible to this process.
"""

from __future__ import annotations

import errno
import grp
import os
import re
import shlex
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.errors import MountError
from kinetics_fs.mount import apparmor

SUBTYPE = "kinetics-fs"
"""Mounts have the filesystem type `fuse.kinetics-fs`."""

_DEVICE = "/dev/fuse"
_DEVICE_NUMBER = os.makedev(10, 229)
"""Documentation/admin-guide/devices.txt"""

_FUSE_CONF = Path("/etc/fuse.conf")

_CONTAINER_RIGHTS = "--cap-add SYS_ADMIN --security-opt apparmor=unconfined"

_PROGRAM = re.compile(r"^\S*(fuse|fusermount3?): ")
"""The beginning of a message, which names the program: `fuse` is libfuse."""


_SYS_ADMIN = 1 << 21
"""The bit of CAP_SYS_ADMIN in a set of capabilities (linux/capability.h)."""


class Refusal(NamedTuple):
    """Why a mount was refused, and what to do: the second and third part of an error message.

    Attributes:
        cause: the cause.
        remedy: what to do.
        anywhere: whether every other mount point would be refused, too.
    """

    cause: str
    remedy: str
    anywhere: bool = False


class CannotMountAnywhereError(MountError):
    """This process has no means or no right to mount on any path."""


def open_device() -> int:
    """Open /dev/fuse and return the descriptor.

    Raises:
        OSError: it cannot be opened, or is another file; containers hide a device by a mount of /dev/null.
    """
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(fd).st_rdev != _DEVICE_NUMBER:
        os.close(fd)
        raise OSError(errno.ENODEV, "it is not the FUSE device", _DEVICE)
    return fd


def device_error() -> OSError | None:
    """Return why this process cannot open /dev/fuse; None if it can."""
    try:
        os.close(open_device())
    except OSError as error:
        return error
    return None


def device_remedy(number: int | None) -> str:
    """Return what to do if opening /dev/fuse fails with an errno."""
    if number in (errno.ENOENT, errno.ENODEV):
        return "load the kernel module (modprobe fuse), or start the container with --device /dev/fuse"
    if number == errno.EPERM:
        return "start the container with --device /dev/fuse"
    remedy = "as root, run chmod 666 /dev/fuse, or start the container with --device /dev/fuse"
    group = _group(Path(_DEVICE), 0o060)
    return f"as root, add this user to the group {group}; or {remedy}" if group else remedy


def find_fusermount() -> str | None:
    """Return the path of the program that mounts for users; None if there is none that this user may run."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def no_fusermount(error: OSError | None) -> Refusal:
    """Return why `find_fusermount` found nothing.

    Args:
        error: why this process cannot mount itself; None if it has not tried.
    """
    locked = shutil.which("fusermount3", os.F_OK) or shutil.which("fusermount", os.F_OK)
    group = None if locked is None else _group(Path(locked), 0o010)
    cause = "fusermount3 is not installed" if locked is None else f"this user may not run {locked}"
    if error is not None and error.filename:
        return Refusal(cause, device_remedy(error.errno), anywhere=True)
    if os.geteuid() == 0:
        return Refusal(cause, f"start the container with {_CONTAINER_RIGHTS}", anywhere=True)
    if group:
        return Refusal(cause, f"as root, add this user to the group {group}, or mount as root", anywhere=True)
    return Refusal(cause, "install the package fuse3, or mount as root", anywhere=True)


def process_status() -> dict[str, str]:
    """Return the fields of /proc/self/status (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def may_mount() -> bool:
    """Return whether this process may mount without fusermount3."""
    return _has_sys_admin(process_status(), "CapEff")


def find_proxy() -> str | None:
    """Return a fusermount3 that may be a proxy: this machine hides the device, and the program has no privileges."""
    error, program = device_error(), find_fusermount()
    hidden = error is not None and error.errno != errno.EACCES
    return program if hidden and program is not None and not _is_setuid(program) else None


def forbidden_right() -> Refusal | None:
    """Return why this process may not mount, even by a fusermount3 that has all rights; None if it may.

    A program that is not setuid root is passed over: it may be a proxy, which mounts from elsewhere.
    """
    status, program = process_status(), find_fusermount()
    if _has_sys_admin(status, "CapEff") or program is None or not _is_setuid(program):
        return None
    if not _has_sys_admin(status, "CapBnd"):
        return Refusal(
            "this process and its children cannot have CAP_SYS_ADMIN",
            f"start the container with {_CONTAINER_RIGHTS}",
            anywhere=True,
        )
    if status.get("NoNewPrivs") == "1":
        return Refusal(
            f"{program} cannot gain the right to mount, because this process has no_new_privs set",
            "set NoNewPrivileges=no in the systemd unit, or start docker without --security-opt no-new-privileges",
            anywhere=True,
        )
    return None


def missing_right() -> Refusal | None:
    """Return why this process has no right to mount, not even by fusermount3; None if it seems to have it."""
    program = find_fusermount()
    if may_mount():
        return None
    if program is None:
        return no_fusermount(None)
    if refusal := forbidden_right():
        return refusal
    if not _is_setuid(program) and not _has_file_capabilities(program):
        return Refusal(f"{program} is not setuid root", "as root, reinstall the package fuse3", anywhere=True)
    if _ignores_setuid(program):
        return Refusal(
            f"{program} is on a filesystem that is mounted with nosuid",
            "mount as root, or mount that filesystem without nosuid",
            anywhere=True,
        )
    return None


def _has_sys_admin(status: dict[str, str], capabilities: str) -> bool:
    return bool(int(status.get(capabilities, "0"), 16) & _SYS_ADMIN)


def _is_setuid(program: str) -> bool:
    status = Path(program).stat()
    return bool(status.st_mode & stat.S_ISUID) and status.st_uid == 0


def _ignores_setuid(program: str) -> bool:
    try:
        return bool(os.statvfs(program).f_flag & os.ST_NOSUID)
    except OSError:
        return False


def _has_file_capabilities(program: str) -> bool:
    try:
        return "security.capability" in os.listxattr(program)
    except OSError:  # a filesystem without extended attributes
        return False


def allows_other() -> bool:
    """Return True if the administrator lets users share their mounts (`user_allow_other` in /etc/fuse.conf)."""
    try:
        return any(line.strip() == "user_allow_other" for line in _FUSE_CONF.read_text().splitlines())
    except OSError:
        return False


OTHERS_NOT_ALLOWED = Refusal(
    f"--allow-other is not allowed by {_FUSE_CONF}", f"as root, add the line user_allow_other to {_FUSE_CONF}"
)


_REFUSALS = {
    "not owned by user": Refusal("its sticky bit is set, and another user owns it", "give a directory that you own"),
    "no write access to mountpoint": Refusal("this user may not write to it", "give a directory that you own"),
    "failed to chdir to mountpoint": Refusal("this user may not enter it", "give a directory that you own"),
    "only allowed if 'user_allow_other' is set": OTHERS_NOT_ALLOWED,
    "too many FUSE filesystems mounted": Refusal(
        f"there are as many FUSE mounts as mount_max in {_FUSE_CONF} allows",
        f"unmount one of them, or as root raise mount_max in {_FUSE_CONF}",
    ),
    "device not found": Refusal("fusermount3 finds no FUSE device", device_remedy(errno.ENOENT), anywhere=True),
}
"""Parts of messages of fusermount3, and what they mean."""

_ERRNOS = {os.strerror(number): number for number in (errno.ENOENT, errno.ENODEV, errno.EPERM, errno.EACCES)}


def apparmor_refusal(mountpoint: Path) -> Refusal:
    """Return the refusal of a mount point by the AppArmor profile of fusermount3, and how to override it."""
    mount, umount = apparmor.rules_for(mountpoint, f"fuse.{SUBTYPE}")
    return Refusal(
        "the AppArmor profile of fusermount3 does not allow this mount point",
        f"as root, add the lines `{mount}` and `{umount}` to {apparmor.LOCAL_RULES} and run apparmor_parser -r"
        f" {apparmor.PROFILE}, or mount below your home directory, /mnt, /media or /tmp",
    )


def cannot_mount(mountpoint: Path, refusal: Refusal, error: OSError | None) -> MountError:
    """Return the error for a mount that neither this process nor fusermount3 could make.

    Args:
        mountpoint: the mount point.
        refusal: the refusal of fusermount3.
        error: why this process could not mount without fusermount3; None if it did not try.
    """
    first = ""
    if error is not None and error.filename:
        first = f"cannot open {error.filename}: {error.strerror}, and "
    elif error is not None and os.geteuid() == 0:  # other users need fusermount3 in any case
        first = f"the system call fails: {error.strerror}, and "
    text = f"cannot mount on {mountpoint}: {first}{refusal.cause}; {refusal.remedy}"
    if refusal.anywhere:
        return CannotMountAnywhereError(f"{text}; prefetch, fill, export and the Library of Python need no mount")
    return MountError(text)


def explain(message: str, mountpoint: Path, filesystem_type: str, error: OSError | None) -> Refusal:
    """Explain a message of fusermount3 or libfuse.

    Args:
        message: its last line.
        mountpoint: the mount point.
        filesystem_type: the type of the filesystem of the mount point; an empty string if it is unknown.
        error: why this process could not mount without fusermount3; None if it did not try.
    """
    named = _PROGRAM.match(message)
    program = "libfuse" if named and named[1] == "fuse" else "fusermount3"
    message = _PROGRAM.sub("", message)
    for part, refusal in _REFUSALS.items():
        if part in message:
            return refusal
    reason = message.rpartition(": ")[2]
    if message == "mount failed: Operation not permitted":
        policy = "a security policy, such as seccomp, forbids this process and fusermount3 to mount"
        return missing_right() or Refusal(policy, f"start the container with {_CONTAINER_RIGHTS}", anywhere=True)
    if message == "mount failed: Permission denied":
        if program == "libfuse" or (error is not None and error.errno == errno.EACCES and not error.filename):
            policy = "a security policy, such as AppArmor, forbids this process to mount"
            return Refusal(policy, f"start the container with {_CONTAINER_RIGHTS}", anywhere=True)
        # fusermount3 is root, and has checked the mount point before: only a security module refuses it now.
        refusal = apparmor_refusal(mountpoint)
        if apparmor.is_enabled() or Path(apparmor.PROFILE).exists():
            return refusal
        policy = "a security policy, such as the AppArmor profile of fusermount3, does not allow this mount point"
        return Refusal(policy, refusal.remedy)
    if forbidden := re.search(r"mounting over filesystem type (\S+) is forbidden", message):
        cause = f"fusermount3 does not mount on filesystems of the type {filesystem_type or forbidden[1]}"
        return Refusal(cause, "give a directory on another disk, or mount as root")
    if message.startswith("failed to open /dev/fuse: "):
        number = error.errno if error else _ERRNOS.get(reason)
        return Refusal(f"fusermount3 cannot open /dev/fuse: {reason}", device_remedy(number), anywhere=True)
    if error is not None and error.filename:
        remedy = device_remedy(error.errno)
    else:
        remedy = f"run kinetics-fs doctor {shlex.quote(str(mountpoint))}"
    without_device = error is not None and bool(error.filename)
    return Refusal(f"{program} fails: {message or 'it gives no reason'}", remedy, anywhere=without_device)


def _group(path: Path, mode: int) -> str | None:
    """Return the group that gives the right to use a file; None if that is the group of root, or no group."""
    try:
        status = path.stat()
        name = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return None
    return name if status.st_gid and status.st_mode & mode == mode else None
