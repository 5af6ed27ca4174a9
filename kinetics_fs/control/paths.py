"""Where the sockets of mounts are."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from kinetics_fs.errors import MountError


def socket_path(place: Path) -> Path:
    """The socket of the mount on a place; whether there is one or not.

    Args:
        place: absolute path of the mount point, without symbolic links.
    """
    return _folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:24]}.sock"


def prepare_folder() -> Path:
    """Makes the folder of the sockets, or checks that it is ours alone.

    Raises:
        MountError: it is not, or cannot be made.
    """
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise MountError(f"cannot make {folder} for the mount's socket: {error.strerror}") from error
    # In a folder that all may write to, anybody could have been there first.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise MountError(f"{folder} belongs to another user: remove it, or set XDG_RUNTIME_DIR")
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def _folder() -> Path:
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/kinetics-fs")
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and Path(given).is_dir():
        return Path(given, "kinetics-fs")
    return Path(tempfile.gettempdir(), f"kinetics-fs-{os.geteuid()}")
