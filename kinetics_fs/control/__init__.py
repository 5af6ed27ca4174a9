"""The control protocol between a mount and the commands: JSON lines over a Unix socket, one request per connection.

A request is one JSON object in a line, with the name of the `request` and its parameters. If it announces a number of
`lines`, that many lines of text follow::

    → {"request": "prefetch", "classes": ["surfing water"]}
    ← {"result": {"id": 3, "clips": 512}}

    → {"request": "prefetch", "lines": 2}
    → validation/surfing water/-a1B2c3D4e5_000010_000020.mp4
    → validation/surfing water/_a1B2c3D4e5_000000_000010.mp4
    ← {"result": {"id": 4, "clips": 2}}

The answer is a line with `result`, or with `error` and one sentence for people. Any number of lines with `progress` may
come before it. docs/control.md lists the requests; `kinetics_fs.mount.handlers` implements them.

The socket is in a directory that only its user can enter, and its name is a hash of the mount point. Only the user who
mounted, and root, can connect.
"""

from kinetics_fs.control.client import Connection, NoAnswerError, connect
from kinetics_fs.control.paths import socket_path
from kinetics_fs.control.server import ControlServer, Request, RequestHandler

__all__ = ["Connection", "ControlServer", "NoAnswerError", "Request", "RequestHandler", "connect", "socket_path"]
