"""Archives on web servers, read by closed byte ranges.

Every response is checked to be of the requested version of the archive, because an index and a half-unpacked archive
are valid for that version only.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from kinetics_fs.errors import FailureKind, FetchError, masked, root_cause
from kinetics_fs.sources.archive.base import ArchiveChanged, Version
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.util.deadline import Deadline
from kinetics_fs.util.http import (
    IDENTITY,
    Retries,
    UnexpectedResponse,
    check_range,
    range_header,
    refusal,
)

if TYPE_CHECKING:
    import requests

    from kinetics_fs.util.session import Session

PIECE = 256 * 1024
"""Largest number of bytes that is handed on at a time."""
_SEGMENT = 8 * 1024 * 1024
"""Bytes of one request when a whole archive is read."""
PATIENCE = 100.0
"""Seconds that a server may fall behind the minimum rate, with all tries and pauses."""
MIN_RATE = 1024.0
"""Bytes that must arrive in a second, on average."""
TRIES = 5
"""Tries in a row without progress after which a request fails."""


class RemoteArchive:
    """A file on a web server. Safe for threads.

    Args:
        url: http or https address.
        connections: number of connections with which the whole archive is read.
        tries: number of tries in a row without progress after which a request fails.
    """

    def __init__(self, url: str, *, connections: int = 4, tries: int = TRIES) -> None:
        self.url = url
        self.address = masked(url)
        self._connections = connections
        self._tries = tries
        self._session = _session()

    def version(self) -> Version:
        with closing(self._read(0, 1, None)) as pieces:
            found = next(pieces)
            for _ in pieces:
                pass
        assert isinstance(found, Version)
        return found

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        with closing(self._read(begin, end, version)) as pieces:
            for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        """Yield all bytes from `begin` on. Several segments are in flight, because servers limit each connection."""
        stop = threading.Event()

        def segment(begin: int) -> list[bytes]:
            pieces = []
            with closing(self._read(begin, min(begin + _SEGMENT, version.size), version)) as coming:
                for piece in coming:
                    if stop.is_set():
                        break
                    if isinstance(piece, bytes):
                        pieces.append(piece)
            return pieces

        with ThreadPoolExecutor(self._connections) as pool:
            waiting: deque[Future[list[bytes]]] = deque()
            try:
                while begin < version.size or waiting:
                    while begin < version.size and len(waiting) <= self._connections:
                        waiting.append(pool.submit(segment, begin))
                        begin += _SEGMENT
                    yield from waiting.popleft().result()
            finally:
                stop.set()
                for future in waiting:
                    future.cancel()

    def _read(self, begin: int, end: int, version: Version | None) -> Generator[bytes | Version, None, None]:
        """Yield the version that the server has, then the bytes. Continue an interrupted response where it ended."""
        from kinetics_fs.util.session import HTTP_ERRORS

        version_known = False
        deadline = Deadline(PATIENCE, rate=MIN_RATE)
        overran = False
        retries = Retries(self._tries, (FailureKind.TRANSIENT, FailureKind.BLOCKED))
        while begin < end:
            try:
                with closing(self._request(begin, end, version, deadline)) as response:
                    found = self._check(response, begin, end, version)
                    version = version or found
                    if not version_known:
                        yield found
                        version_known = True
                    end = min(end, found.size)
                    while begin < end:
                        piece = response.raw.read(min(PIECE, end - begin), decode_content=False)
                        if not piece:
                            raise UnexpectedResponse("the connection ended early")
                        begin += len(piece)
                        RECEIVED.add(len(piece))
                        retries.progress()
                        yield piece
            except FetchError as error:
                failure = error
            except UnexpectedResponse as error:
                failure = FetchError(FailureKind.TRANSIENT, f"{self.address}: {error}")
            except (*HTTP_ERRORS, OSError) as error:
                cause = masked(root_cause(error))
                failure = FetchError(FailureKind.TRANSIENT, f"{self.address}: {cause}"[:300])
            else:
                return
            if not deadline.left:
                if overran:
                    raise failure
                # This process may have been suspended, and the server waited in vain.
                overran, deadline = True, Deadline(PATIENCE, rate=MIN_RATE)
            retries.wait(failure)

    def _request(self, begin: int, end: int, version: Version | None, deadline: Deadline) -> requests.Response:
        headers = {**range_header(begin, end), **IDENTITY}
        if version and version.etag:
            headers["If-Match"] = version.etag
        return self._get(headers, deadline)

    def _get(self, headers: dict[str, str], deadline: Deadline) -> requests.Response:
        return self._session.request("GET", self.url, deadline, headers=headers)

    def _check(self, response: requests.Response, begin: int, end: int, version: Version | None) -> Version:
        """Return the version that a response belongs to.

        Raises:
            FetchError: the server refuses the request, or the archive has changed.
            UnexpectedResponse: the response is for another range.
        """
        status = response.status_code
        busy = refusal(status, response.headers, self.address)
        if busy is not None:
            raise busy
        if status in (412, 416) and version:
            raise ArchiveChanged(self.address)
        is_empty = status == 416 or (status == 200 and response.headers.get("Content-Length") == "0")
        if version is None and is_empty:
            return Version(0)  # it has no first byte
        if status == 200:
            raise FetchError(
                FailureKind.CONFIG, f"cannot read {self.address}: the server does not support range requests"
            )
        if status != 206:
            raise self._refusal(response)
        part = check_range(status, response.headers, begin, end)
        found = Version(part.file_size, _strong(response.headers.get("ETag")))
        if version and not found.matches(version):
            raise ArchiveChanged(self.address)
        return found

    def _refusal(self, response: requests.Response) -> FetchError:
        """Return the failure for a response that another try will not change."""
        return FetchError(FailureKind.CONFIG, f"cannot read {self.address}: HTTP {response.status_code}")


@functools.cache
def _session() -> Session:
    """Return the session of all archives: most are on one server, and open connections are worth keeping."""
    from kinetics_fs.util.session import Session  # takes 0.1 s to load

    return Session()


def _strong(etag: str | None) -> str | None:
    """Return an entity tag that can be used to request this very version (RFC 9110, 8.8.3 and 13.1.1), or None."""
    return etag if etag and re.fullmatch(r'"[!#-~]{1,198}"', etag) else None
