"""Decompression of an archive to its tar: gzip of any origin, or a plain tar.

The compressed bytes are pushed in as they arrive. The output comes in pieces of limited size, with the offsets between
them at which decompression can start again. The first two bytes decide whether an archive is compressed, because some
public archives named `.tar.gz` have been plain tars.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import IncompleteArchive, is_padding
from kinetics_fs.sources.archive.libz import MAX_OUTPUT, BlockInflater, lead_in, make_inflater

_MAGIC = b"\x1f\x8b"
_MAX_HEADER = 64 * 1024
_TRAILER = 8
_MAX_GROWTH = 32
"""Bytes of output that each byte of an archive may produce, beyond `_FREE_GROWTH`. Videos hardly compress: real
archives stay below 1.1."""
_FREE_GROWTH = 64 * 1024 * 1024
"""Bytes of output that any archive may produce."""
_MIN_PART = 64
"""Bytes of an archive and its tar for each deflate block and gzip member, on average, beyond `_FREE_PARTS`: empty ones
cost time. Real blocks have tens of thousands."""
_FREE_PARTS = 10_000
"""Blocks and members that any archive may have."""


class Block(NamedTuple):
    """An offset at which decompression can start: the start of a deflate block, or any byte of a plain tar."""

    bit: int
    """Offset in the archive, in bits."""
    position: int
    """Offset in the tar, in bytes."""
    window: bytes = b""
    """The bytes of the tar before it, at most 32 KiB, that the compressed data may refer to."""
    crc: int | None = None
    """Checksum of the output of the gzip member so far; None if it is unknown and will not be checked."""
    length: int = 0
    """Bytes of output of the gzip member so far."""


class Decompressor(Protocol):
    """Turns the bytes of an archive into the bytes of its tar."""

    gzipped: bool
    taken: int
    """Bytes of the archive that all output so far came from."""

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        """Decompress the next bytes of the archive.

        Yields:
            Pieces of the tar, and the blocks between them. A piece is valid until the next step. The caller must take
            all of them.

        Raises:
            ArchiveError: the data are damaged, or produce far more output than any archive of videos.
        """
        ...

    def finish(self) -> None:
        """Check that the archive is complete.

        Raises:
            IncompleteArchive: it is cut short.
        """
        ...


def is_gzip(data: bytes) -> bool:
    """Return whether an archive that begins with these bytes, at least two, is compressed."""
    return data.startswith(_MAGIC)


class Plain:
    """A plain tar."""

    gzipped = False

    def __init__(self, at: Block | None = None) -> None:
        self.taken = at.position if at else 0

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        yield Block(8 * self.taken, self.taken)
        self.taken += len(data)
        yield memoryview(data)

    def finish(self) -> None:
        """Do nothing: only the tar itself shows whether it is complete."""


class Gzip:
    """gzip (RFC 1952): one member, or several in a row. The checksum of every member is checked.

    Args:
        at: block in the middle of a member at which to start. The first byte to feed is the one with its first bit.
        spacing: minimum number of bytes of output between two blocks; each block costs a copy of its window.
    """

    gzipped = True

    def __init__(self, at: Block | None = None, spacing: int = 0) -> None:
        self._spacing = spacing
        self.taken = 0
        self._position = 0
        self._part = self._header
        self._buffered = b""
        self._members = 0
        self._zeros = 0
        """Bytes of zeros after the last member."""
        self._parts = 0
        """Blocks and members so far."""
        self._more = False
        if at is not None:
            self.taken = at.bit // 8
            self._position = at.position
            self._entry = at
            self._part = self._entrance
        self._next_block = self._position + spacing
        self._began = self._position - _MAX_GROWTH * self.taken

    def feed(self, data: bytes) -> Iterator[memoryview | Block]:
        begin = 0
        while begin < len(data) or self._more:
            self._consumed = 0
            yield from self._part(data, begin)
            begin += self._consumed

    def finish(self) -> None:
        if self._part not in (self._header, self._padding) or self._buffered or not self._members:
            raise IncompleteArchive("the compressed data are cut short")
        if not is_padding(self._zeros, self.taken):
            raise IncompleteArchive(f"{self._zeros:,} bytes of zeros follow the compressed data")

    # The parts of a stream. Each consumes some of the data, sets `_consumed`, and selects the next part.

    def _entrance(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        at = self._entry
        bits = at.bit % 8
        self._inflater = make_inflater(at.window, lead_in(bits, data[begin]) if bits else b"")
        self._crc, self._length = at.crc, at.length
        self._take(1 if bits else 0)
        self._part = self._body
        yield at

    def _header(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        buffered = self._buffered + data[begin : begin + _MAX_HEADER]
        if self._members and buffered[0] == 0:
            self._part = self._padding
            return
        size = _header_size(buffered)
        if size is None:
            if len(buffered) >= _MAX_HEADER:
                raise ArchiveError("the compressed data are damaged: a gzip header is too long")
            self._take(len(buffered) - len(self._buffered))
            self._buffered = buffered
            return
        self._take(size - len(self._buffered))
        self._buffered = b""
        self._inflater = make_inflater()
        self._crc, self._length = 0, 0
        self._part = self._body
        yield Block(8 * self.taken, self._position, b"", 0, 0)

    def _body(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        step = self._inflater.step(data, begin)
        self._take(step.consumed)
        # The input may be used up while output is still pending.
        self._more = len(step.output) == MAX_OUTPUT and not step.ended
        if step.output:
            if self._crc is not None:
                self._crc = zlib.crc32(step.output, self._crc)
            self._length += len(step.output)
            self._position += len(step.output)
            if self._position > self._began + _FREE_GROWTH + _MAX_GROWTH * self.taken:
                raise ArchiveError("the archive decompresses to far more than its size")
            yield step.output
        if step.block_bits is not None or step.ended:
            self._parts += 1
            if self._parts > _FREE_PARTS + (self.taken + self._position) // _MIN_PART:
                raise ArchiveError("the compressed data have far more parts than those of any archive of videos")
        at_block = step.block_bits is not None and self._position >= self._next_block
        if at_block and isinstance(self._inflater, BlockInflater):
            self._next_block = self._position + self._spacing
            bit = 8 * self.taken - (step.block_bits or 0)
            yield Block(bit, self._position, self._inflater.window(), self._crc, self._length)
        if step.ended:
            self._part = self._trailer

    def _trailer(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        buffered = self._buffered + data[begin : begin + _TRAILER - len(self._buffered)]
        self._take(len(buffered) - len(self._buffered))
        self._buffered = buffered
        if len(buffered) == _TRAILER:
            crc, length = int.from_bytes(buffered[:4], "little"), int.from_bytes(buffered[4:], "little")
            if self._crc is not None and (crc, length) != (self._crc, self._length & 0xFFFFFFFF):
                raise ArchiveError("the archive is damaged: the checksum of its content is wrong")
            self._buffered = b""
            self._members += 1
            self._part = self._header
        yield from ()

    def _padding(self, data: bytes, begin: int) -> Iterator[memoryview | Block]:
        """Skip zeros after the last member, as tapes have them."""
        if data[begin:].strip(b"\0"):
            raise ArchiveError("the archive is damaged: data follow its end")
        self._take(len(data) - begin)
        self._zeros += self._consumed
        yield from ()

    def _take(self, size: int) -> None:
        self._consumed = size
        self.taken += size


def _header_size(data: bytes) -> int | None:
    """Return the size in bytes of the gzip header at the start of `data` (RFC 1952, 2.3); None if it is incomplete.

    Raises:
        ArchiveError: the bytes are not a gzip header.
    """
    fixed = 10
    if not _MAGIC.startswith(data[:2]) or data[2:3] not in (b"", b"\x08"):
        raise ArchiveError("the compressed data are damaged: a gzip header is missing")
    if len(data) < fixed:
        return None
    flags, size = data[3], fixed
    if flags & 0xE0:
        raise ArchiveError("the compressed data are damaged: a gzip header has an unknown flag")
    if flags & 4:
        size += 2 + int.from_bytes(data[size : size + 2], "little")
    for flag in (8, 16):  # the name and the comment, each with a zero at its end
        if flags & flag and size <= len(data):
            end = data.find(b"\0", size)
            size = end + 1 if end >= 0 else len(data) + 1
    if flags & 2:
        size += 2
    return size if size <= len(data) else None
