"""Decompression of deflate data block by block.

A decoder can start at any block of a deflate stream if it has the window, the last 32 KiB of output before the block.
Python's `zlib` can start there, but does not report where blocks start. libz does (`inflate` with Z_BLOCK), and is
present wherever Python's `zlib` is, which is built on it. This module calls it by ctypes.

A Python that links libz statically and hides its symbols can still decompress everything, but finds no blocks. Then no
index can be built, and an interrupted pass starts from the beginning.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from typing import NamedTuple, Protocol

from kinetics_fs.errors import ArchiveError

WINDOW = 32 * 1024
"""Bytes of output that later deflate data may refer to."""

MAX_OUTPUT = 256 * 1024
"""Maximum number of bytes of output of one step."""


class Step(NamedTuple):
    """The result of one step of decompression."""

    output: memoryview
    """Decompressed bytes, valid until the next step."""
    consumed: int
    """Number of consumed input bytes."""
    block_bits: int | None
    """If a block starts here, the number of its bits (0 to 7) in the last consumed byte. None if no block starts here,
    or the decoder does not know."""
    ended: bool
    """Whether the deflate data end here."""


class Inflater(Protocol):
    """Decompresses one raw deflate stream, from its beginning or from the start of a block."""

    def step(self, data: bytes, begin: int) -> Step:
        """Decompress some of `data[begin:]`. A step that consumes nothing and has no output needs more data.

        Raises:
            ArchiveError: the bytes are not deflate data.
        """
        ...


def make_inflater(window: bytes = b"", lead: bytes = b"") -> Inflater:
    """Return a `BlockInflater` if libz can be called, otherwise a `PlainInflater`.

    Args:
        window: output before the start, at most 32 KiB.
        lead: data from `lead_in` to decompress first.
    """
    return BlockInflater(window, lead) if finds_block_boundaries() else PlainInflater(window, lead)


def lead_in(bits: int, first: int) -> bytes:
    """Return deflate data without output that lead to a block that starts in the middle of a byte.

    Shifting the following bits is not possible, because stored blocks continue at the next whole byte. Instead, empty
    blocks of the right number of bits precede the block.

    Args:
        bits: number of bits of `first` that belong to the block before, 1 to 7.
        first: byte in which the block starts.
    """
    value, length = _LEADS[bits]
    value |= first >> bits << length
    return value.to_bytes((length + 8 - bits) // 8, "little")


class PlainInflater:
    """Decompresses with Python's `zlib`, which does not report blocks."""

    def __init__(self, window: bytes = b"", lead: bytes = b"") -> None:
        self._stream = zlib.decompressobj(-15, zdict=window)
        self._stream.decompress(lead, 1)

    def step(self, data: bytes, begin: int) -> Step:
        rest = memoryview(data)[begin:]
        try:
            output = self._stream.decompress(rest, MAX_OUTPUT)
        except zlib.error as error:
            raise ArchiveError(f"the compressed data are damaged: {error}") from error
        left = len(self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail)
        return Step(memoryview(output), len(rest) - left, None, self._stream.eof)


class _ZStream(ctypes.Structure):
    """`z_stream` of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


_Z_BLOCK = 5
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5


@functools.cache
def _libz() -> ctypes.CDLL:
    # Python's own module first: it names, or contains, the libz that Python uses.
    for name in (getattr(zlib, "__file__", None), None, "libz.so.1", "libz.dylib"):
        try:
            library = ctypes.CDLL(name)
            for function in (library.inflateInit2_, library.inflateSetDictionary, library.inflateGetDictionary):
                function.restype = ctypes.c_int
            library.inflate.argtypes = (ctypes.c_void_p, ctypes.c_int)
            library.inflateEnd.argtypes = (ctypes.c_void_p,)
            library.zlibVersion.restype = ctypes.c_char_p
            return library
        except (OSError, AttributeError):
            continue
    raise OSError("cannot call libz: no library exports its functions")


class BlockInflater:
    """Decompresses with libz, and reports where blocks start and the window there.

    Raises:
        OSError: libz cannot be called.
    """

    def __init__(self, window: bytes = b"", lead: bytes = b"") -> None:
        self._libz = _libz()
        self._stream = _ZStream()
        self._pointer = ctypes.byref(self._stream)
        self._output = ctypes.create_string_buffer(MAX_OUTPUT)
        self._view = memoryview(self._output).cast("B")
        self._window = ctypes.create_string_buffer(WINDOW)
        version, size = self._libz.zlibVersion(), ctypes.sizeof(_ZStream)
        if self._libz.inflateInit2_(self._pointer, -15, version, size) != _Z_OK:
            raise OSError("libz cannot start to decompress")
        if window and self._libz.inflateSetDictionary(self._pointer, window, len(window)) != _Z_OK:
            raise OSError("libz rejects the window")
        at = 0
        while at < len(lead):
            at += self.step(lead, at).consumed

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            self._libz.inflateEnd(self._pointer)

    def step(self, data: bytes, begin: int) -> Step:
        stream = self._stream
        available = len(data) - begin
        # `data` outlives the call, so the address of its bytes stays valid.
        stream.next_in = (ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0) + begin
        stream.avail_in = available
        stream.next_out = ctypes.addressof(self._output)
        stream.avail_out = MAX_OUTPUT
        status = self._libz.inflate(self._pointer, _Z_BLOCK)
        if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            message = (stream.msg or b"status %d" % status).decode("ascii", "replace")
            raise ArchiveError(f"the compressed data are damaged: {message}")
        # 128: stopped before a block. 64: the previous block was the last one, so no block starts here.
        at_block = stream.data_type & (128 | 64) == 128
        return Step(
            self._view[: MAX_OUTPUT - stream.avail_out],
            available - stream.avail_in,
            stream.data_type & 7 if at_block else None,
            status == _Z_STREAM_END,
        )

    def window(self) -> bytes:
        """Return the last 32 KiB of output, or all of it if there is less."""
        length = ctypes.c_uint()
        if self._libz.inflateGetDictionary(self._pointer, self._window, ctypes.byref(length)) != _Z_OK:
            raise OSError("libz does not return the window")
        return ctypes.string_at(self._window, length.value)


@functools.cache
def finds_block_boundaries() -> bool:
    """Return whether `BlockInflater` works with this Python, by a test on data with known blocks."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    first = packer.compress(b"kinetics") + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + packer.compress(b"-fs") + packer.flush()
    seen = {}
    output = b""
    at = 0
    try:
        inflater = BlockInflater()
        for _ in range(20):
            step = inflater.step(data, at)
            at += step.consumed
            output += step.output
            if step.block_bits is not None:
                seen[8 * at - step.block_bits] = inflater.window()
            if step.ended:
                break
    except (OSError, ArchiveError):
        return False
    return at == len(data) and output == b"kinetics-fs" and seen.get(8 * len(first)) == b"kinetics"


def _string(*fields: tuple[int, int]) -> tuple[int, int]:
    """Concatenate fields of bits, (value, width), into one number and its width."""
    value = width = 0
    for field, bits in fields:
        value |= field << width
        width += bits
    return value, width


_EMPTY_FIXED = _string((0, 1), (1, 2), (0, 7))
"""An empty block with the fixed codes: 10 bits (RFC 1951, 3.2.6)."""

_EMPTY_DYNAMIC = _string(
    *((0, 1), (2, 2)),  # not the last block; dynamic codes
    *((0, 5), (0, 5), (14, 4)),  # 257 codes for literals, 1 for distances, 18 code length codes
    # Code lengths, in the order of RFC 1951, 3.2.7: 18 (a run of zeros) and 0 take 2 bits, 1 takes 1 bit.
    *((length, 3) for length in (0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)),
    *((3, 2), (138 - 11, 7)),  # no literal has a code …
    *((3, 2), (118 - 11, 7)),
    (0, 1),  # … but the end of the block, of 1 bit
    (1, 2),  # no distance has one
    (0, 1),  # the end of the block
)
"""An empty block with dynamic codes: 93 bits. An odd number is needed to arrive at an odd bit."""


def _lead(bits: int) -> tuple[int, int]:
    blocks = [_EMPTY_DYNAMIC] if bits % 2 else []
    while sum(width for _, width in blocks) % 8 != bits:
        blocks.append(_EMPTY_FIXED)
    return _string(*blocks)


_LEADS = tuple(_lead(bits) for bits in range(8))
