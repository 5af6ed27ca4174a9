"""A fusermount3 that mounts from outside of a container: the program inside, and the server that has the device.

The program (this file, run by the name of fusermount3 or fusermount) sends its arguments and its socket to the server;
the server enters the mount namespace of the program and mounts there with a descriptor that it opened outside.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

if __name__ != "__main__":  # the program has only the standard library
    from tests.support.namespaces import in_namespace

MASKS = {
    "masked": 'mount --bind /dev/null "$DEVICE"',
    "nodev": 'mount --bind "$DEVICE" "$DEVICE"; mount -o remount,bind,nodev "$DEVICE"',
    "missing": (
        'mkdir "$SCRATCH/dev"; mount -t tmpfs tmpfs "$SCRATCH/dev"; cd "$SCRATCH/dev";'
        " for name in null zero random urandom; do touch $name; mount --bind /dev/$name $name; done;"
        ' mkdir shm; mount --bind /dev/shm shm; ln -s /proc/self/fd fd; cd /; mount --rbind "$SCRATCH/dev" /dev'
    ),
}
"""How a container hides /dev/fuse: commands of a shell in a mount namespace of its own."""

REPLACE = 'mount --bind "$2" "$(readlink -f "$(command -v fusermount3)")"\n'
"""Let the second argument of a script take the place of fusermount3: libfuse 2 does not look for it in PATH."""

_CLONE_NEWNS = 0x20000
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noatime": 1024}
"""linux/mount.h"""


def inside(scratch: Path, mask: str, *, fusermount: Path | None = None) -> Sequence[str]:
    """Return the words before a command that run it in a mount namespace without /dev/fuse.

    Args:
        scratch: an existing folder.
        mask: one of `MASKS`.
        fusermount: the program to find in the place of fusermount3; None for the real one.
    """
    script = f'DEVICE=/dev/fuse SCRATCH="$1"; {MASKS[mask]}\n'
    return in_namespace(script + (REPLACE if fusermount is not None else ""), scratch, fusermount or "")


@contextmanager
def proxy(folder: Path) -> Iterator[Path]:
    """Run the server; yield the program to use as fusermount3."""
    program, address = folder / "fusermount3-proxy", folder / "proxy.sock"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {__file__} {address} "$@"\n')
    program.chmod(0o755)
    with subprocess.Popen([sys.executable, "-I", __file__, "--serve", address], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield program
        finally:
            server.send_signal(signal.SIGTERM)


def _serve(address: str) -> NoReturn:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        Path(address).chmod(0o777)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                arguments, received, _, _ = socket.recv_fds(connection, 65536, 1)
                pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, 17, 4), sys.byteorder)  # SO_PEERCRED
                child = os.fork()  # to enter a namespace for good
                if child == 0:
                    try:
                        _act(json.loads(arguments), pid, received)
                        os._exit(0)
                    except OSError as error:
                        connection.sendall(f"fusermount3: mount failed: {error.strerror}".encode())
                        os._exit(1)
                connection.sendall(b"" if os.waitpid(child, 0)[1] == 0 else b"\n")
                for fd in received:
                    os.close(fd)


def _act(arguments: list[str], pid: int, received: list[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    device = os.open("/dev/fuse", os.O_RDWR)
    check(libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), _CLONE_NEWNS))
    *_, path = arguments
    if "-u" in arguments:
        check(libc.umount2(path.encode(), 2 if "-z" in arguments else 0))
        return
    options = arguments[arguments.index("-o") + 1].split(",")
    named = dict(option.partition("=")[::2] for option in options)
    flags = sum(flag for name, flag in _FLAGS.items() if name in named)
    ours = {"fsname", "subtype", "auto_unmount", *_FLAGS, "rw"}
    data = [option for option in options if option.partition("=")[0] not in ours]
    owner = Path(f"/proc/{pid}").stat()
    data += [f"fd={device}", f"rootmode={stat.S_IFDIR:o}", f"user_id={owner.st_uid}", f"group_id={owner.st_gid}"]
    kind = f"fuse.{named['subtype']}"
    check(libc.mount(named["fsname"].encode(), path.encode(), kind.encode(), flags, ",".join(data).encode()))
    with socket.socket(fileno=received[0]) as commfd:
        socket.send_fds(commfd, [b"\0"], [device])


def _ask(address: str, arguments: list[str]) -> NoReturn:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        commfd = os.environ.get("_FUSE_COMMFD")
        socket.send_fds(connection, [json.dumps(arguments).encode()], [] if commfd is None else [int(commfd)])
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    sys.exit(answer.decode().strip() or 1 if answer else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2])
    _ask(sys.argv[1], sys.argv[2:])
