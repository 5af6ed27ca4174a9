"""The FUSE descriptor: how to get a mounted one, and what the kernel offers on it besides messages."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import subprocess
from pathlib import Path

from kinetics_fs.mount.fusermount import (
    SUBTYPE,
    cannot_mount,
    explain,
    find_fusermount,
    no_fusermount,
    open_device,
)
from kinetics_fs.mount.mountpoint import unmount
from kinetics_fs.mount.native.protocol import BACKING_MAP, IOC_BACKING_CLOSE, IOC_BACKING_OPEN
from kinetics_fs.util.mount_table import filesystem_type

MAX_READ = 1024 * 1024
"""Maximum bytes per READ: a kernel requests 256 pages at most by default."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024  # linux/mount.h
_READ_AHEAD_KIB = 1024


def mount(mountpoint: Path, *, allow_other: bool, source: str) -> int:
    """Mount with the system call if this process may use it and the device, else by the program fusermount3.

    Args:
        mountpoint: a prepared mount point.
        allow_other: let other users access the mount.
        source: the source that lists of mounts show.

    Returns:
        The descriptor on which the kernel sends its requests.

    Raises:
        MountError: neither way works.
    """
    options = [f"max_read={MAX_READ}", "default_permissions"]
    if allow_other:
        options.append("allow_other")
    try:
        return _mount_directly(mountpoint, options, source)
    except OSError as error:
        return _mount_by_fusermount(mountpoint, options, source, error)


def _mount_directly(mountpoint: Path, options: list[str], source: str) -> int:
    """Mount with the system call.

    Raises:
        OSError: the device cannot be opened (with the file name), or the system call fails (without).
    """
    fd = open_device()
    data = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},{','.join(options)}"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    kind = f"fuse.{SUBTYPE}".encode()
    if libc.mount(source.encode(), os.fsencode(mountpoint), kind, ctypes.c_ulong(flags), data.encode()):
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code))
    return fd


def _mount_by_fusermount(mountpoint: Path, options: list[str], source: str, error: OSError) -> int:
    """Mount by fusermount3, which sends the descriptor over a socket whose number it finds in its environment.

    Args:
        mountpoint: a prepared mount point.
        options: options of the mount.
        source: the source that lists of mounts show.
        error: why this process could not mount itself.
    """
    fusermount = find_fusermount()
    if fusermount is None:
        raise cannot_mount(mountpoint, no_fusermount(error), error) from error
    parent, child = socket.socketpair()
    with parent, child:
        # Without noatime, which some AppArmor profiles refuse: nothing updates the times of a read-only mount.
        text = ",".join(["ro", "nosuid", "nodev", f"fsname={source}", f"subtype={SUBTYPE}", *options])
        try:
            done = subprocess.run(
                [fusermount, "-o", text, "--", str(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(child.fileno())},
                pass_fds=[child.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as failure:
            message = f"cannot run {fusermount}: {failure.strerror}"
        else:
            message = "".join(done.stderr.strip().splitlines()[-1:])
            child.close()
            if not done.returncode:
                _, received, _, _ = socket.recv_fds(parent, 1, 1, socket.MSG_CMSG_CLOEXEC)
                if received:
                    return received[0]
                message = message or "it sent no descriptor"
    raise cannot_mount(mountpoint, explain(message, mountpoint, filesystem_type(mountpoint), error), error) from error


def try_to_mount(mountpoint: Path) -> None:
    """Mount and unmount, to learn whether this process can.

    Args:
        mountpoint: a prepared mount point.

    Raises:
        MountError: it cannot.
    """
    os.close(mount(mountpoint, allow_other=False, source="trial"))  # a mount without a server is dead
    unmount(mountpoint, lazy=True)


def open_backing(fuse_fd: int, fd: int) -> int:
    """Register a file that the kernel may read itself.

    Returns:
        The backing id of the file.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, EOPNOTSUPP or ELOOP if the filesystem of the file is not supported.
    """
    # The id is the result of the ioctl, which Python returns only if it may change the buffer.
    return int(fcntl.ioctl(fuse_fd, IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0)), True))


def close_backing(fuse_fd: int, backing_id: int) -> None:
    """End the registration of a file; handles that use it keep working."""
    fcntl.ioctl(fuse_fd, IOC_BACKING_CLOSE, array.array("I", [backing_id]))


def request_timeout(settings: Path = Path("/proc/sys/fs/fuse")) -> int:
    """Return the seconds after which the kernel aborts a mount that leaves a request unanswered; 0 for never.

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
    """Let the kernel read ahead up to 1 MiB in a mount; without root it stays at 128 KiB.

    Args:
        device_number: `major:minor` of the mount.
    """
    setting = Path(f"/sys/class/bdi/{device_number}/read_ahead_kb")
    try:
        if int(setting.read_text()) < _READ_AHEAD_KIB:
            setting.write_text(str(_READ_AHEAD_KIB))
    except (OSError, ValueError):
        return
