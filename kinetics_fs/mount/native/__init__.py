"""The front end of Linux: the FUSE protocol over /dev/fuse, without libfuse or C code.

`protocol` defines the messages, `device` mounts and opens the descriptor, `server` is the loop, `operations` answers
requests, `readdir` lists directories, `passthrough` lets the kernel read cached files itself.
"""

from kinetics_fs.mount.native.server import serve

__all__ = ["serve"]
