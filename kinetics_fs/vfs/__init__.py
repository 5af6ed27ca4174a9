"""The filesystem as pure code: a tree of inodes over catalog, store and fetcher. Knows nothing of FUSE.

`Tree` answers what a front end (`kinetics_fs.mount`) is asked by a kernel. No call of it waits for the network:
`Tree.open` returns a future. All calls are safe from any thread.
"""

from kinetics_fs.vfs.budget import Gate
from kinetics_fs.vfs.errnos import errno_of
from kinetics_fs.vfs.filesystem import LONGEST_NAME, ROOT, Tree
from kinetics_fs.vfs.hidden import Hidden, Name, Watch
from kinetics_fs.vfs.nodes import (
    Attributes,
    ClipHandle,
    DirEntry,
    Handle,
    Lasting,
    NodeType,
    SharedFile,
    Statistics,
    mode_of,
)
from kinetics_fs.vfs.readahead import Readahead, Readers

__all__ = [
    "LONGEST_NAME",
    "ROOT",
    "Attributes",
    "ClipHandle",
    "DirEntry",
    "Gate",
    "Handle",
    "Hidden",
    "Lasting",
    "Name",
    "NodeType",
    "Readahead",
    "Readers",
    "SharedFile",
    "Statistics",
    "Tree",
    "Watch",
    "errno_of",
    "mode_of",
]
