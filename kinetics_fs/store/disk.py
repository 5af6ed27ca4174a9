"""The clip files, as a diskcache `Disk`: files are adopted, never copied, and nothing is ever unpickled.

diskcache would store any Python object, by pickle when it must. A cache folder can be handed from one machine
to another, so what stands in it is data from outside: here a row is a clip file under a name that we built, or
it is treated as missing.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache.core import MODE_BINARY

from kinetics_fs.catalog.clip import parse_clip_name

_FILE_NAME = re.compile(r"[0-9a-f]{2}/(?P<key>[A-Za-z0-9_-]{11}_\d{6}_\d{6})\.[0-9a-f]{32}\.mp4")


class Staged(NamedTuple):
    """A finished file that is to become a clip of the store: it is moved, so it must be on the same filesystem."""

    path: Path
    size: int
    token: str
    """32 hexadecimal digits, of this fetch alone: makes the final name unique, and findable after a crash."""


class OpenedFile(NamedTuple):
    """A clip's file, open for reading; whoever gets it closes it."""

    fd: int
    filename: str


def clip_filename(key: str, token: str) -> str:
    """Path of a clip's file below the clips folder. 256 folders keep each one small at 650,000 clips."""
    return f"{zlib.crc32(key.encode()) % 256:02x}/{key}.{token}.mp4"


class ClipDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no annotations
    """Keys are clip keys; values go in as `Staged` files and come out as `OpenedFile`."""

    def put(self, key: object) -> tuple[str, bool]:
        if not isinstance(key, str) or parse_clip_name(f"{key}.mp4") is None:
            raise ValueError(f"not a clip key: {key!r}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        return self.put(key)[0]

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str, None]:
        if not isinstance(value, Staged):
            raise TypeError(f"only staged files can be stored, not {type(value).__name__}")
        filename = clip_filename(self.put(key)[0], value.token)
        target = Path(self._directory, filename)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        value.path.rename(target)
        _sync_folder(target.parent)
        return value.size, MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> OpenedFile:
        if mode != MODE_BINARY or filename is None or not _FILE_NAME.fullmatch(filename):
            # diskcache takes an OSError here for "no longer there", which is what we want of a row that is not ours.
            raise OSError(errno.EINVAL, "not a clip of this store", filename)
        return OpenedFile(os.open(Path(self._directory, filename), os.O_RDONLY | os.O_NOFOLLOW), filename)

    def remove(self, file_path: str) -> None:
        if _FILE_NAME.fullmatch(file_path):
            Path(self._directory, file_path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
