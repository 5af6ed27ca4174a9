"""The filesystem as pure code: a tree of inodes over catalog, store and fetcher. Knows nothing of FUSE.

`Filesystem` answers what a front end (`kinetics_fs.mount`) is asked by a kernel. No call of it waits for the network:
`Filesystem.open` returns a future. All calls are safe from any thread.
"""

from kinetics_fs.vfs.budget import FetchBudget
from kinetics_fs.vfs.errnos import errno_of
from kinetics_fs.vfs.filesystem import LONGEST_NAME, ROOT, Filesystem
from kinetics_fs.vfs.hidden import HiddenClips, HiddenWatcher, Name
from kinetics_fs.vfs.nodes import (
    AttrCache,
    Attributes,
    ClipHandle,
    DirEntry,
    Handle,
    NodeType,
    SharedFile,
    Statistics,
    mode_of,
)
from kinetics_fs.vfs.readahead import OpenObserver, Readahead

__all__ = [
    "LONGEST_NAME",
    "ROOT",
    "AttrCache",
    "Attributes",
    "ClipHandle",
    "DirEntry",
    "FetchBudget",
    "Filesystem",
    "Handle",
    "HiddenClips",
    "HiddenWatcher",
    "Name",
    "NodeType",
    "OpenObserver",
    "Readahead",
    "SharedFile",
    "Statistics",
    "errno_of",
    "mode_of",
]
