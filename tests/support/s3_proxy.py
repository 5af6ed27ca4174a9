"""A proxy in front of an S3 server, which counts requests and has faults on request."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Fault(NamedTuple):
    """What happens to a request.

    Attributes:
        status: answer with this status instead of passing the request on; 0 to pass it on.
        code: the error code in the answer.
        loses_answer: close the connection after the request was passed on.
        keeps: number of bytes of the answer's body after which the connection is closed; None for all.
        waits: hold the answer back until the proxy ends.
        refuses: close the connection instead of passing the request on.
        seconds: pass the request on after this time.
    """

    status: int = 0
    code: str = ""
    loses_answer: bool = False
    keeps: int | None = None
    waits: bool = False
    refuses: bool = False
    seconds: float = 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that were killed."""


class S3Proxy:
    """Passes requests on to a server.

    Attributes:
        url: its address.
        requests: number of requests by method and path.
        written: number of objects that were written by path, without their parameters.
        faults: those of the next requests, in their order.
        fault: returns the fault of a request that `faults` has none for; receives the method and the path.
        drops_headers: names of headers, in lower case, that are not passed on.
    """

    def __init__(self, server: str, host: str) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.written: Counter[str] = Counter()
        self.faults: deque[Fault] = deque()
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.drops_headers: set[str] = set()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        proxy = self
        backend_host = urlsplit(server).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._next(self.command, self.path)
                if fault.waits:
                    proxy.ended.wait()
                    self.close_connection = True
                    return
                if fault.refuses:
                    self.close_connection = True
                    return
                time.sleep(fault.seconds)
                if fault.status:
                    content = f"<Error><Code>{fault.code}</Code></Error>".encode() if fault.code else b""
                    self._answer(fault.status, [], b"" if self.command == "HEAD" else content, None)
                    return
                backend = http.client.HTTPConnection(backend_host, timeout=30)
                try:
                    headers = {
                        name: value for name, value in self.headers.items() if name.lower() not in proxy.drops_headers
                    }
                    backend.request(self.command, self.path, body, headers)
                    response = backend.getresponse()
                    content = response.read()
                    if self.command == "PUT" and response.status == 200:
                        proxy._note_written(self.path)
                finally:
                    backend.close()
                if fault.loses_answer:
                    self.close_connection = True
                    return
                answered = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length")
                ]
                if self.command == "HEAD":
                    answered.append(("Content-Length", response.getheader("Content-Length") or "0"))
                self._answer(response.status, answered, content, fault.keeps)

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, keeps: int | None) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                elif not headers:
                    self.send_header("Content-Length", "0")
                self.end_headers()
                self.wfile.write(content[:keeps])
                if keeps is not None:
                    self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _next(self, method: str, path: str) -> Fault:
        with self._lock:
            self.requests[method, path.partition("?")[0]] += 1
            fault = self.faults.popleft() if self.faults else self.fault(method, path)
        return fault or Fault()

    def _note_written(self, path: str) -> None:
        with self._lock:
            self.written[path.partition("?")[0]] += 1

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def s3_proxy(server: str, host: str = "127.0.0.1") -> Iterator[S3Proxy]:
    """Run a proxy in front of a server until the block ends, on an address of this machine."""
    proxy = S3Proxy(server, host)
    try:
        yield proxy
    finally:
        proxy.close()
