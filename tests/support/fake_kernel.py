"""A fake kernel that talks to a `Server` over a pair of sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from kinetics_fs.mount.native import protocol as p
from kinetics_fs.mount.native.server import Server
from kinetics_fs.vfs import ROOT, Filesystem

FLAGS_5_4 = sum(
    1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
)
"""The flags that Linux 5.4 offers."""
FLAGS_6_18 = FLAGS_5_4 | sum(1 << bit for bit in (28, 29, 30, 32, 33, 35, 36, 37, 38, 39, 40, 42))
"""The flags that Linux 6.18 offers, with the extension and passthrough."""

_TIMEOUT = 20.0
_BUFFER = 8 * 1024 * 1024
_RECEIVED_AT_MOST = 2 * 1024 * 1024


class Reply(NamedTuple):
    """A reply; `error` is a positive errno, or 0."""

    unique: int
    error: int
    payload: bytes


class Notification(NamedTuple):
    code: int
    payload: bytes

    @property
    def ino(self) -> int:
        return int(struct.unpack_from("=Q", self.payload)[0])


class Kernel:
    """Sends requests to a server, and checks the form of all its messages.

    Attributes:
        notified: the notifications received so far.
    """

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._numbers = count(2, 2)
        self._early: dict[int, Reply] = {}
        self.notified: list[Notification] = []

    # Messages

    def send(self, opcode: int, nodeid: int = ROOT, body: bytes = b"", unique: int | None = None) -> int:
        """Send a request; return its number."""
        if unique is None:
            unique = next(self._numbers)
        length = p.IN_HEADER.size + len(body)
        self.send_raw(p.IN_HEADER.pack(length, opcode, unique, nodeid, 0, 0, os.getpid(), 0) + body)
        return unique

    def send_raw(self, message: bytes) -> None:
        self._socket.settimeout(_TIMEOUT)
        self._socket.send(message)

    def next_message(self, timeout: float = _TIMEOUT) -> Reply | Notification:
        """Return the next message of the server.

        Raises:
            TimeoutError: there is none.
        """
        self._socket.settimeout(timeout)
        message = self._socket.recv(_RECEIVED_AT_MOST)
        header = p.OUT_HEADER.unpack(memoryview(message))
        assert header.len == len(message)
        payload = message[p.OUT_HEADER.size :]
        if header.unique == 0:
            assert header.error > 0, "a notification has a code"
            self.notified.append(Notification(header.error, payload))
            return self.notified[-1]
        assert -512 < header.error <= 0, "the kernel refuses other errors"
        assert not (header.error and payload), "an error has no payload"
        return Reply(header.unique, -header.error, payload)

    def reply(self, unique: int, timeout: float = _TIMEOUT) -> Reply:
        """Return the reply to a request; keep the replies to others for later calls."""
        while unique not in self._early:
            message = self.next_message(timeout)
            if isinstance(message, Reply):
                assert message.unique not in self._early, "two replies to one request"
                self._early[message.unique] = message
        return self._early.pop(unique)

    def call(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> Reply:
        return self.reply(self.send(opcode, nodeid, body))

    def ask(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> bytes:
        """Send a request that must succeed; return the payload of the reply."""
        reply = self.call(opcode, nodeid, body)
        assert reply.error == 0, os.strerror(reply.error)
        return reply.payload

    def fail(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> int:
        """Send a request that must fail; return its errno."""
        reply = self.call(opcode, nodeid, body)
        assert reply.error, "it succeeded"
        return reply.error

    def is_answered(self, unique: int) -> bool:
        """Return True if the server has replied to a request, once it has read everything sent so far."""
        self.assert_alive()
        return unique in self._early

    def assert_alive(self) -> None:
        """Check that the server answers; afterwards it has read everything sent before."""
        assert self.call(p.Opcode.GETATTR, ROOT, p.GETATTR_IN.pack(0, 0)).error == 0

    # Requests

    def init(self, *, major: int = 7, minor: int = 45, flags: int = FLAGS_6_18, long: bool = True) -> Reply:
        begin = p.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF)
        return self.call(p.Opcode.INIT, 0, begin + struct.pack("=I44x", flags >> 32) if long else begin)

    def lookup(self, parent: int, name: str | bytes) -> tuple[p.EntryOut, p.Attr]:
        payload = self.ask(p.Opcode.LOOKUP, parent, os.fsencode(name) + b"\0")
        assert len(payload) == 128
        return p.ENTRY_OUT.unpack(memoryview(payload)), p.ATTR.unpack(memoryview(payload)[p.ENTRY_OUT.size :])

    def getattr(self, ino: int, fh: int | None = None) -> tuple[p.AttrOut, p.Attr]:
        payload = self.ask(p.Opcode.GETATTR, ino, p.GETATTR_IN.pack(int(fh is not None), fh or 0))
        assert len(payload) == 104
        return p.ATTR_OUT.unpack(memoryview(payload)), p.ATTR.unpack(memoryview(payload)[p.ATTR_OUT.size :])

    def send_open(self, ino: int, flags: int = os.O_RDONLY) -> int:
        return self.send(p.Opcode.OPEN, ino, p.OPEN_IN.pack(flags, 0))

    def open(self, ino: int) -> p.OpenOut:
        return opened(self.reply(self.send_open(ino)))

    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.ask(p.Opcode.READ, ROOT, p.READ_IN.pack(fh, offset, size, 0, 0, 0))

    def release(self, fh: int) -> None:
        assert self.ask(p.Opcode.RELEASE, ROOT, p.RELEASE_IN.pack(fh, 0, 0, 0)) == b""

    def interrupt(self, unique: int) -> None:
        self.send(p.Opcode.INTERRUPT, ROOT, p.INTERRUPT_IN.pack(unique), unique | 1)


def opened(reply: Reply) -> p.OpenOut:
    """Return the answer to an open, which must have succeeded."""
    assert reply.error == 0, os.strerror(reply.error)
    assert len(reply.payload) == p.OPEN_OUT.size
    return p.OPEN_OUT.unpack(memoryview(reply.payload))


class Conversation(NamedTuple):
    kernel: Kernel
    server: Server
    thread: threading.Thread


@contextmanager
def converse(
    filesystem: Filesystem, *, passthrough: bool = False, on_init: Callable[[], None] = lambda: None
) -> Iterator[Conversation]:
    """Run a server in a thread, with a kernel that has not yet sent INIT; check in the end that the loop is intact."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failures: list[BaseException] = []
    with ours, theirs:
        for end in (ours, theirs):
            try:
                end.setsockopt(socket.SOL_SOCKET, 32, _BUFFER)  # SO_SNDBUFFORCE, which Python does not name
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        server = Server(filesystem, theirs.fileno(), max_stack_depth=int(passthrough))

        def run() -> None:
            try:
                server.run(on_init)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="server", daemon=True)
        thread.start()
        try:
            yield Conversation(Kernel(ours), server, thread)
        finally:
            server.stop()
            thread.join(_TIMEOUT)
        assert not thread.is_alive(), "the loop hangs"
        assert not failures, failures
