"""The clip files, as a diskcache `Disk`: files are adopted, never copied, and nothing is ever unpickled.

diskcache would store any Python object, by pickle when it must. A cache folder can be handed from one machine
to another, so what stands in it is data from outside: here a row is a clip file under a name that we built, or
it is treated as missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache.core import MODE_BINARY

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.util.files import fsync

_FILE_NAME = re.compile(r"[0-9a-f]{2}/(?P<key>[A-Za-z0-9_-]{11}_[0-9]{6}_[0-9]{6})\.[0-9a-f]{32}\.mp4")

_TOKEN = re.compile(r"[0-9a-f]{32}")
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO}
"""Why a file cannot be opened that say that it is no clip of ours; any other (no descriptors left) says nothing."""


class Unreadable(Exception):
    """A file that is there but could not be opened now."""

    def __init__(self, number: int | None, *rest: object) -> None:
        super().__init__(number, *rest)
        self.errno = number


def is_file_of(filename: str, key: str) -> bool:
    """Whether a file name in the table is one that we would give to this clip."""
    token = filename[-36:-4]
    return filename == clip_filename(key, token) and _TOKEN.fullmatch(token) is not None


def key_in(filename: str) -> str | None:
    """The key of the clip that a name below the clips folder stands for; None if it is none of ours."""
    match = _FILE_NAME.fullmatch(filename)
    return match["key"] if match and is_file_of(filename, match["key"]) else None


def open_clip_file(folder: str, filename: str) -> tuple[int, int] | None:
    """Opens a file of ours below the clips folder: its descriptor and size; None if there is none.

    A regular file, through no symbolic link, and without waiting for a writer, whatever stands in its place.

    Raises:
        Unreadable: it is there, but cannot be opened now.
    """
    shard, _, name = filename.partition("/")
    try:
        above = os.open(f"{folder}/{shard}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
        finally:
            os.close(above)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise Unreadable(error.errno, error.strerror, filename) from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    return None


class Staged(NamedTuple):
    """A finished file that is to become a clip of the store: it is moved, so it must be on the same filesystem."""

    path: Path
    size: int
    token: str
    """32 hexadecimal digits, of this fetch alone: makes the final name unique, and findable after a crash."""


def clip_filename(key: str, token: str) -> str:
    """Path of a clip's file below the clips folder. 256 folders keep each one small at 650,000 clips."""
    return f"{zlib.crc32(key.encode()) % 256:02x}/{key}.{token}.mp4"


class ClipDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no annotations
    """Keys are clip keys; values are `Staged` files that are moved in."""

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
        fsync(target.parent)
        return value.size, MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        raise TypeError("clips are opened by `open_clip_file`, and nothing else is kept here")

    def remove(self, file_path: str) -> None:
        if not isinstance(file_path, str) or not _FILE_NAME.fullmatch(file_path):
            return
        path = Path(self._directory, file_path)
        # Whatever somebody put in a file's place goes, and nothing outside of the folder.
        if path.parent.is_symlink():
            path.parent.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(NotADirectoryError):
                path.unlink(missing_ok=True)
