"""Network steps end at their deadline, whatever the server does."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

import pytest
import requests

from kinetics_fs.catalog import download, fetch_annotations
from kinetics_fs.errors import CatalogError, FetchError
from kinetics_fs.fill.plan import find_versions
from kinetics_fs.sources.archive import remote
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.util import http
from kinetics_fs.util import session as session_module
from kinetics_fs.util.deadline import Deadline, within
from kinetics_fs.util.session import HTTP_ERRORS, Session
from tests.support.liars import HTTP_LIARS, Talk, ends_in_time, lying_server, silent, slow_handshake, slow_tunnel

SECONDS = 0.6
"""Deadline of a step. The servers would go on for minutes."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def read_all(url: str, deadline: Deadline) -> int:
    with Session().request("GET", url, deadline) as response:
        return sum(map(len, response.raw.stream(65536, decode_content=False)))


def name(talk: Talk) -> str:
    return talk.__name__


@pytest.mark.parametrize("talk", HTTP_LIARS, ids=name)
def test_a_request_ends_at_its_deadline(talk: Talk) -> None:
    with (
        lying_server(talk) as address,
        ends_in_time(SECONDS),
        pytest.raises(HTTP_ERRORS),
    ):
        read_all(f"http://{address}/", Deadline(SECONDS))


def test_a_tls_handshake_ends_at_the_deadline() -> None:
    for talk in (silent, slow_handshake):
        with lying_server(talk) as address, ends_in_time(SECONDS), pytest.raises(requests.RequestException):
            read_all(f"https://{address}/", Deadline(SECONDS))


def test_a_proxy_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    for talk in (silent, slow_tunnel):
        with lying_server(talk) as address, ends_in_time(SECONDS), pytest.raises(requests.RequestException):
            monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            read_all("https://example.org/", Deadline(SECONDS))


def test_dns_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def slow(host: str, *args: object, **kwargs: object) -> object:
        if host == "slow.example.org":
            time.sleep(3)
        return look_up(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with ends_in_time(SECONDS), pytest.raises(requests.ConnectTimeout, match="DNS does not resolve"):
        read_all("http://slow.example.org/", Deadline(SECONDS))


def test_headers_have_a_deadline_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "READ_TIMEOUT", SECONDS)
    for talk in HTTP_LIARS[:4]:
        with lying_server(talk) as address, ends_in_time(SECONDS), pytest.raises(requests.RequestException):
            read_all(f"http://{address}/", Deadline(60))


def test_a_transfer_below_the_minimum_rate_ends() -> None:
    for talk in HTTP_LIARS[4:7]:
        with lying_server(talk) as address, ends_in_time(SECONDS), pytest.raises(HTTP_ERRORS):
            read_all(f"http://{address}/", Deadline(SECONDS, rate=1024))


def test_a_deadline_moves_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("kinetics_fs.util.deadline.time.monotonic", lambda: now)
    deadline = Deadline(10, rate=100)
    now = 9.0
    deadline.received(500)
    assert deadline.left == 6
    deadline.received(10**9)
    assert deadline.left == 10, "data that came early give no more time than that"
    now = 19.0
    with pytest.raises(TimeoutError, match=r"less than 100 bytes/s"):
        deadline.check()


def test_what_a_function_does_in_time_counts() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with ends_in_time(0.1), pytest.raises(TimeoutError, match="longer than 0 s"):
        within(0.1, lambda: time.sleep(1))


@pytest.mark.parametrize("talk", HTTP_LIARS, ids=name)
def test_annotations_end_at_the_deadline(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DEADLINE", SECONDS)
    with lying_server(talk) as address, ends_in_time(SECONDS), pytest.raises(CatalogError, match="cannot download"):
        fetch_annotations(f"http://{address}/val.csv", tmp_path)


@pytest.mark.parametrize("talk", HTTP_LIARS, ids=name)
def test_archives_end_at_the_deadline(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", SECONDS)
    with lying_server(talk) as address, ends_in_time(2 * SECONDS + 1), pytest.raises(FetchError, match=r"127\.0\.0\.1"):
        list(open_archive(f"http://{address}/a.tar.gz").read(0, 100_000, Version(100_000)))


def test_a_connection_that_stalls_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends the first half of each response, and then nothing."""
    content = b"x" * 1000

    def half(client: socket.socket, end: threading.Event) -> None:
        request = client.recv(65536)
        match = re.search(rb"bytes=(\d+)-(\d+)", request)
        assert match
        begin, last = map(int, match.groups())
        head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {begin}-{last}/1000\r\n\r\n"
        client.sendall(head.encode() + content[begin : min(last + 1, max(begin + 20, (begin + last) // 2))])
        end.wait()

    monkeypatch.setattr(session_module, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(remote, "PIECE", 10)
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    with lying_server(half) as address:
        assert b"".join(open_archive(f"http://{address}/a").read(0, 1000, Version(1000))) == content


def test_a_server_that_is_down_is_not_asked_for_every_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    names = [f"600/val/{number}.tar.gz" for number in range(200)]
    with lying_server(silent) as address, ends_in_time(5):
        versions, failed = find_versions(f"http://{address}", names)
    assert (versions, list(failed)) == ({}, names)
