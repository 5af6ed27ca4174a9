"""How a running mount is spoken to: a Unix socket of its own, JSON lines, one request on a connection.

A request is one object: what to `do`, and what that needs. Lines may follow it, if it says how many::

    → {"do": "prefetch", "classes": ["surfing water"]}
    ← {"ok": {"id": 3, "clips": 512}}

    → {"do": "prefetch", "lines": 2}
    → validation/surfing water/-a1B2c3D4e5_000010_000020.mp4
    → validation/surfing water/_a1B2c3D4e5_000000_000010.mp4
    ← {"ok": {"id": 4, "clips": 2}}

The answer is a line with `ok`, or with `error` and one sentence for people. Before it may come any number of lines with
`so_far`, where the request asks to be kept informed. What there is to do is told in docs/control.md.

The socket is in a folder that only its user can enter, under a name that is a hash of the mount point: whoever can
speak to it is who mounted, or root.
"""

from kinetics_fs.control.client import Connection, connect
from kinetics_fs.control.paths import socket_path
from kinetics_fs.control.server import ControlServer, Request

__all__ = ["Connection", "ControlServer", "Request", "connect", "socket_path"]
