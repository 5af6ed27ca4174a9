"""Rules for reading byte ranges over HTTP, independent of the library that sends the requests.

Every request names a closed range. Every response is checked against it (RFC 9110, section 14.4), so that a proxy or a
server that sends another range never corrupts a file. Failed requests are repeated after a pause that doubles, or that
the server asks for.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from kinetics_fs.errors import FailureKind, FetchError

IDENTITY = {"Accept-Encoding": "identity"}
"""Header of every range request: ranges count the bytes of the file, not of a compressed form of it."""

FIRST_PAUSE = 0.25
"""Seconds before the second try. The pause doubles with each further try, plus up to half of it at random, so that
clients that failed together do not return together."""
MAX_PAUSE = 20.0
"""Longest wait in seconds that a server may ask for with Retry-After before the request fails."""


class UnexpectedResponse(Exception):
    """A response that does not match its request. The request may be repeated."""


class RangeResponse(NamedTuple):
    """A valid response to a range request.

    Attributes:
        size: number of bytes in the range; less than requested if the file ends within it.
        file_size: size of the complete file in bytes.
    """

    size: int
    file_size: int


def range_header(begin: int, end: int) -> dict[str, str]:
    """Return the header that requests the bytes from `begin` up to, but not including, `end`."""
    return {"Range": f"bytes={begin}-{end - 1}"}


def check_range(status: int, headers: Mapping[str, str], begin: int, end: int) -> RangeResponse:
    """Check the response to a request for the bytes from `begin` up to, but not including, `end`.

    Raises:
        UnexpectedResponse: the status is not 206, Content-Range is missing or gives another range, or Content-Length
            contradicts it.
    """
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", str(headers.get("Content-Range", "")))
    if status != 206 or match is None:
        raise UnexpectedResponse(f"status {status} is no response to a request for a range")
    first, last, file_size = map(int, match.groups())
    size = min(end, file_size) - begin
    length = str(headers.get("Content-Length", size))
    if (first, last) != (begin, begin + size - 1) or length != str(size) or size <= 0:
        raise UnexpectedResponse("the response is for another range than the requested one")
    return RangeResponse(size, file_size)


def content_length(headers: Mapping[str, str]) -> int:
    """Return the number of bytes that a response announces.

    Raises:
        UnexpectedResponse: it announces none.
    """
    length = str(headers.get("Content-Length", ""))
    if not re.fullmatch(r"\d{1,18}", length):
        raise UnexpectedResponse("the response does not state its length")
    return int(length)


def refusal(status: int, headers: Mapping[str, str], address: str) -> FetchError | None:
    """Return the failure for a status with which a server asks to come back later; None for any other status.

    Args:
        status: of the response.
        headers: of the response.
        address: name of the server or file in the message.
    """
    if status == 429:
        return FetchError(FailureKind.BLOCKED, f"{address}: HTTP 429", retry_after=retry_after(headers))
    if status >= 500:
        return FetchError(FailureKind.TRANSIENT, f"{address}: HTTP {status}", retry_after=retry_after(headers))
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; None if it does not, or gives a date."""
    value = str(headers.get("Retry-After", ""))
    return float(value) if re.fullmatch(r"[0-9]{1,6}", value) else None


class Retries:
    """The tries that one request has.

    Args:
        tries: number of tries in a row that may fail without progress.
        kinds: failures after which the request is repeated; any other ends it at once.
    """

    def __init__(self, tries: int, kinds: Collection[FailureKind] = (FailureKind.TRANSIENT,)) -> None:
        self._tries = tries
        self._kinds = kinds
        self._failed = 0

    def progress(self) -> None:
        """Start counting again, because bytes have arrived."""
        self._failed = 0

    def wait(self, failure: FetchError) -> None:
        """Wait until the request may be repeated.

        Args:
            failure: why the last try failed.

        Raises:
            FetchError: `failure`, if another try would not help or the server asks for too long a wait.
        """
        self._failed += 1
        asked = failure.retry_after or 0.0
        if failure.kind not in self._kinds or self._failed >= self._tries or asked > MAX_PAUSE:
            raise failure
        time.sleep(max(FIRST_PAUSE * 2 ** (self._failed - 1) * random.uniform(1, 1.5), asked))
