"""The front end of Linux: speaks the FUSE protocol itself, over /dev/fuse; no libfuse, no C.

`protocol` has the messages, `device` gets and releases the descriptor they travel on, `server` answers them.
"""

from kinetics_fs.mount.native.server import serve

__all__ = ["serve"]
