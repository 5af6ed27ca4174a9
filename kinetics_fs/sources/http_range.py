"""A file on a server, read by closed Range requests of limited size.

Servers of media slow down requests without an end, and push megabytes into buffers for a reader who wants the next
few kilobytes. Here every request says where it ends, every answer is checked against it, and what was broken off is
taken up where it broke.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple, TypeVar

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.youtube.errors import retry_after, without_secrets

T = TypeVar("T")

_STEP = 64 * 1024
"""Bytes of a first request at a new place; doubled as long as reading goes on from there."""
_LONGEST_STEP = 1024 * 1024
_LARGEST_REQUEST = 8 * 1024 * 1024
_BLOCK = 64 * 1024
_KEPT_PIECES = 4
"""Pieces in memory, for demuxers jump between the index and the media."""

_IDENTITY = {"Accept-Encoding": "identity"}
"""Sizes are those of what is sent."""

_TRIES = 4
_FIRST_PAUSE = 0.25
"""Seconds before a second try; twice as long before each further one, and up to half as long again by chance."""


class RangesIgnored(Exception):
    """The server sends the whole file, whatever it is asked for."""


class StaleAddress(FetchError):
    """The address is no longer good, or leads to another file than before: the page must be asked for a new one."""

    def __init__(self, reason: str) -> None:
        super().__init__(FailureKind.TRANSIENT, reason)


class Pace:
    """Keeps what is received below a rate.

    Args:
        rate: bytes a second; None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = 0.0

    def spend(self, size: int) -> None:
        """Takes note of received bytes, and waits if they came too early."""
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
        RangesIgnored: see there.
        StaleAddress: see there.
        FetchError: the server wants to be left alone (BLOCKED), or it fails again and again (TRANSIENT).

    Args:
        ytdlp: does the requests: cookies, proxy, source address and timeouts are its own.
        url: where the file is.
        headers: to be sent with every request.
        pace: how fast it may come.
    """

    def __init__(self, ytdlp: YoutubeDL, url: str, headers: Mapping[str, str], pace: Pace) -> None:
        super().__init__()
        self._ytdlp = ytdlp
        self._url = url
        self._headers = {**headers, **_IDENTITY}
        self._pace = pace
        self._position = 0
        self._pieces: deque[_Piece] = deque(maxlen=_KEPT_PIECES)
        self._expected = range(0)
        self._step = _STEP
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        if self._size is None:
            self._get(0)
        assert self._size is not None
        return self._size

    def expect(self, begin: int, end: int) -> None:
        """Says what is going to be read, so that it comes in as few requests as possible and no further."""
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
            raise io.UnsupportedOperation("a remote file is read piece by piece")
        if size == 0 or (self._size is not None and self._position >= self._size):
            return b""
        piece = self._get(self._position)
        offset = self._position - piece.begin
        data = piece.data[offset : offset + size]
        self._position += len(data)
        return data

    @property
    def received_to(self) -> int:
        """Where what has been received last ends."""
        return self._pieces[-1].end if self._pieces else 0

    def _get(self, position: int) -> _Piece:
        for piece in self._pieces:
            if piece.begin <= position < piece.end:
                return piece
        if position in self._expected:
            end = min(self._expected.stop, position + _LARGEST_REQUEST)
        else:
            goes_on = self._pieces and position == self._pieces[-1].end and position != self._expected.stop
            self._step = min(2 * self._step, _LONGEST_STEP) if goes_on else _STEP
            end = position + self._step
        piece = _Piece(position, self._receive(position, end if self._size is None else min(end, self._size)))
        self._pieces.append(piece)
        return piece

    def _receive(self, begin: int, end: int) -> bytes:
        received = bytearray()
        _with_tries(lambda: self._request(begin + len(received), end, received))
        return bytes(received)

    def _request(self, begin: int, end: int, received: bytearray) -> None:
        """One request, for what is still missing; what comes is added, however it ends."""
        request = Request(self._url, headers={**self._headers, "Range": f"bytes={begin}-{end - 1}"})
        with closing(self._ytdlp.urlopen(request)) as response:
            if _is_whole(response):
                raise RangesIgnored
            answer = _check(response, begin, end)
            if self._size is None:
                self._size = answer.file_size
            if answer.file_size != self._size:
                raise StaleAddress("the file on the server has changed")
            _read(response, answer.size, received, self._pace)


def download(
    ytdlp: YoutubeDL,
    url: str,
    headers: Mapping[str, str],
    pace: Pace,
    *,
    window: range | None = None,
    most: int = 0,
    whole: bool = True,
) -> bytes:
    """A small file, or a part of one, in one request.

    Args:
        ytdlp: as for `RemoteFile`.
        url: where the file is.
        headers: to be sent.
        pace: how fast it may come.
        window: the bytes that are wanted; None for all.
        most: bytes to take at most; 0 for 8 MiB.
        whole: whether what is longer than that is refused, and not cut.

    Raises:
        StaleAddress: see there.
        FetchError: as for `RemoteFile`; or the file is too large (CORRUPT).
    """
    begin = window.start if window else 0
    end = min(window.stop if window else begin + _LARGEST_REQUEST, begin + (most or _LARGEST_REQUEST))
    if window and whole and end < window.stop:
        raise FetchError(FailureKind.CORRUPT, "a segment is larger than any should be")

    def request() -> bytes:
        received = bytearray()
        wanted = Request(url, headers={**headers, **_IDENTITY, "Range": f"bytes={begin}-{end - 1}"})
        with closing(ytdlp.urlopen(wanted)) as response:
            if _is_whole(response) and begin == 0:
                size = _whole_size(response)
                file_size = size
                size = min(size, end)
            else:
                size, file_size = _check(response, begin, end)
            if whole and window is None and file_size > end:
                raise FetchError(FailureKind.CORRUPT, "a segment is larger than any should be")
            _read(response, size, received, pace)
        return bytes(received)

    return _with_tries(request)


class _Answer(NamedTuple):
    size: int
    """Bytes of the range."""
    file_size: int


def _is_whole(response: Response) -> bool:
    if str(response.headers.get("Content-Type", "")).startswith("text/html"):
        raise TransportError("a page came in place of media")
    return bool(response.status == 200)


def _whole_size(response: Response) -> int:
    length = str(response.headers.get("Content-Length", ""))
    if not re.fullmatch(r"\d{1,18}", length):
        raise TransportError("the answer does not say how long it is")
    return int(length)


def _check(response: Response, begin: int, end: int) -> _Answer:
    """What the answer to a request for [begin, end) brings."""
    said = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", str(response.headers.get("Content-Range", "")))
    if response.status != 206 or said is None:
        raise TransportError(f"status {response.status} does not answer a request for a range")
    first, last, file_size = map(int, said.groups())
    expected = min(end, file_size) - begin
    length = response.headers.get("Content-Length", str(expected))
    if (first, last) != (begin, begin + expected - 1) or length != str(expected) or expected <= 0:
        raise TransportError("the answer is for another range than was asked for")
    return _Answer(expected, file_size)


def _read(response: Response, size: int, received: bytearray, pace: Pace) -> None:
    """Adds so many bytes to what is received; fewer, if they break off."""
    while size:
        block = response.read(min(_BLOCK, size))
        if not block:
            raise TransportError(f"the connection ended {size} bytes early")
        received += block
        size -= len(block)
        pace.spend(len(block))


def _with_tries(request: Callable[[], T]) -> T:
    """Makes a request, and makes it again if that may help."""
    for attempt in range(_TRIES):
        try:
            return request()
        except RequestError as error:
            failure = _failure(error)
            if not isinstance(error, TransportError) and getattr(error, "status", 0) < 500:
                raise failure from error
        if attempt < _TRIES - 1:
            time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(1, 1.5))
    raise failure


def _failure(error: RequestError) -> FetchError:
    """What an error of yt-dlp's network amounts to, for media."""
    if isinstance(error, HTTPError):
        if error.status == 429:
            return FetchError(FailureKind.BLOCKED, "HTTP 429 from the media server", retry_after=retry_after(error))
        if error.status < 500:
            return StaleAddress(f"HTTP {error.status} from the media server")
        return FetchError(FailureKind.TRANSIENT, f"HTTP {error.status} from the media server")
    timed_out = errno.ETIMEDOUT if "timed out" in str(error).lower() else None
    return FetchError(FailureKind.TRANSIENT, f"media: {without_secrets(str(error))}"[:300], errno=timed_out)
