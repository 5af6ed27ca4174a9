"""What a front end gets to see of the tree."""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol


class NodeType(enum.IntEnum):
    """The type bits of a mode."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG
    SYMLINK = stat.S_IFLNK


def mode_of(kind: NodeType) -> int:
    """Type and permissions: everything may be read, nothing written."""
    return kind | (0o555 if kind is NodeType.DIRECTORY else 0o444)


class AttrCache(enum.IntEnum):
    """For how long attributes hold."""

    NONE = 0
    """A virtual file that changes while it is mounted."""
    UNTIL_OPEN = 1
    """A clip that is not here: its size is remembered or estimated, and exact once it is open."""
    FOREVER = 2


class Attributes(NamedTuple):
    """What stat shows. `size` in bytes, `mtime` in whole seconds since the epoch."""

    ino: int
    type: NodeType
    size: int
    links: int
    mtime: int
    attr_cache: AttrCache

    @property
    def mode(self) -> int:
        """Type and permissions."""
        return mode_of(self.type)

    @property
    def blocks(self) -> int:
        """Blocks of 512 bytes; for clips that are not here, too, for `tar -S` takes a file without any for empty."""
        return -(-self.size // 512)


class DirEntry(NamedTuple):
    """A name in a directory."""

    name: str
    ino: int
    type: NodeType


class Statistics(NamedTuple):
    """What statfs shows, in bytes and files."""

    bytes_used: int
    files: int


class Handle(Protocol):
    """An open file; closed once by who opened it."""

    @property
    def size(self) -> int:
        """Bytes: exact, and the same as long as it is open."""
        ...

    @property
    def live(self) -> bool:
        """Whether the next open may show other content, so that a kernel should keep none of it."""
        ...

    def consume_invalidation(self) -> bool:
        """Whether its size or content may be other than what was shown of this inode before: true once per content,
        for the front end that asks when it answers, and tells its kernel.
        """
        ...

    def read(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class SharedFile:
    """The one file behind all handles that an inode has at a time.

    A kernel keeps one set of pages per inode: while any handle is open, every other must show the same bytes, even
    if the clip was evicted and fetched anew meanwhile.
    """

    def __init__(self, fd: int, size: int, version: float, *, news: bool) -> None:
        self.fd = fd
        self.size = size
        self.version = version
        self.users = 0
        self.news = news


class ClipHandle:
    """An open clip: its bytes stay, whatever happens to the store."""

    live = False

    def __init__(
        self,
        file: SharedFile,
        *,
        consume_invalidation: Callable[[SharedFile], bool],
        release: Callable[[SharedFile], None],
    ) -> None:
        self.file = file
        self._consume_invalidation = consume_invalidation
        self._release = release

    @property
    def size(self) -> int:
        return self.file.size

    def consume_invalidation(self) -> bool:
        return self._consume_invalidation(self.file)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fd, size, offset)

    def close(self) -> None:
        self._release(self.file)
