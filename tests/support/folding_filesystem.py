"""A filesystem that ignores case and refuses some names, as those of memory cards do.

To mount one: `python -m tests.support.folding_filesystem FOLDER MOUNTPOINT`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from unicodedata import normalize

import fuse

from tests.support.fuse_programs import mounted_program


class FoldingFilesystem(fuse.Operations):  # type: ignore[misc]  # fusepy has no types
    """Shows a folder. Names are one if they differ only in case, in their form of Unicode, or in dots at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _real(self, path: str) -> Path:
        real = self._folder
        for name in filter(None, path.split("/")):
            if re.search(r'[<>:"|?*\\]', name):
                raise fuse.FuseOSError(errno.EINVAL)
            names = [one.name for one in real.iterdir()] if real.is_dir() else []
            real /= next((one for one in names if _folded(one) == _folded(name)), name)
        return real

    def getattr(self, path: str, fh: int | None = None) -> dict[str, object]:
        status = self._real(path).lstat()
        return {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(one.name for one in self._real(path).iterdir())]

    def mkdir(self, path: str, mode: int) -> None:
        self._real(path).mkdir(mode)

    def rmdir(self, path: str) -> None:
        self._real(path).rmdir()

    def create(self, path: str, mode: int, fi: object = None) -> int:
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._real(path), length)

    def unlink(self, path: str) -> None:
        self._real(path).unlink()

    def rename(self, old: str, new: str) -> None:
        self._real(old).rename(self._real(new))


def _folded(name: str) -> str:
    return normalize("NFD", normalize("NFD", name).casefold()).rstrip(". ")


def folding_filesystem(folder: Path, mountpoint: Path) -> AbstractContextManager[Path]:
    """Mount the filesystem while the context lasts. The folder and the mountpoint are made."""
    return mounted_program(__name__, folder, mountpoint)


if __name__ == "__main__":
    fuse.FUSE(FoldingFilesystem(Path(sys.argv[1])), sys.argv[2], foreground=True, nothreads=True, use_ino=True)
