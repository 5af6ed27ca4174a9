"""Inflating deflate data block by block.

A deflate stream can be entered at the start of any of its blocks, if what came before is at hand: the last 32 KiB of
output, the window. Python's `zlib` can enter a stream there, but does not tell where blocks start; libz itself does
(`inflate` with Z_BLOCK), and is there wherever Python's `zlib` is, for that is built on it. It is reached by ctypes.

Where that does not work (a Python with libz linked in and hidden), everything is still inflated, but without places to
enter again: no index can be built, and a stream that was broken off starts anew.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from typing import NamedTuple, Protocol

from kinetics_fs.errors import ArchiveError

WINDOW = 32 * 1024
"""Bytes of output that deflate data may refer back to."""

MOST_OUTPUT = 256 * 1024
"""Bytes that one step puts out at most, whatever the data say."""


class Step(NamedTuple):
    """What one step of inflating brought."""

    output: memoryview
    """Good until the next step."""
    consumed: int
    """Bytes of the input that were taken."""
    block_bits: int | None
    """A block starts here: so many bits (0 to 7) before the end of what was consumed. None if none does, or if it is
    not known."""
    ended: bool
    """The deflate data end here."""


class Inflater(Protocol):
    """Inflates one deflate stream, without any header, from its beginning or from the start of a block."""

    def step(self, data: bytes, begin: int) -> Step:
        """Inflates some of `data[begin:]`; nothing consumed and no output means that more data are needed.

        Raises:
            ArchiveError: this is not deflate data.
        """
        ...


def make_inflater(window: bytes = b"", lead: bytes = b"") -> Inflater:
    """The best inflater there is.

    Args:
        window: the output before the place to begin; at most 32 KiB.
        lead: to be inflated before any other data, as `lead_in` makes it.
    """
    return BlockInflater(window, lead) if finds_block_boundaries() else PlainInflater(window, lead)


def lead_in(bits: int, first: int) -> bytes:
    """Deflate data that put out nothing and lead to a block in the middle of a byte.

    Shifting all that follows would not do: stored blocks go on at the next whole byte. So empty blocks are put before
    it, as many as it takes to arrive at the right bit.

    Args:
        bits: of `first` that belong to the block before: 1 to 7.
        first: the byte in which the block starts.
    """
    value, length = _LEADS[bits]
    value |= first >> bits << length
    return value.to_bytes((length + 8 - bits) // 8, "little")


class PlainInflater:
    """By Python's `zlib`: does not know of blocks."""

    def __init__(self, window: bytes = b"", lead: bytes = b"") -> None:
        self._stream = zlib.decompressobj(-15, zdict=window)
        self._stream.decompress(lead, 1)

    def step(self, data: bytes, begin: int) -> Step:
        rest = memoryview(data)[begin:]
        try:
            output = self._stream.decompress(rest, MOST_OUTPUT)
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
    # Python's own module first: it names, or contains, the very libz that Python uses.
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
    raise OSError("no libz whose functions can be called")


class BlockInflater:
    """By libz itself: says where blocks start, and what the window is there.

    Raises:
        OSError: there is no libz that we can call.
    """

    def __init__(self, window: bytes = b"", lead: bytes = b"") -> None:
        self._libz = _libz()
        self._stream = _ZStream()
        self._pointer = ctypes.byref(self._stream)
        self._output = ctypes.create_string_buffer(MOST_OUTPUT)
        self._view = memoryview(self._output).cast("B")
        self._window = ctypes.create_string_buffer(WINDOW)
        version, size = self._libz.zlibVersion(), ctypes.sizeof(_ZStream)
        if self._libz.inflateInit2_(self._pointer, -15, version, size) != _Z_OK:
            raise OSError("libz cannot begin to inflate")
        if window and self._libz.inflateSetDictionary(self._pointer, window, len(window)) != _Z_OK:
            raise OSError("libz does not take the window")
        place = 0
        while place < len(lead):
            place += self.step(lead, place).consumed

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            self._libz.inflateEnd(self._pointer)

    def step(self, data: bytes, begin: int) -> Step:
        stream = self._stream
        available = len(data) - begin
        # `data` outlives the call, and so does the place of its bytes.
        stream.next_in = (ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0) + begin
        stream.avail_in = available
        stream.next_out = ctypes.addressof(self._output)
        stream.avail_out = MOST_OUTPUT
        status = self._libz.inflate(self._pointer, _Z_BLOCK)
        if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            said = (stream.msg or b"status %d" % status).decode("ascii", "replace")
            raise ArchiveError(f"the compressed data are damaged: {said}")
        # 128: stopped before a block; 64: the block before was the last, so that nothing starts here.
        at_block = stream.data_type & (128 | 64) == 128
        return Step(
            self._view[: MOST_OUTPUT - stream.avail_out],
            available - stream.avail_in,
            stream.data_type & 7 if at_block else None,
            status == _Z_STREAM_END,
        )

    def window(self) -> bytes:
        """The last 32 KiB of output, or all of it."""
        length = ctypes.c_uint()
        if self._libz.inflateGetDictionary(self._pointer, self._window, ctypes.byref(length)) != _Z_OK:
            raise OSError("libz does not give the window")
        return ctypes.string_at(self._window, length.value)


@functools.cache
def finds_block_boundaries() -> bool:
    """Whether `BlockInflater` works here: found out by trying it on data whose blocks are known."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    first = packer.compress(b"kinetics") + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + packer.compress(b"-fs") + packer.flush()
    seen = {}
    output = b""
    place = 0
    try:
        inflater = BlockInflater()
        for _ in range(20):
            step = inflater.step(data, place)
            place += step.consumed
            output += step.output
            if step.block_bits is not None:
                seen[8 * place - step.block_bits] = inflater.window()
            if step.ended:
                break
    except (OSError, ArchiveError):
        return False
    return place == len(data) and output == b"kinetics-fs" and seen.get(8 * len(first)) == b"kinetics"


def _string(*fields: tuple[int, int]) -> tuple[int, int]:
    """Fields of bits, (value, width), one after the other, as one number and its width."""
    value = width = 0
    for field, bits in fields:
        value |= field << width
        width += bits
    return value, width


_EMPTY_FIXED = _string((0, 1), (1, 2), (0, 7))
"""An empty block with the fixed codes: 10 bits (RFC 1951, 3.2.6)."""

_EMPTY_DYNAMIC = _string(
    *((0, 1), (2, 2)),  # not the last block; codes of its own
    *((0, 5), (0, 5), (14, 4)),  # 257 codes for literals, 1 for distances, 18 code length codes
    # Code lengths, in the order of RFC 1951, 3.2.7: 18 (a run of zeros) and 0 take 2 bits, 1 takes 1 bit.
    *((length, 3) for length in (0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)),
    *((3, 2), (138 - 11, 7)),  # no literal has a code …
    *((3, 2), (118 - 11, 7)),
    (0, 1),  # … but the end of the block, of 1 bit
    (1, 2),  # no distance has one
    (0, 1),  # the end of the block
)
"""An empty block with codes of its own: 93 bits, for an odd number is needed to arrive at an odd bit."""


def _lead(bits: int) -> tuple[int, int]:
    blocks = [_EMPTY_DYNAMIC] if bits % 2 else []
    while sum(width for _, width in blocks) % 8 != bits:
        blocks.append(_EMPTY_FIXED)
    return _string(*blocks)


_LEADS = tuple(_lead(bits) for bits in range(8))
