"""The link: nothing is lost or changed on it, all is counted, and what was asked to be slow is not quick."""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from tests.support.link import Link
from tests.support.youtube import FakeYouTube

MEGABYTE = random.Random(1).randbytes(1_000_000)

Serve = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that treats every connection by a function; its port."""
    with ExitStack() as stack:

        def start(treat: Callable[[socket.socket], None]) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    threading.Thread(target=treat, args=(connection,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            # Closing alone does not wake who waits in accept.
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            port: int = listener.getsockname()[1]
            return port

        yield start


def echo(connection: socket.socket) -> None:
    with connection:
        while block := connection.recv(65536):
            connection.sendall(block)


def gives_a_megabyte(connection: socket.socket) -> None:
    with connection:
        connection.recv(1)
        connection.sendall(MEGABYTE)


def connected(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=30)


def receive(client: socket.socket, size: int = sys.maxsize) -> bytes:
    """So many bytes, or all until the end."""
    found = bytearray()
    while len(found) < size and (block := client.recv(min(65536, size - len(found)))):
        found += block
    return bytes(found)


@pytest.mark.parametrize("options", [{}, {"rtt": 0.02}, {"rtt": 0.02, "bandwidth": 10e6}])
def test_all_arrives_and_is_counted(serve: Serve, options: dict[str, float]) -> None:
    with Link(serve(echo), **options) as link, connected(link) as client:

        def send() -> None:
            client.sendall(MEGABYTE)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()

        assert receive(client) == MEGABYTE
        sender.join()
        assert (link.to_server, link.to_client, link.connections) == (len(MEGABYTE), len(MEGABYTE), 1)


def test_connections_are_apart(serve: Serve) -> None:
    with Link(serve(echo), rtt=0.01) as link, ExitStack() as stack:
        clients = [stack.enter_context(connected(link)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(bytes([number] * 100))
            client.shutdown(socket.SHUT_WR)
        for number, client in enumerate(clients):
            assert receive(client) == bytes([number] * 100)
        assert (link.to_server, link.to_client, link.connections) == (2000, 2000, 20)


def test_a_round_trip_and_a_handshake_take_their_time(serve: Serve) -> None:
    with Link(serve(echo), rtt=0.2, handshake=0.3) as link, connected(link) as client:
        times = []
        for _ in range(2):
            began = time.monotonic()
            client.sendall(b"?")
            assert client.recv(1) == b"?"
            times.append(time.monotonic() - began)

    assert times[0] >= 0.5 - 0.01
    assert times[1] >= 0.2 - 0.01


def test_bandwidth_is_each_connections_own_and_no_burst(serve: Serve) -> None:
    with Link(serve(gives_a_megabyte), bandwidth=2e6) as link:
        began = time.monotonic()
        with connected(link) as client, connected(link) as other:
            for one in (client, other):
                one.sendall(b"?")
            receive(client, 200_000)
            assert time.monotonic() - began >= 0.1 - 0.01
            for one in (client, other):
                receive(one)
        assert time.monotonic() - began >= 0.5 - 0.01
        assert link.to_client == 2 * len(MEGABYTE)


def test_what_nobody_reads_is_not_counted(serve: Serve) -> None:
    with Link(serve(gives_a_megabyte)) as link, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", link.port))
        client.sendall(b"?")
        receive(client, 1000)
        time.sleep(0.3)  # for all that could go wrong to go wrong

        assert link.to_client < 200_000


def test_reset_goes_through(serve: Serve) -> None:
    def breaks(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with Link(serve(breaks)) as link, connected(link) as client:
        client.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_nobody_behind_it(serve: Serve) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Link(unused.getsockname()[1]) as link, pytest.raises(ConnectionResetError), connected(link) as client:
            client.recv(1)


def test_client_that_leaves_is_left(serve: Serve) -> None:
    left = threading.Event()

    def floods(connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    connection.sendall(MEGABYTE)
            except OSError:
                left.set()

    with Link(serve(floods)) as link:
        with connected(link) as client:
            client.recv(10)
        assert left.wait(30)


def test_exit_ends_connections(serve: Serve) -> None:
    with Link(serve(echo)) as link:
        client = connected(link)
        client.sendall(b"?")
        client.recv(1)
    with client, suppress(ConnectionResetError):  # an end as well
        assert client.recv(1) == b""


@pytest.mark.server
def test_media_of_the_fake_youtube_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "media.mp4"
    path.write_bytes(MEGABYTE)
    with FakeYouTube() as yt, Link(yt.media_port) as link:
        yt.media_url_base = link.url
        yt.add_video("-a_Video-01", path, duration=10.0)
        url = f"{link.url}/videoplayback?id=-a_Video-01&itag=18"

        answer = requests.get(url, headers={"Range": "bytes=0-499999"}, timeout=30)

        assert answer.content == MEGABYTE[:500_000]
        assert yt.media_requests("-a_Video-01") == [("bytes=0-499999", 206, 500_000)]
        headers = link.to_client - 500_000
        assert 100 < headers < 1000
