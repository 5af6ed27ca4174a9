"""The nodes of a mount: their types, attributes and names, and the interface of open files."""

from __future__ import annotations

import enum
import stat
from typing import NamedTuple, Protocol

from kinetics_fs.catalog import Catalog, ClassNames, Directory, Entry, name_table
from kinetics_fs.store import Space

ROOT = 1
CONTROL_DIRECTORY = 2
VAL_LINK = 3
FIRST_VIRTUAL_FILE = 16
"""Virtual nodes have small inode numbers. Those of the catalog begin at 2**32 (`kinetics_fs.catalog.inodes`)."""

MAX_NAME_BYTES = 255
"""Maximum length of one path component: NAME_MAX of Linux and macOS."""


class NodeType(enum.IntEnum):
    """The type bits of a mode (inode(7))."""

    DIRECTORY = stat.S_IFDIR
    FILE = stat.S_IFREG
    SYMLINK = stat.S_IFLNK


def mode_of(kind: NodeType) -> int:
    """Return type and permissions of a node: all users may read it, none may write it."""
    return kind | (0o555 if kind is NodeType.DIRECTORY else 0o444)


class AttrCache(enum.IntEnum):
    """How long a kernel may cache the attributes of a node."""

    NONE = 0
    """A virtual file that changes while it is mounted."""
    UNTIL_OPEN = 1
    """A clip that is not in the cache: its size is remembered or estimated, and exact once the clip is open."""
    FOREVER = 2


class Attributes(NamedTuple):
    """The result of stat: `size` in bytes, `mtime` in whole seconds since the epoch."""

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
        """Blocks of 512 bytes. Clips that are not in the cache have them too: `tar -S` skips a file without blocks."""
        return -(-self.size // 512)


class DirEntry(NamedTuple):
    """A name in a directory."""

    name: str
    ino: int
    type: NodeType


MAX_FILES = 2**32 - 1
"""Number of files that statfs reports as possible: with none left, monitors would call the filesystem full."""


class Statistics(NamedTuple):
    """The result of statfs.

    Attributes:
        space: how full the cache is.
        files: number of clips shown.
    """

    space: Space
    files: int

    def blocks(self, size: int) -> tuple[int, int, int]:
        """Return `f_blocks`, `f_bfree` and `f_bavail` of statvfs(3), in blocks of `size` bytes."""
        used = -(-self.space.used // size)
        total = max(used, self.space.total // size)
        return total, total - used, min(total, self.space.available // size)


class Handle(Protocol):
    """An open file. The front end that opened it closes it, once."""

    @property
    def size(self) -> int:
        """Exact size in bytes; constant while the handle is open."""
        ...

    @property
    def live(self) -> bool:
        """True if the next open may show other content, so that a kernel must not cache any of it."""
        ...

    def consume_invalidation(self) -> bool:
        """Return True if the kernel may know another size or other content of this inode.

        True once per content: the caller must make its kernel forget what it knows.
        """
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class DirectoryTree:
    """The splits and classes of a catalog, under the names that a mount shows.

    Args:
        catalog: the clips of the mount.
        style: how labels become directory names.

    Attributes:
        splits: split name → directory.
        classes: inode number of a split → name of a class → directory.
        class_names: names of all classes; the position of a name is its class index.

    Raises:
        CatalogError: two labels get the same directory name.
    """

    def __init__(self, catalog: Catalog, style: ClassNames) -> None:
        self._catalog = catalog
        self.splits = {split.split: split for split in catalog.splits()}
        self.classes = {split.ino: _by_name(catalog.classes(split), style) for split in self.splits.values()}
        self.class_names = list(name_table(catalog.labels(), style))
        self._class_name = {
            directory.ino: name for classes in self.classes.values() for name, directory in classes.items()
        }

    def path(self, entry: Entry) -> str:
        """Return the path of a clip below the mount point: `split/class/clip.mp4`."""
        directory = self._catalog.directory(entry.directory)
        assert directory is not None
        return f"{directory.split}/{self._class_name[directory.ino]}/{entry.clip.name}"


def _by_name(directories: list[Directory], style: ClassNames) -> dict[str, Directory]:
    by_label = {directory.label or "": directory for directory in directories}
    return {name: by_label[label] for name, label in name_table(list(by_label), style).items()}
