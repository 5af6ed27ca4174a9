"""A file on a media server, read by closed byte ranges of limited size through yt-dlp's network layer.

Media servers throttle requests without an end, and an open-ended request fills buffers with megabytes when a demuxer
needs only the next kilobytes. Here every request names its end, every response is checked against it, and an
interrupted response is continued where it ended.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple, TypeVar

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

from kinetics_fs.errors import FailureKind, FetchError, masked
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.util.http import (
    IDENTITY,
    Retries,
    UnexpectedResponse,
    check_range,
    content_length,
    range_header,
    refusal,
)
from kinetics_fs.util.text import count

T = TypeVar("T")

_FIRST_STEP = 64 * 1024
"""Bytes of the first request at a new offset. The size doubles with each request that continues from there."""
_MAX_STEP = 1024 * 1024
_MAX_REQUEST = 8 * 1024 * 1024
_BLOCK = 64 * 1024
_CACHED_PIECES = 4
"""Pieces that stay in memory, because demuxers jump between the index and the media."""

_TRIES = 4
"""Tries of a request."""


class RangesIgnored(Exception):
    """The server sends the whole file instead of the requested range."""


class StaleAddress(FetchError):
    """The address has expired, or leads to another file than before. The video's page must be asked for a new one."""

    def __init__(self, reason: str) -> None:
        super().__init__(FailureKind.TRANSIENT, reason)


class Pace:
    """A limit on the rate of received bytes.

    Args:
        rate: bytes per second; None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = 0.0

    def spend(self, size: int) -> None:
        """Count received bytes, and wait if they arrived faster than the rate allows."""
        RECEIVED.add(size)
        if self._rate is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self._rate
        time.sleep(self._free_at - now)


class _Piece(NamedTuple):
    begin: int
    data: bytes

    @property
    def end(self) -> int:
        return self.begin + len(self.data)


class RemoteFile(io.RawIOBase):
    """A file on a server, as a file object.

    Its methods raise:
        RangesIgnored: the server does not support ranges.
        StaleAddress: the address has expired.
        FetchError: the server rate-limits this client (BLOCKED), or fails repeatedly (TRANSIENT).

    Args:
        ytdlp: sends the requests, with its own cookies, proxy, source address and timeouts.
        url: address of the file.
        headers: sent with every request.
        pace: limit on the rate of received bytes.
    """

    def __init__(self, ytdlp: YoutubeDL, url: str, headers: Mapping[str, str], pace: Pace) -> None:
        super().__init__()
        self._ytdlp = ytdlp
        self._url = url
        self._headers = {**headers, **IDENTITY}
        self._pace = pace
        self._position = 0
        self._pieces: deque[_Piece] = deque(maxlen=_CACHED_PIECES)
        self._expected = range(0)
        self._step = _FIRST_STEP
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Size of the complete file in bytes."""
        if self._size is None:
            self._get(0)
        assert self._size is not None
        return self._size

    def expect(self, begin: int, end: int) -> None:
        """Announce the range that will be read, so that it is fetched in few requests and nothing beyond it is."""
        self._expected = range(begin, end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = max(0, offset + (self.size if base is None else base))
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise io.UnsupportedOperation("a remote file can only be read in pieces")
        if size == 0 or (self._size is not None and self._position >= self._size):
            return b""
        piece = self._get(self._position)
        offset = self._position - piece.begin
        data = piece.data[offset : offset + size]
        self._position += len(data)
        return data

    @property
    def received_to(self) -> int:
        """Offset at which the most recently received piece ends."""
        return self._pieces[-1].end if self._pieces else 0

    def _get(self, position: int) -> _Piece:
        for piece in self._pieces:
            if piece.begin <= position < piece.end:
                return piece
        if position in self._expected:
            end = min(self._expected.stop, position + _MAX_REQUEST)
        else:
            continues = self._pieces and position == self._pieces[-1].end and position != self._expected.stop
            self._step = min(2 * self._step, _MAX_STEP) if continues else _FIRST_STEP
            end = position + self._step
        piece = _Piece(position, self._receive(position, end if self._size is None else min(end, self._size)))
        self._pieces.append(piece)
        return piece

    def _receive(self, begin: int, end: int) -> bytes:
        received = bytearray()
        _with_retries(lambda: self._request(begin + len(received), end, received))
        return bytes(received)

    def _request(self, begin: int, end: int, received: bytearray) -> None:
        """Request the missing bytes once. Those that arrive are appended to `received`, even if the request fails."""
        request = Request(self._url, headers={**self._headers, **range_header(begin, end)})
        with closing(self._ytdlp.urlopen(request)) as response:
            if _is_whole(response):
                raise RangesIgnored
            part = check_range(response.status, response.headers, begin, end)
            if self._size is None:
                self._size = part.file_size
            if part.file_size != self._size:
                raise StaleAddress("the file on the server has changed")
            _read(response, part.size, received, self._pace)


def download(
    ytdlp: YoutubeDL,
    url: str,
    headers: Mapping[str, str],
    pace: Pace,
    *,
    window: range | None = None,
    limit: int = 0,
    whole: bool = True,
) -> bytes:
    """Download a small file, or a part of one, in one request.

    Args:
        ytdlp: sends the request; see `RemoteFile`.
        url: address of the file.
        headers: sent with the request.
        pace: limit on the rate of received bytes.
        window: range of bytes to download; None for the whole file.
        limit: maximum number of bytes to download; 0 for 8 MiB.
        whole: fail if there are more bytes than the limit, instead of returning the first ones.

    Raises:
        StaleAddress: the address has expired.
        FetchError: the server rate-limits this client (BLOCKED) or fails repeatedly (TRANSIENT), or the file is larger
            than the limit (CORRUPT).
    """
    begin = window.start if window else 0
    end = begin + (limit or _MAX_REQUEST)
    if window:
        end = min(end, window.stop)
    if window and whole and end < window.stop:
        raise FetchError(FailureKind.CORRUPT, "the segment is larger than the limit of 8 MiB")

    def request() -> bytes:
        received = bytearray()
        message = Request(url, headers={**headers, **IDENTITY, **range_header(begin, end)})
        with closing(ytdlp.urlopen(message)) as response:
            if _is_whole(response) and begin == 0:
                file_size = content_length(response.headers)
                size = min(file_size, end)
            else:
                size, file_size = check_range(response.status, response.headers, begin, end)
            if whole and window is None and file_size > end:
                raise FetchError(FailureKind.CORRUPT, "the segment is larger than the limit of 8 MiB")
            _read(response, size, received, pace)
        return bytes(received)

    return _with_retries(request)


def _is_whole(response: Response) -> bool:
    """Return whether a response is the whole file instead of a range."""
    if str(response.headers.get("Content-Type", "")).startswith("text/html"):
        raise UnexpectedResponse("the response is a web page instead of media")
    return bool(response.status == 200)


def _read(response: Response, size: int, received: bytearray, pace: Pace) -> None:
    """Append `size` bytes of a response to `received`; fewer if the connection ends early."""
    while size:
        block = response.read(min(_BLOCK, size))
        if not block:
            raise UnexpectedResponse(f"the connection ended {count(size, 'byte')} early")
        received += block
        size -= len(block)
        pace.spend(len(block))


def _with_retries(request: Callable[[], T]) -> T:
    """Send a request, and repeat it if that may help."""
    retries = Retries(_TRIES)
    while True:
        try:
            return request()
        except UnexpectedResponse as error:
            failure = FetchError(FailureKind.TRANSIENT, f"media: {error}")
        except HTTPError as error:
            busy = refusal(error.status, error.response.headers, "media server")
            if busy is None:
                raise StaleAddress(f"media server: HTTP {error.status}") from error
            failure = busy
        except RequestError as error:
            timed_out = errno.ETIMEDOUT if "timed out" in str(error).lower() else None
            failure = FetchError(FailureKind.TRANSIENT, f"media: {masked(str(error))}"[:300], cause_errno=timed_out)
            if not isinstance(error, TransportError):
                raise failure from error
        retries.wait(failure)
