"""A server of files with ranges and entity tags like those of S3, and with the faults that a test sets.

::

    with ArchiveSite({"600/val/a b.tar.gz": content}) as site:
        site.url                       # http://127.0.0.1:…
        site.faults = ["reset"]        # of the next requests, one each
        site.requests                  # [("600/val/a b.tar.gz", "bytes=0-9", 206, bytes sent)]
        site.headers                   # of the same requests
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

import pytest

from kinetics_fs.sources.archive.index import ArchiveIndex
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.util import http


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat failed requests without a pause, in every test of a module that imports this fixture."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)


FAULTS = (
    "500",
    "503",
    "429",
    "slow-down",  # 503, with a time to wait that nobody waits
    "reset",  # in the middle of the body
    "short",  # a body that ends early
    "other-range",
    "page",  # a page of a proxy in place of the file
)


class Sent(NamedTuple):
    """A request, with the status and the length of its response."""

    name: str
    range: str | None
    status: int
    bytes: int


class ArchiveSite:
    """A server of files on its own port of 127.0.0.1.

    Args:
        files: path → content; may be changed at any time.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: list[str] = []
        self.ranges = True
        """Whether the server supports range requests."""
        self.if_match = True
        """Whether the server evaluates `If-Match`."""
        self.etags = True
        """Whether responses have an entity tag."""
        self.hold: tuple[int, threading.Event] | None = None
        """An offset and an event: requests for bytes from the offset on wait for the event."""
        self.before: Callable[[], None] = lambda: None
        """Called before the answer to each request for a range of a file. It may wait."""
        self.tag = b""
        """Part of every entity tag. Another value changes the tags of the same content, as another server would."""
        self.region: str | None = None
        """Region of a bucket; signatures must name it."""
        self.requests: list[Sent] = []
        self.headers: list[Message] = []
        self._server = _Server(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.connections: set[int] = set()
        """Source ports of the connections."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, site: ArchiveSite, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.connections.add(self.client_address[1])
        name = unquote(self.path.lstrip("/"))
        content = site.files.get(name)
        fault = site.faults.pop(0) if site.faults else ""
        if site.region and f"/{site.region}/s3/aws4_request" not in self.headers.get("Authorization", ""):
            code = b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"
            return self.answer(name, 400, code, {"x-amz-bucket-region": site.region})
        if content is None:
            return self.answer(name, 404, b"no such key")
        if fault == "page":
            return self.answer(name, 200, b"<html>", {"Content-Type": "text/html"})
        if fault.isdigit() or fault == "slow-down":
            headers = {"Retry-After": "3600"} if fault == "slow-down" else {}
            return self.answer(name, int(fault) if fault.isdigit() else 503, b"<Error/>", headers)
        etag = f'"{hashlib.md5(content + site.tag).hexdigest()}"'
        if site.if_match and self.headers.get("If-Match", etag) != etag:
            return self.answer(name, 412, b"<Error/>")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not site.ranges:
            return self.answer(name, 200, content)
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        if site.hold and begin >= site.hold[0]:
            site.hold[1].wait()
        site.before()
        if begin >= len(content):
            return self.answer(name, 416, b"")
        if fault == "other-range":
            begin, end = begin + 1, end + 1
        said = f"bytes {begin}-{end - 1}/{len(content)}"
        body = content[begin:end]
        headers = {"Content-Range": said} | ({"ETag": etag} if site.etags else {})
        return self.answer(name, 206, body, headers, fault)

    def answer(
        self, name: str, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        if fault in ("reset", "short"):
            body = body[: len(body) // 2]
        self.site.headers.append(self.headers)
        self.site.requests.append(Sent(name, self.headers.get("Range"), status, len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("reset", "short"):
            self.close_connection = True


def index_of(base: str, name: str) -> ArchiveIndex:
    """Read an archive once and return its index."""
    archive = open_archive(archive_address(base, name))
    version = archive.version()
    scan = Scan()
    for data in archive.stream(0, version):
        for _ in scan.feed(data):
            pass
    scan.finish()
    return scan.index(name, version)
