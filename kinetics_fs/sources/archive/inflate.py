"""From the bytes of an archive to those of its tar: gzip of any make, or nothing to undo.

Bytes are pushed in as they come, and what they unpack to comes out in pieces of limited size, with the places in
between at which the archive can be entered again. A name says nothing: public archives called `.tar.gz` have been plain
tars, so the first two bytes decide.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.libz import MOST_OUTPUT, BlockInflater, lead_in, make_inflater

_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 64 * 1024
_TRAILER = 8
_MOST_GROWTH = 32
"""Times its own size that an archive may unpack to, after a first … """
_FREE_GROWTH = 64 * 1024 * 1024
"""… so many bytes. Videos do not deflate: real archives stay below 1.1."""


class Block(NamedTuple):
    """A place at which an archive can be entered: the start of a deflate block, or any byte of a plain tar."""

    bit: int
    """Where it starts in the archive, in bits."""
    position: int
    """Where it starts in the tar, in bytes."""
    window: bytes = b""
    """What of the tar comes before it, at most 32 KiB, as far as gzip's data may refer to it."""
    crc: int | None = None
    """Checksum of the gzip member up to here; None if it is not known, and will not be checked."""
    length: int = 0
    """Bytes that the gzip member has unpacked to up to here."""


class Decompressor(Protocol):
    """Turns the bytes of an archive into those of its tar."""

    gzipped: bool
    taken: int
    """Bytes of the archive that were needed for all that came out so far."""

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        """Takes the next bytes of the archive.

        Yields:
            What they unpack to, good until the next step, and the places to enter at. Each is to be dealt with
            before the next is asked for, and all must be asked for.

        Raises:
            ArchiveError: the data are damaged, or unpack to far more than any archive of videos.
        """
        ...

    def finish(self) -> None:
        """Says that these were all.

        Raises:
            ArchiveError: something is missing.
        """
        ...


def is_gzip(data: bytes) -> bool:
    """Whether an archive that begins with these bytes, at least two, is gzipped."""
    return data.startswith(_MAGIC)


class Plain:
    """A tar as it is."""

    gzipped = False

    def __init__(self, at: Block | None = None) -> None:
        self.taken = at.position if at else 0

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        yield Block(8 * self.taken, self.taken)
        self.taken += len(data)
        yield memoryview(data)

    def finish(self) -> None:
        """Of a plain tar nobody but the tar itself knows whether it is whole."""


class Gzip:
    """gzip (RFC 1952): one member, or several in a row. The checksum of every member is checked.

    Args:
        at: where to begin, in the middle of a member; the first byte to be fed is that which holds its first bit.
        spacing: bytes of output between two places to enter at, at least: each costs a copy of its window.
    """

    gzipped = True

    def __init__(self, at: Block | None = None, spacing: int = 0) -> None:
        self._spacing = spacing
        self.taken = 0
        self._position = 0
        self._part = self._header
        self._held = b""
        self._members = 0
        self._more = False
        if at is not None:
            self.taken = at.bit // 8
            self._position = at.position
            self._entry = at
            self._part = self._entrance
        self._next_block = self._position + spacing
        self._began = self._position - _MOST_GROWTH * self.taken

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        begin = 0
        while begin < len(data) or self._more:
            self._consumed = 0
            yield from self._part(data, begin)
            begin += self._consumed

    def finish(self) -> None:
        if self._part not in (self._header, self._padding) or self._held or not self._members:
            raise ArchiveError("the archive is cut short")

    # The parts of a stream: each takes some of the data, sets `_consumed`, and hands over to the next

    def _entrance(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        at = self._entry
        bits = at.bit % 8
        self._inflater = make_inflater(at.window, lead_in(bits, data[begin]) if bits else b"")
        self._crc, self._length = at.crc, at.length
        self._take(1 if bits else 0)
        self._part = self._body
        yield at

    def _header(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        held = self._held + data[begin : begin + _LONGEST_HEADER]
        if self._members and held[0] == 0:
            self._part = self._padding
            return
        size = _header_size(held)
        if size is None:
            if len(held) >= _LONGEST_HEADER:
                raise ArchiveError("the compressed data are damaged: an endless gzip header")
            self._take(len(held) - len(self._held))
            self._held = held
            return
        self._take(size - len(self._held))
        self._held = b""
        self._inflater = make_inflater()
        self._crc, self._length = 0, 0
        self._part = self._body
        yield Block(8 * self.taken, self._position, b"", 0, 0)

    def _body(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        step = self._inflater.step(data, begin)
        self._take(step.consumed)
        # Perhaps: the input may be used up, but not what it says.
        self._more = len(step.output) == MOST_OUTPUT and not step.ended
        if step.output:
            if self._crc is not None:
                self._crc = zlib.crc32(step.output, self._crc)
            self._length += len(step.output)
            self._position += len(step.output)
            if self._position > self._began + _FREE_GROWTH + _MOST_GROWTH * self.taken:
                raise ArchiveError("the archive unpacks to far more than its size")
            yield step.output
        at_block = step.block_bits is not None and self._position >= self._next_block
        if at_block and isinstance(self._inflater, BlockInflater):
            self._next_block = self._position + self._spacing
            bit = 8 * self.taken - (step.block_bits or 0)
            yield Block(bit, self._position, self._inflater.window(), self._crc, self._length)
        if step.ended:
            self._part = self._trailer

    def _trailer(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        held = self._held + data[begin : begin + _TRAILER - len(self._held)]
        self._take(len(held) - len(self._held))
        self._held = held
        if len(held) == _TRAILER:
            crc, length = int.from_bytes(held[:4], "little"), int.from_bytes(held[4:], "little")
            if self._crc is not None and (crc, length) != (self._crc, self._length & 0xFFFFFFFF):
                raise ArchiveError("the archive is damaged: its checksum is not that of what it unpacks to")
            self._held = b""
            self._members += 1
            self._part = self._header
        yield from ()

    def _padding(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        """Zeros after the last member, as tapes have."""
        if data[begin:].strip(b"\0"):
            raise ArchiveError("the archive is damaged: there is more behind its end")
        self._take(len(data) - begin)
        yield from ()

    def _take(self, size: int) -> None:
        self._consumed = size
        self.taken += size


def _header_size(data: bytes) -> int | None:
    """Bytes of the header that `data` begin with (RFC 1952, 2.3); None if it is longer than they are.

    Raises:
        ArchiveError: it is not one.
    """
    fixed = 10
    if not _MAGIC.startswith(data[:2]) or data[2:3] not in (b"", b"\x08"):
        raise ArchiveError("the compressed data are damaged: no gzip header where one must be")
    if len(data) < fixed:
        return None
    flags, size = data[3], fixed
    if flags & 0xE0:
        raise ArchiveError("the compressed data are damaged: an unknown flag in a gzip header")
    if flags & 4:
        size += 2 + int.from_bytes(data[size : size + 2], "little")
    for flag in (8, 16):  # the name and the comment, each ended by a zero
        if flags & flag and size <= len(data):
            end = data.find(b"\0", size)
            size = end + 1 if end >= 0 else len(data) + 1
    if flags & 2:
        size += 2
    return size if size <= len(data) else None
