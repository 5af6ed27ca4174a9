"""Between a kernel and the tree: thin adapters, and the life of a mount.

`fusepy` serves a `kinetics_fs.vfs.Filesystem` by libfuse; `mountpoint` checks and releases places; `daemon` goes into
the background and reports back.
"""

from kinetics_fs.mount.mountpoint import find_mounts, prepare_mountpoint, real_place, unmount

__all__ = ["find_mounts", "prepare_mountpoint", "real_place", "unmount"]
