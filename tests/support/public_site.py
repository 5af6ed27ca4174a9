"""A stand-in for the public servers of lists and archives, reached under their own https addresses by a proxy.

::

    with PublicSite({"kinetics/600/annotations/val.csv": b"…"}) as public:
        kinetics_fs("classes", **public.environment)    # downloads https://s3.amazonaws.com/kinetics/600/…
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.archive_site import ArchiveSite
from tests.support.tls import self_signed

HOSTS = ("s3.amazonaws.com", "storage.googleapis.com")


class PublicSite:
    """A server of files for all of `HOSTS`, behind a proxy that ends their TLS.

    Args:
        files: path without the host → content; may be changed at any time.

    Attributes:
        site: the server, with its requests and faults.
        environment: variables with which a process reaches it.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.site = ArchiveSite(files)
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._proxy = _Proxy(("127.0.0.1", 0), _ProxyHandler)
        self._proxy.tls = self_signed(folder, *HOSTS)
        self._proxy.port = int(self.site.url.rpartition(":")[2])
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.01,), daemon=True)
        address = f"http://127.0.0.1:{self._proxy.server_port}"
        self.environment = {
            "HTTPS_PROXY": address,
            "https_proxy": address,
            "REQUESTS_CA_BUNDLE": str(folder / "certificate.pem"),
        }

    def __enter__(self) -> Self:
        self.site.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._thread.join()
        self.site.__exit__(kind, error, trace)
        self._folder.cleanup()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext
    port: int

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.close_connection = True
        if self.path.partition(":")[0] not in HOSTS:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        with (
            self.server.tls.wrap_socket(self.connection, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self.server.port)) as site,
        ):
            back = threading.Thread(target=_copy, args=(site, client), daemon=True)
            back.start()
            _copy(client, site)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
