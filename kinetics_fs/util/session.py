"""HTTP requests that end at a deadline, whatever the server does.

The timeouts of `requests` limit each single wait. A server that sends one byte at a time, one interim response after
the other, or a redirect to a redirect, can therefore keep a request for ever. Here a request has one `Deadline` for
everything: DNS, connections, proxies, TLS, redirects, headers and the body.

Loading this module takes 0.1 s.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from kinetics_fs.util.deadline import Deadline, within

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_TIMEOUT = 15.0
"""Seconds for a connection, with DNS; and again for TLS."""
READ_TIMEOUT = 30.0
"""Seconds to wait for the headers of a response, and for more of its body."""
MIN_RATE = 1024.0
"""Bytes of the body that must arrive in a second, on average over `READ_TIMEOUT`."""

HTTP_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)
"""Exceptions of a request, and of reading `raw`, the body of its response."""

_MAX_IDLE_CONNECTIONS = 32
"""Connections to one server that are kept open for later requests."""
_MAX_ADDRESSES = 8
"""Addresses of one server that are tried."""
_MAX_REDIRECT_BODY = 64 * 1024
"""Bytes of the text of a redirect that are read so that its connection can be used again."""

_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
"""Deadline of the request that this thread is sending."""


class Session:
    """Connections to servers, which are kept open for later requests. Safe for threads."""

    def __init__(self) -> None:
        self._session = requests.Session()
        adapter = _Adapter(pool_maxsize=_MAX_IDLE_CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def request(
        self,
        method: str,
        url: str,
        deadline: Deadline,
        *,
        headers: Mapping[str, str] | None = None,
        auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None,
        allow_redirects: bool = True,
    ) -> requests.Response:
        """Send a request. The body of the response is not read yet; the deadline is valid for it, too.

        Args:
            method: such as `GET`.
            url: http or https address.
            deadline: when the request ends.
            headers: of the request.
            auth: signs the request.
            allow_redirects: follow redirects.

        Raises:
            requests.RequestException: the request failed, or did not end before the deadline.
        """
        token = _current.set(deadline)
        try:
            return self._session.request(
                method,
                url,
                headers=headers,
                auth=auth,
                allow_redirects=allow_redirects,
                stream=True,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
            )
        finally:
            _current.reset(token)


class _Adapter(HTTPAdapter):
    """Uses connections that obey the deadline."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.PoolManager:
        manager: urllib3.PoolManager = super().proxy_manager_for(proxy, **kwargs)
        if isinstance(manager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(*args, **kwargs)
        if response.is_redirect:
            # requests would read the whole text of a redirect into memory.
            with suppress(urllib3.exceptions.HTTPError, OSError):
                response.raw.read(_MAX_REDIRECT_BODY, decode_content=False)
            response.raw.close()
            response.raw = io.BytesIO()
        return response


class _Reader(io.RawIOBase):
    """The incoming side of a connection, which waits no longer than the deadlines allow."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._deadline = deadline
        self._part = Deadline(sock.gettimeout() or READ_TIMEOUT)
        """Deadline of the headers, or of the next bytes of the body."""
        self._is_content = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        first = min(self._deadline, self._part, key=lambda deadline: deadline.left)
        first.check()
        self._sock.settimeout(max(0.001, first.left))
        with suppress(TimeoutError):
            size = self._raw.readinto(buffer)
            self._part.received(size or 0)
            if self._is_content:
                self._deadline.received(size or 0)
            return size
        raise TimeoutError(first.reason)

    def begin_body(self, *, is_content: bool) -> None:
        """Expect data at the minimum rate from now on. Only content moves the deadline of the request."""
        self._part = Deadline(READ_TIMEOUT, rate=MIN_RATE)
        self._is_content = is_content

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response, or that of a proxy, which is read until the deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader: _Reader | None = None
        if (deadline := _current.get()) is not None:
            self._reader = _Reader(self.fp.detach(), sock, deadline)
            self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader is not None:
            self._reader.begin_body(is_content=self.status < HTTPStatus.MULTIPLE_CHOICES)


class _BoundedConnection(HTTPConnection):
    """A connection that is made before the deadline: its name resolved, and one of its addresses reached."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        deadline = _current.get()
        if deadline is None:
            return super()._new_conn()
        name, timeout = self._dns_host, self.timeout
        seconds = min(deadline.left, float(timeout or CONNECT_TIMEOUT))
        end = time.monotonic() + seconds
        addresses = self._resolve(seconds)
        try:
            for tried, self._dns_host in enumerate(addresses, start=1):
                # An address that does not answer leaves time for the others.
                share = (end - time.monotonic()) / (len(addresses) - tried + 1)
                self.timeout = max(0.001, share)
                try:
                    sock = super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError):
                    if tried == len(addresses):
                        raise
                else:
                    sock.settimeout(max(0.001, min(deadline.left, CONNECT_TIMEOUT)))
                    return sock
        finally:
            self._dns_host, self.timeout = name, timeout
        raise NewConnectionError(self, f"{self.host} has no address")

    def _resolve(self, seconds: float) -> list[str]:
        """Return the addresses of the host."""

        def look_up() -> list[tuple[Any, ...]]:
            return socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)

        try:
            found = within(seconds, look_up)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"DNS does not resolve {self.host} within {seconds:.0f} s") from error
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, f"cannot resolve {self.host}: {error}") from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))[:_MAX_ADDRESSES]


class _BoundedTLSConnection(_BoundedConnection, HTTPSConnection):
    """The same with TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedTLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}
