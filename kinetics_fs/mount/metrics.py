"""The metrics of a mount for who asks by HTTP: on this machine alone, one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

from kinetics_fs.errors import MountError

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_PATIENCE = 2.0
"""Seconds that a client may leave us waiting."""
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The version is that of the text format."""


class MetricsServer:
    """Answers on a port of the loopback device, from when `begin` is called to the end of the context.

    Args:
        port: 0 takes a free one.

    Raises:
        MountError: the port cannot be had.
    """

    def __init__(self, port: int) -> None:
        try:
            self._server = _Server((_LOOPBACK, port), _Handler)
        except OSError as error:
            why = f"cannot serve metrics on port {port}: {error.strerror}"
            raise MountError(f"{why}; give another --metrics-port, or 0 for a free one") from error
        self.address = f"http://{_LOOPBACK}:{self._server.server_address[1]}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def begin(self, render: Callable[[], str]) -> None:
        """Begins to answer with what `render` makes, in a thread of its own."""
        self._server.render = render
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(TCPServer):  # not `HTTPServer`, which asks the resolver for our own name
    allow_reuse_address = True
    render: Callable[[], str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a client of the metrics left", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server: _Server
    server_version = "kinetics-fs"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "Only /metrics is here")
            return
        try:
            body = self.server.render().encode()
        except Exception:
            _log.exception("metrics: unexpected error")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass
