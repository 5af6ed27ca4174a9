"""Getting a mounted FUSE descriptor, and what the kernel offers on it beside messages."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import subprocess
from pathlib import Path

from kinetics_fs.errors import MountError
from kinetics_fs.mount.mountpoint import SUBTYPE, find_fusermount
from kinetics_fs.mount.native.protocol import BACKING_MAP, IOC_BACKING_CLOSE, IOC_BACKING_OPEN

MAX_READ = 1024 * 1024
"""Bytes: what a kernel asks for at most, with its default limit of 256 pages."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024  # linux/mount.h
_READ_AHEAD_KIB = 1024


def mount(place: Path, *, allow_other: bool, source: str) -> int:
    """Mounts, and returns the descriptor on which the kernel will ask.

    With the right to mount by mount(2), else by the setuid helper fusermount3.

    Args:
        place: a prepared mount point.
        allow_other: let other users in.
        source: what lists of mounts show as such.

    Raises:
        MountError: neither works.
    """
    options = [f"max_read={MAX_READ}", "default_permissions"]
    if allow_other:
        options.append("allow_other")
    try:
        return _mount_ourselves(place, options, source)
    except PermissionError:
        return _mount_by_helper(place, options, source)


def _mount_ourselves(place: Path, options: list[str], source: str) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"cannot open /dev/fuse: {error.strerror}") from error
    data = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},{','.join(options)}"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    kind = f"fuse.{SUBTYPE}".encode()
    if libc.mount(source.encode(), os.fsencode(place), kind, ctypes.c_ulong(flags), data.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        if number == errno.EPERM:
            raise PermissionError(number, os.strerror(number))
        raise MountError(f"cannot mount on {place}: {os.strerror(number)}")
    return fd


def _mount_by_helper(place: Path, options: list[str], source: str) -> int:
    """fusermount3 mounts, and sends the descriptor over a socket whose number stands in its environment."""
    helper = find_fusermount()
    if helper is None:
        raise MountError("fusermount is not installed: install the package fuse3, or mount as root")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        text = ",".join(["ro", "nosuid", "nodev", "noatime", f"fsname={source}", f"subtype={SUBTYPE}", *options])
        done = subprocess.run(
            [helper, "-o", text, "--", str(place)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise MountError(f"cannot mount on {place}: {said[-1] if said else helper + ' failed'}")
        theirs.close()
        _, received, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not received:
        raise MountError(f"cannot mount on {place}: {helper} sent no descriptor")
    return received[0]


def open_backing(device: int, fd: int) -> int:
    """Registers a file that the kernel may read instead of asking us.

    Returns:
        Its backing id.

    Raises:
        OSError: EPERM without the right to, EOPNOTSUPP or ELOOP if the file's filesystem will not do.
    """
    # The id comes as the ioctl's result, which Python returns only when it may change the buffer.
    return int(fcntl.ioctl(device, IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0)), True))


def close_backing(device: int, backing_id: int) -> None:
    """Takes a registration back; files that are open by it stay so."""
    fcntl.ioctl(device, IOC_BACKING_CLOSE, array.array("I", [backing_id]))


def request_timeout(settings: Path = Path("/proc/sys/fs/fuse")) -> int:
    """Seconds after which the kernel ends a mount that leaves a request unanswered; 0 if it waits for ever.

    Set by an administrator, on Linux 6.15 and newer (Documentation/admin-guide/sysctl/fs.rst).
    """
    default, most = (_read_number(settings / name) for name in ("default_request_timeout", "max_request_timeout"))
    return min(default, most) if default and most else default or most


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def raise_read_ahead(device_number: str) -> None:
    """Lets the kernel read further ahead of a mount, given its `major:minor`; only root may, others keep 128 KiB."""
    setting = Path(f"/sys/class/bdi/{device_number}/read_ahead_kb")
    try:
        if int(setting.read_text()) < _READ_AHEAD_KIB:
            setting.write_text(str(_READ_AHEAD_KIB))
    except (OSError, ValueError):
        return
