"""A slow link on loopback: a TCP relay with a round-trip time and a bandwidth, that counts the bytes it relays.

::

    with Link(server_port, rtt=0.05, bandwidth=4e6) as link:
        requests.get(f"{link.url}/file")
    link.to_client  # bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

_CHUNK = 8 * 1024
_SPARE = 12
"""Maximum number of chunks in the queue of the link."""
_BUFFER = 32 * 1024
"""Bytes of each socket's buffer. Small buffers keep the number of counted bytes close to the number of read bytes."""

_RESET = struct.pack("ii", 1, 0)  # no time to linger: closing sends RST in place of FIN


class Link:
    """A listener on its own port of 127.0.0.1 that relays every connection to `port`.

    Args:
        port: of the server.
        rtt: seconds from a request to the first byte of an answer that takes no time; half of it each way.
        bandwidth: bytes a second towards the client, for each connection by itself; None is no limit.
        handshake: seconds that a new connection takes before its first byte goes on its way, one round trip unless
            given; TLS would be two more.

    Raises:
        OSError: there is no port to listen on.
    """

    def __init__(
        self, port: int, *, rtt: float = 0.0, bandwidth: float | None = None, handshake: float | None = None
    ) -> None:
        self.to_client = 0
        """Bytes sent to clients, including headers."""
        self.to_server = 0
        """Bytes received from clients and relayed."""
        self.connections = 0
        """Number of connections accepted."""
        self._server_port = port
        self._delay = rtt / 2
        self._handshake = rtt if handshake is None else handshake
        self._bandwidth = bandwidth
        self._listener = _small(socket.socket())
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    @property
    def port(self) -> int:
        """The port to which clients connect."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The URL of the link, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._relay())

    async def _relay(self) -> None:
        accepting = asyncio.create_task(self._accept())
        await self._closing.wait()
        accepting.cancel()  # and with it all connections

    async def _accept(self) -> None:
        async with asyncio.TaskGroup() as connections:
            while True:
                client, _ = await self._loop.sock_accept(self._listener)
                self.connections += 1
                connections.create_task(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        server = _small(socket.socket())
        opened = time.monotonic() + self._handshake
        with client, server:
            for end in (client, server):
                end.setblocking(False)
            try:
                await self._loop.sock_connect(server, ("127.0.0.1", self._server_port))
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._carry(client, server, opened))
                    directions.create_task(self._carry(server, client, opened, down=True))
            except* OSError:
                # One end failed or refused the connection: close the other one the same way.
                for end in (client, server):
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _carry(self, source: socket.socket, target: socket.socket, opened: float, *, down: bool = False) -> None:
        """Relay one direction until the source closes it."""
        bandwidth = self._bandwidth if down else None
        # As long as the link, and a little longer, so that it never runs dry because this process woke up late.
        length = _SPARE + int((bandwidth or 1e9) * self._delay / _CHUNK)
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(length)

        async def enter() -> None:
            free, chunk = opened, b"?"
            while chunk:
                chunk = await self._loop.sock_recv(source, _CHUNK)
                free = max(free, time.monotonic()) + (len(chunk) / bandwidth if bandwidth else 0)
                await under_way.put((free + self._delay, chunk))

        async def leave() -> None:
            while True:
                due, chunk = await under_way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not chunk:
                    target.shutdown(socket.SHUT_WR)
                    return
                # Count before the other end can receive the bytes, so that a test never reads an old number.
                if down:
                    self.to_client += len(chunk)
                else:
                    self.to_server += len(chunk)
                await self._loop.sock_sendall(target, chunk)

        async with asyncio.TaskGroup() as ends:
            ends.create_task(enter())
            ends.create_task(leave())


def _small(end: socket.socket) -> socket.socket:
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        end.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end
