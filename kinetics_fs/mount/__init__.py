"""From a filesystem to a mount: front ends, life cycle, control requests and status.

`session` composes a mount and runs it. `native` and `fusepy` are the front ends between a kernel and a
`kinetics_fs.vfs.Filesystem`. `mountpoint` prepares and releases mount points, `daemon` goes into the background.
"""

from kinetics_fs.mount.mountpoint import find_mounts, prepare_mountpoint, real_path, unmount

__all__ = ["find_mounts", "prepare_mountpoint", "real_path", "unmount"]
