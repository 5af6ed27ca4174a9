"""Servers on loopback that never end what they send, or send it one byte at a time."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

Talk = Callable[[socket.socket, threading.Event], None]
"""Function that a server runs on a connection until its event is set."""

INTERVAL = 0.05
"""Seconds between two bytes."""


_MARGIN = 1.5
"""Seconds that a busy machine may take in addition."""
_MEMORY = 64 * 1024
"""KiB of memory that a step may take."""


@contextmanager
def ends_in_time(seconds: float) -> Iterator[None]:
    """Check that the context takes about this time at most, and little memory."""
    begun = time.monotonic()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - begun < seconds + _MARGIN
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < _MEMORY


@contextmanager
def lying_server(talk: Talk) -> Iterator[str]:
    """Run a server; yield its address, as `127.0.0.1:PORT`."""
    end = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            talk(client, end)

    def accept() -> None:
        while not end.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            end.set()
            thread.join()


def drip(client: socket.socket, end: threading.Event, data: bytes) -> None:
    """Send data one byte at a time."""
    for byte in data:
        client.sendall(bytes([byte]))
        if end.wait(INTERVAL):
            return


def silent(client: socket.socket, end: threading.Event) -> None:
    """Accept, and say nothing."""
    end.wait()


def slow_status(client: socket.socket, end: threading.Event) -> None:
    client.recv(65536)
    drip(client, end, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 90 + b"\r\n")


def endless_headers(client: socket.socket, end: threading.Event) -> None:
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in count():
        drip(client, end, b"X-%d: y\r\n" % number)
        if end.is_set():
            return


def endless_interim(client: socket.socket, end: threading.Event) -> None:
    """Send one `100 Continue` after the other, as fast as they are taken."""
    client.recv(65536)
    while not end.is_set():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def slow_body(client: socket.socket, end: threading.Event) -> None:
    client.recv(65536)
    client.sendall(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-0/100000\r\nContent-Length: 100000\r\n\r\n")
    drip(client, end, b"x" * 100_000)


def slow_page(client: socket.socket, end: threading.Event) -> None:
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    drip(client, end, b"x" * 100_000)


def slow_chunks(client: socket.socket, end: threading.Event) -> None:
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(client, end, b"1;extension=x\r\nx\r\n" * 10_000)


def endless_redirects(client: socket.socket, end: threading.Event) -> None:
    """Redirect each request to the same server, some time later."""
    while request := client.recv(65536):
        end.wait(4 * INTERVAL)
        here = request.split(b"\r\n")[0].split(b" ")[1]
        client.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s1\r\nContent-Length: 0\r\n\r\n" % here)


def large_redirect(client: socket.socket, end: threading.Event) -> None:
    """Redirect with a text that does not end."""
    client.recv(65536)
    client.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not end.is_set():
        client.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


HTTP_LIARS: tuple[Talk, ...] = (
    silent,
    slow_status,
    endless_headers,
    endless_interim,
    slow_body,
    slow_page,
    slow_chunks,
    endless_redirects,
    large_redirect,
)


def slow_handshake(client: socket.socket, end: threading.Event) -> None:
    """Begin a TLS record of 16 KiB, and send it slowly."""
    client.recv(65536)
    drip(client, end, b"\x16\x03\x03\x40\x00" + b"\x02\x00\x3f\xfc" + bytes(16_000))


def slow_tunnel(client: socket.socket, end: threading.Event) -> None:
    """Answer a CONNECT slowly."""
    client.recv(65536)
    drip(client, end, b"HTTP/1.1 200 Connection established\r\n" + b"X: y\r\n" * 90 + b"\r\n")
