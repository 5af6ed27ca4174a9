"""The runtime directory, which holds the control sockets of mounts."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from kinetics_fs.errors import MountError


def socket_path(mountpoint: Path) -> Path:
    """Return the path of the control socket of a mount, whether it exists or not.

    Args:
        mountpoint: absolute path of the mount point, without symbolic links.
    """
    return _runtime_dir() / f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24]}.sock"


def prepare_runtime_dir() -> Path:
    """Create the runtime directory, or check that it belongs to this user alone.

    Raises:
        MountError: it belongs to another user, or cannot be created.
    """
    folder = _runtime_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise MountError(
            f"cannot create the runtime directory {folder}: {error.strerror};"
            " set XDG_RUNTIME_DIR to a writable directory"
        ) from error
    # In a directory that all users may write to, another one can have created it first.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise MountError(
            f"cannot use the runtime directory {folder}: it belongs to another user; remove it, or set XDG_RUNTIME_DIR"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def is_private(folder: Path) -> bool:
    """Return whether a directory belongs to this user, and no other user can put a socket into it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _runtime_dir() -> Path:
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/kinetics-fs")
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and Path(given).is_dir():
        return Path(given, "kinetics-fs")
    return Path(tempfile.gettempdir(), f"kinetics-fs-{os.geteuid()}")
