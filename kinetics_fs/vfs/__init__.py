"""The filesystem as pure code: inodes over catalog, store and fetcher. Knows nothing of FUSE.

A front end of `kinetics_fs.mount` passes the requests of a kernel to a `Filesystem`.
"""

from kinetics_fs.vfs.budget import FetchBudget
from kinetics_fs.vfs.errnos import errno_of
from kinetics_fs.vfs.filesystem import Filesystem, FilesystemOptions
from kinetics_fs.vfs.hidden import HiddenClips, HiddenWatcher, Name
from kinetics_fs.vfs.nodes import (
    MAX_FILES,
    MAX_NAME_BYTES,
    ROOT,
    AttrCache,
    Attributes,
    DirEntry,
    Handle,
    NodeType,
    Statistics,
    mode_of,
)
from kinetics_fs.vfs.open_limit import OpenLimit
from kinetics_fs.vfs.opens import ClipHandle, Fetcher, OnOpen, OpenPhase, SharedFile
from kinetics_fs.vfs.readahead import OpenObserver, Readahead

__all__ = [
    "MAX_FILES",
    "MAX_NAME_BYTES",
    "ROOT",
    "AttrCache",
    "Attributes",
    "ClipHandle",
    "DirEntry",
    "FetchBudget",
    "Fetcher",
    "Filesystem",
    "FilesystemOptions",
    "Handle",
    "HiddenClips",
    "HiddenWatcher",
    "Name",
    "NodeType",
    "OnOpen",
    "OpenLimit",
    "OpenObserver",
    "OpenPhase",
    "Readahead",
    "SharedFile",
    "Statistics",
    "errno_of",
    "mode_of",
]
