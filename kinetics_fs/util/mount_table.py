"""The mounts that this process sees, and the types of their filesystems (Linux only)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NETWORK_TYPES = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ncpfs"),
    *(f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "glusterfs", "ceph", "ceph-fuse", "juicefs")),
}
"""Filesystem types whose data is on another machine."""


class MountInfo(NamedTuple):
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    path: Path
    device: str
    type: str
    options: str
    """Options of the filesystem. FUSE has the user id of the owner here."""


def mount_table() -> Iterator[MountInfo]:
    """Yield the mounts that this process sees, in the order of the kernel; none on systems other than Linux."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        # Six or more fields, of which the third is the device and the fifth the mount point; ` - `; the type, the
        # source, and the options of the filesystem.
        fields, _, rest = line.partition(b" - ")
        _, _, device, _, path, *_ = fields.split(b" ")
        type, _, source_and_options = rest.decode(errors="replace").partition(" ")
        yield MountInfo(_unescape(path), device.decode(), type, source_and_options.rpartition(" ")[2])


def _unescape(field: bytes) -> Path:
    """Return a path from a field in which blanks and the like are octal escapes."""
    return Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)))


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem of a path, such as `ext4`; an empty string if it is unknown.

    Args:
        path: absolute and without symbolic links; it is not touched.
    """
    found, depth = "", -1
    for mount in mount_table():
        # The deepest one, and of several on one path the last, which hides the others.
        if path.is_relative_to(mount.path) and len(mount.path.parts) >= depth:
            found, depth = mount.type, len(mount.path.parts)
    return found
