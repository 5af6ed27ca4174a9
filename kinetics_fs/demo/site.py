"""A local video site that replaces YouTube in the demo and in the tests.

Each video has a page, which yt-dlp's generic extractor understands, and a media file with support for byte ranges. The
site records all requests, and tests can make it fail or delay its responses.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import socketserver
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

_ROUTE = re.compile(r"/watch/(?P<page>[A-Za-z0-9_-]{11})|/media/(?P<media>[A-Za-z0-9_-]{11})\.mp4")
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")
_MAX_TARGET = 1024
_CHUNK = 1 << 16

_WATCH = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Video {id}</title></head>
<body><video controls><source src="/media/{id}.mp4" type="video/mp4"></video></body></html>
"""
_STATUS = "<!DOCTYPE html>\n<html><head><title>{status} {phrase}</title></head><body>{status} {phrase}</body></html>\n"


class VideoSite:
    """A server of the `<id>.mp4` files of a folder on a free port of 127.0.0.1, from `__enter__` to `__exit__`.

    ====================== ====================================================================
    `/watch/<id>`          the page of a video; 404 if there is no such file
    `/media/<id>.mp4`      the media, with support for a single byte range
    ====================== ====================================================================

    Each request reads the folder again, so videos can be added and removed while the site runs.

    Attributes:
        fail: HTTP status with which the page of an id responds.
        delay: seconds after which the page of an id responds.
        media_delay: seconds after which the media file of an id responds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fail: dict[str, int] = {}
        self.delay: dict[str, float] = {}
        self.media_delay: dict[str, float] = {}
        self._lock = threading.Lock()
        self._log: list[_Served] = []
        self._closing = threading.Event()
        self._server: _Server | None = None

    def __enter__(self) -> VideoSite:
        self._closing.clear()
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        # A short poll interval, because `close` waits for it.
        serve = partial(self._server.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, name="video-site", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._closing.set()
            self._server.close()
            self._server = None

    @property
    def url_template(self) -> str:
        """The URL of a page, with `{id}` in place of the id."""
        if self._server is None:
            raise RuntimeError("the site is not running")
        return f"http://127.0.0.1:{self._server.server_address[1]}/watch/{{id}}"

    @property
    def requests(self) -> list[tuple[str, int]]:
        """All requests so far, in order of arrival: pairs of the path and the bytes of body sent.

        A client that disconnects may have received less than the bytes sent: the rest is in the buffers of the system.
        """
        with self._lock:
            return [(served.path, served.sent) for served in self._log]

    def video_fetches(self, video_id: str) -> int:
        """Return the number of requests for the page of a video, whatever the response."""
        return sum(path == f"/watch/{video_id}" for path, _ in self.requests)

    def _file(self, video_id: str) -> Path:
        return self.directory / f"{video_id}.mp4"

    def _arrived(self, path: str) -> _Served:
        served = _Served(path)
        with self._lock:
            self._log.append(served)
        return served

    def _wait(self, seconds: float) -> None:
        """Sleep, at most until the site closes."""
        if seconds > 0:
            self._closing.wait(seconds)


@dataclass
class _Served:
    path: str
    sent: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 refuses connections of tests that open many at once

    def __init__(self, address: tuple[str, int], handler: partial[_Handler]) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks up the name of the host, which can take seconds.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection from %s broken", client_address, exc_info=True)

    def close(self) -> None:
        """Stop listening and close all connections, so that their threads end."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "VideoSite"
    timeout = 30  # seconds until an idle connection is closed
    disable_nagle_algorithm = True  # otherwise the body waits 40 ms for the acknowledgement of the headers

    def __init__(self, site: VideoSite, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        served = self.site._arrived(path[:_MAX_TARGET])
        route = _ROUTE.fullmatch(path)
        # No valid request has a body, and an unread one would be parsed as the next request.
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._page(served, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif len(self.path) > _MAX_TARGET:
            self._page(served, HTTPStatus.REQUEST_URI_TOO_LONG)
        elif route is None:
            self._page(served, HTTPStatus.NOT_FOUND)
        elif video_id := route["page"]:
            self._watch(served, video_id)
        else:
            self._media(served, route["media"])

    do_HEAD = do_GET

    def _watch(self, served: _Served, video_id: str) -> None:
        self.site._wait(self.site.delay.get(video_id, 0))
        if status := self.site.fail.get(video_id):
            self._page(served, status)
        elif self.site._file(video_id).is_file():
            self._page(served, HTTPStatus.OK, _WATCH.format(id=video_id))
        else:
            self._page(served, HTTPStatus.NOT_FOUND)

    def _media(self, served: _Served, video_id: str) -> None:
        self.site._wait(self.site.media_delay.get(video_id, 0))
        try:
            file = self.site._file(video_id).open("rb")
        except OSError:
            self._page(served, HTTPStatus.NOT_FOUND)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            # Range applies only to GET (RFC 9110, 14.2).
            part = _parse_range(self.headers.get("Range", ""), size) if self.command == "GET" else None
            if part is None:
                self._head(HTTPStatus.OK, "video/mp4", size, {"Accept-Ranges": "bytes"})
                self._send(served, file, range(size))
            elif part:
                content_range = {"Content-Range": f"bytes {part[0]}-{part[-1]}/{size}"}
                self._head(HTTPStatus.PARTIAL_CONTENT, "video/mp4", len(part), content_range)
                self._send(served, file, part)
            else:
                content_range = {"Content-Range": f"bytes */{size}"}
                self._page(served, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=content_range)

    def _page(
        self, served: _Served, status: int, html: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Respond with a page; without `html`, with the status in words."""
        if html is None:
            html = _STATUS.format(status=status, phrase=self.responses.get(status, ("", ""))[0])
        body = html.encode()
        self._head(status, "text/html; charset=utf-8", len(body), headers or {})
        self._send(served, io.BytesIO(body), range(len(body)))

    def _head(self, status: int, content_type: str, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, served: _Served, body: BinaryIO, part: range) -> None:
        if self.command == "HEAD":
            return
        body.seek(part.start)
        for start in range(part.start, part.stop, _CHUNK):
            chunk = body.read(min(_CHUNK, part.stop - start))
            # Count first: a client may read the counter as soon as it has received the last byte.
            served.sent += len(chunk)
            self.wfile.write(chunk)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _parse_range(header: str, size: int) -> range | None:
    """Return the bytes that a Range header requests.

    Returns:
        An empty range if it cannot be satisfied; None if it is to be ignored. RFC 9110, 14.2 requires that for a
        header that cannot be parsed, and permits it for several ranges.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match["first"], match["last"]
    if first and last and int(last) < int(first):
        return None
    if first:
        return range(int(first), min(int(last) + 1, size) if last else size)
    if last:
        return range(max(size - int(last), 0), size)
    return None
