"""A filesystem without file locks, or without files that can be mapped into memory, as some network filesystems are.

To mount one: `python -m tests.support.featureless_filesystem FOLDER MOUNTPOINT {locks,mmap,network}`. With `network`,
its type is fuse.sshfs.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fuse

from tests.support.folding_filesystem import FoldingFilesystem
from tests.support.fuse_programs import mounted_program

_STATFS = ["f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax"]


class _Filesystem(FoldingFilesystem):
    def _real(self, path: str) -> Path:
        return Path(f"{self._folder}{path}")

    def chmod(self, path: str, mode: int) -> None:
        self._real(path).chmod(mode)

    def fsync(self, path: str, data_only: int, fh: int) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._folder)
        return {name: getattr(status, name) for name in _STATFS}


class _WithoutLocks(_Filesystem):
    def lock(self, path: str, info: object, command: int, lock: object) -> None:
        raise fuse.FuseOSError(errno.ENOLCK)


def featureless_filesystem(folder: Path, mountpoint: Path, lacking: str) -> AbstractContextManager[Path]:
    """Mount the filesystem while the context lasts. The folder and the mountpoint are made."""
    return mounted_program(__name__, folder, mountpoint, lacking)


if __name__ == "__main__":
    # The kernel maps no file shared that is read and written directly.
    operations, direct = (_WithoutLocks, False) if sys.argv[3] == "locks" else (_Filesystem, True)
    options: dict[str, Any] = {"foreground": True, "nothreads": True, "use_ino": True, "direct_io": direct}
    if sys.argv[3] == "network":
        options["subtype"] = "sshfs"
    fuse.FUSE(operations(Path(sys.argv[1])), sys.argv[2], **options)
