"""Where the bytes of an archive come from: a file, or a server that is asked for closed ranges of it.

Every answer is checked to be of the version of the archive that was meant, for an index and half an archive that was
unpacked are good for that one only.
"""

from __future__ import annotations

import functools
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from kinetics_fs.errors import FailureKind, FetchError, root_cause

if TYPE_CHECKING:
    import requests

_PIECE = 256 * 1024
_SEGMENT = 8 * 1024 * 1024
"""Bytes of one request where all of an archive is read."""
_MOST_CONNECTIONS = 32
"""To a server, that are kept for later."""
TIMEOUT = (15.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes on it."""
TRIES = 5
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 20.0
"""Seconds to wait on the word of a server before a try; who asks for more is left alone."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of an archive from another.

    Args:
        size: in bytes.
        etag: what the server calls it; None on a disk, or if the server does not say.
    """

    size: int
    etag: str | None = None

    def matches(self, other: Version) -> bool:
        """Whether both are one version, as far as is known of them: of a file on a disk, only the size is."""
        return self.size == other.size and (self.etag == other.etag or None in (self.etag, other.etag))


class ArchiveChanged(FetchError):
    """The archive is not the version that was meant: what is known of that one does not hold for this."""

    def __init__(self, address: str) -> None:
        super().__init__(FailureKind.CONFIG, f"{address} is another version than that which was indexed")


class Archive(Protocol):
    """An archive, or any other file, somewhere.

    Its methods raise:
        FetchError: it is not there or cannot be read (CONFIG, LOCAL), or the server fails (TRANSIENT, BLOCKED).
        ArchiveChanged: it is another version.
    """

    address: str

    def version(self) -> Version:
        """Which version is there now."""
        ...

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        """The bytes from `begin` to `end`, in pieces as they come: over a network in one request, if all goes well."""
        ...

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        """All from `begin` on, in pieces, as fast as may be."""
        ...


def open_archive(address: str, *, connections: int = 4, tries: int = TRIES) -> Archive:
    """An archive by its address. Nothing is read yet.

    Args:
        address: `https://…`, `http://…`, `s3://bucket/key`, or a path. For S3 the settings are those of all programs
            for AWS: `AWS_PROFILE`, `AWS_ENDPOINT_URL_S3` for another server than Amazon's, and so on.
        connections: to read all of it with.
        tries: of a request in a row that bring nothing, before it is given up.

    Raises:
        FetchError: there are credentials for S3, but they cannot be used (CONFIG).
    """
    if address.startswith("s3://"):
        from kinetics_fs.sources.archive.s3 import S3Archive  # builds on this module, and few need it

        return S3Archive(address, connections=connections, tries=tries)
    if urlsplit(address).scheme in ("http", "https"):
        return RemoteArchive(address, connections=connections, tries=tries)
    return LocalArchive(Path(address))


class LocalArchive:
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._path = path

    def version(self) -> Version:
        try:
            return Version(self._path.stat().st_size)
        except OSError as error:
            raise self._failure(error) from error

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        try:
            with self._path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != version.size:
                    raise ArchiveChanged(self.address)
                file.seek(begin)
                while begin < end:
                    piece = file.read(min(_PIECE, end - begin))
                    if not piece:
                        raise ArchiveChanged(self.address)
                    begin += len(piece)
                    yield piece
        except OSError as error:
            raise self._failure(error) from error

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        return self.read(begin, version.size, version)

    def _failure(self, error: OSError) -> FetchError:
        return FetchError(FailureKind.CONFIG, f"cannot read {self.address}: {error.strerror}", errno=error.errno)


class RemoteArchive:
    """A file on a server. May be used by any number of threads.

    Args:
        url: http or https.
        connections: to read all of it with.
        tries: of a request in a row that bring nothing.
    """

    def __init__(self, url: str, *, connections: int = 4, tries: int = TRIES) -> None:
        self.address = url
        self._connections = connections
        self._tries = tries
        self._session = _session()

    def version(self) -> Version:
        with closing(self._read(0, 1, None)) as pieces:
            said = next(pieces)
            for _ in pieces:
                pass
        assert isinstance(said, Version)
        return said

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        with closing(self._read(begin, end, version)) as pieces:
            for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        """In segments, several under way at a time: servers limit what one connection brings."""
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
        """What the server says of the version, then the bytes; broken off, it is taken up again where it broke."""
        import requests
        import urllib3

        told = False
        tries = 0
        while begin < end:
            try:
                with closing(self._request(begin, end, version)) as response:
                    found = self._check(response, begin, end, version)
                    version = version or found
                    if not told:
                        yield found
                        told = True
                    while begin < end:
                        piece = response.raw.read(min(_PIECE, end - begin), decode_content=False)
                        if not piece:
                            raise urllib3.exceptions.ProtocolError("the connection ended early")
                        begin += len(piece)
                        tries = 0
                        yield piece
            except FetchError as error:
                if error.kind not in (FailureKind.TRANSIENT, FailureKind.BLOCKED):
                    raise
                failure = error
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                failure = FetchError(FailureKind.TRANSIENT, f"{self.address}: {root_cause(error)}"[:300])
            else:
                return
            tries += 1
            pause = _FIRST_PAUSE * 2 ** (tries - 1) * random.uniform(1, 1.5)
            if tries >= self._tries or (failure.retry_after or 0) > _LONGEST_PAUSE:
                raise failure
            time.sleep(max(pause, failure.retry_after or 0))

    def _request(self, begin: int, end: int, version: Version | None) -> requests.Response:
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        if version and version.etag:
            headers["If-Match"] = version.etag
        return self._get(headers)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        return self._session.get(self.address, headers=headers, stream=True, timeout=TIMEOUT)

    def _check(self, response: requests.Response, begin: int, end: int, version: Version | None) -> Version:
        """The version that an answer is of.

        Raises:
            FetchError: it is not what was asked for.
        """
        status = response.status_code
        if status == 429 or status >= 500:
            wait = response.headers.get("Retry-After", "")
            raise FetchError(
                FailureKind.BLOCKED if status == 429 else FailureKind.TRANSIENT,
                f"{self.address}: HTTP {status}",
                retry_after=float(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else None,
            )
        if status in (412, 416) and version:
            raise ArchiveChanged(self.address)
        if status == 200:
            raise FetchError(FailureKind.CONFIG, f"{self.address}: the server does not answer requests for a range")
        if status != 206:
            raise self._refusal(response)
        said = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
        if said is None:
            raise FetchError(FailureKind.TRANSIENT, f"{self.address}: the answer is for no range")
        found = Version(int(said[3]), _strong(response.headers.get("ETag")))
        if version and (found.size != version.size or (version.etag and found.etag and found.etag != version.etag)):
            raise ArchiveChanged(self.address)
        if (int(said[1]), int(said[2])) != (begin, end - 1):
            raise FetchError(FailureKind.TRANSIENT, f"{self.address}: the answer is for another range")
        return found

    def _refusal(self, response: requests.Response) -> FetchError:
        """What an answer means that no later try will change."""
        return FetchError(FailureKind.CONFIG, f"{self.address}: HTTP {response.status_code}")


@functools.cache
def _session() -> requests.Session:
    """One for all archives: they are mostly on one server, and a connection is worth keeping."""
    import requests  # a tenth of a second that only who reads archives should pay
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    adapter = HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _strong(etag: str | None) -> str | None:
    """An entity tag, if it can be used to ask for this very version (RFC 9110, 8.8.3 and 13.1.1)."""
    return etag if etag and re.fullmatch(r'"[!#-~]{1,198}"', etag) else None


def read_small(archive: Archive, most: int) -> bytes:
    """All of a small file.

    Raises:
        FetchError: as the archive does, or there is more than `most` bytes of it (CONFIG).
    """
    version = archive.version()
    if version.size > most:
        raise FetchError(FailureKind.CONFIG, f"{archive.address} is too large: {version.size:,} bytes")
    return b"".join(archive.read(0, version.size, version))
