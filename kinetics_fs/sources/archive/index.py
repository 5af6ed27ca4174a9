"""Where in an archive each clip is, so precisely that it can be read alone.

To read one clip out of a `.tar.gz`, deflate data must be entered at the start of a block before it, and the window,
the 32 KiB of output before that block, be known as far as anything refers to it. Videos hardly repeat themselves, so
of a window a clip needs a few bytes or none: that is all that is kept of it. See `scan` for how it is found out.

An index is a file that can be handed on, and so data from outside. It is a row of sections, one per archive, so that
the indexes of many archives are joined by `cat`. A section is one line of text::

    kinetics-fs archive index 1 {"archive": "600/val/abseiling.tar.gz", "size": 1234, "etag": "…", …}

and after it, as many bytes as the line says, a zlib stream of the records (`_ROW`) and their windows. An index says
nothing about where archives are, and of what it says nothing is believed but within bounds; what is read by it is
checked against the tar's own header and the checksum (see `extract`).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, NamedTuple

from kinetics_fs.catalog.clip import LAST_SECOND, YOUTUBE_ID, Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.libz import WINDOW
from kinetics_fs.sources.archive.tar import HEADER, MOST_CLIP_BYTES

MOST_SKIP = 4 * 1024 * 1024
"""Bytes to unpack before a clip; usual are 33,000, half a deflate block."""

MOST_CLIPS = 200_000
"""In one archive; real ones have up to about 1,000."""

_MAGIC = "kinetics-fs archive index 1 "
_LONGEST_LINE = 8192
_MOST_PACKED = 32 * 1024 * 1024
_MOST_UNPACKED = 64 * 1024 * 1024
_LARGEST_ARCHIVE = 1 << 50
_ROW = struct.Struct("<11sIIQIIIII")
"""YouTube id, start, end; bit, skip, size, length of the range, crc; bytes of the packed window."""
_RUN = struct.Struct("<HB")


class Record(NamedTuple):
    """Where a clip is in an archive."""

    bit: int
    """Where to enter the archive, in bits from its beginning."""
    skip: int
    """Bytes of the tar from there to the clip's header, which is right before its data."""
    size: int
    """Of the clip, in bytes."""
    end: int
    """Where in the archive to stop reading, in bytes."""
    crc: int
    """CRC-32 of the clip."""
    window: bytes
    """What of the window is needed, as `pack_window` packs it."""

    @property
    def begin(self) -> int:
        """Where in the archive to begin reading, in bytes."""
        return self.bit // 8


@dataclass(frozen=True)
class ArchiveIndex:
    """Where the clips of one archive are.

    Attributes:
        archive: its name: the path below the address of all archives, as `600/val/abseiling.tar.gz`.
        size: its bytes.
        etag: what the server called this version of it; None where it was read from a disk.
        gzipped: whether it is compressed.
        records: of its clips, in any order.
    """

    archive: str
    size: int
    etag: str | None
    gzipped: bool
    records: Mapping[Clip, Record]


def pack_window(window: bytes, needed: Iterable[tuple[int, int]]) -> bytes:
    """What is needed of a window, as runs of an offset (2 bytes), a length less 1 (1 byte), and so many bytes.

    Args:
        window: all 32 KiB.
        needed: (begin, end) of the parts that are needed, sorted.
    """
    packed = bytearray()
    for begin, end in needed:
        for place in range(begin, end, 256):
            piece = window[place : min(end, place + 256)]
            packed += _RUN.pack(place, len(piece) - 1) + piece
    return bytes(packed)


def unpack_window(packed: bytes) -> bytes:
    """The window, with zeros where nothing is needed; empty if nothing is.

    Raises:
        ArchiveError: this is not what `pack_window` makes.
    """
    window = bytearray(WINDOW)
    place = 0
    while place < len(packed):
        if place + _RUN.size > len(packed):
            raise ArchiveError("the index is damaged: a window ends early")
        offset, last = _RUN.unpack_from(packed, place)
        place += _RUN.size
        piece = packed[place : place + last + 1]
        place += last + 1
        if len(piece) != last + 1 or offset + len(piece) > WINDOW:
            raise ArchiveError("the index is damaged: a window that is none")
        window[offset : offset + len(piece)] = piece
    return bytes(window)


def check_record(record: Record, size: int, *, gzipped: bool) -> None:
    """Checks that a record makes sense for an archive of `size` bytes.

    Raises:
        ArchiveError: it does not.
    """
    most = 2 * (record.skip + HEADER + record.size) + MOST_SKIP
    sound = (
        0 < record.size <= MOST_CLIP_BYTES
        and 0 <= record.skip <= MOST_SKIP
        and record.bit >= 0
        and record.begin < record.end <= size
        and record.end - record.begin <= most
        and 0 <= record.crc < 1 << 32
        and (
            gzipped
            or (
                record.bit % 8 == record.skip == len(record.window) == 0
                and record.end - record.begin == HEADER + record.size
            )
        )
    )
    if not sound:
        raise ArchiveError("the index is damaged: a record makes no sense")
    unpack_window(record.window)


def write_index(index: ArchiveIndex, file: IO[bytes]) -> None:
    """Appends an index to a file."""
    rows = bytearray()
    windows = bytearray()
    for clip, record in sorted(index.records.items(), key=lambda item: item[1].bit):
        length = record.end - record.begin
        rows += _ROW.pack(
            clip.youtube_id.encode(),
            *(clip.start, clip.end),
            *(record.bit, record.skip, record.size, length, record.crc, len(record.window)),
        )
        windows += record.window
    packed = zlib.compress(_columns(rows) + windows, 9)
    head = {
        "archive": index.archive,
        "size": index.size,
        "etag": index.etag,
        "gzipped": index.gzipped,
        "clips": len(index.records),
        "bytes": len(packed),
    }
    file.write(_MAGIC.encode() + json.dumps(head).encode() + b"\n" + packed)


def read_indexes(file: IO[bytes]) -> Iterator[ArchiveIndex]:
    """Reads the indexes that a file holds, one after the other. Each is whole and makes sense, or an error.

    Raises:
        ArchiveError: the file is no index, is damaged or cut short, or claims what cannot be.
    """
    while line := file.readline(_LONGEST_LINE):
        head = _head(line)
        packed = file.read(head.bytes)
        if len(packed) != head.bytes:
            raise ArchiveError("the index is cut short")
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(packed, _MOST_UNPACKED)
        except zlib.error as error:
            raise ArchiveError(f"the index is damaged: {error}") from error
        if not stream.eof or stream.unused_data:
            raise ArchiveError("the index is damaged, or far too large")
        records = dict(_records(content, head))
        if len(records) != head.clips:
            raise ArchiveError("the index is damaged: a clip stands in it twice")
        yield ArchiveIndex(head.archive, head.size, head.etag, head.gzipped, records)


class _Head(NamedTuple):
    archive: str
    size: int
    etag: str | None
    gzipped: bool
    clips: int
    bytes: int


def check_name(name: str) -> str:
    """Checks that the name of an archive is a plain path below some folder, and returns it.

    Raises:
        ArchiveError: it is not.
    """
    parts = name.split("/")
    if len(name) > 1024 or not name.isprintable() or any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise ArchiveError(f"not the name of an archive: {name[:100]!r}")
    return name


def _head(line: bytes) -> _Head:
    try:
        text = line.decode()
        if not text.startswith(_MAGIC) or not text.endswith("\n"):
            raise ValueError
        said = json.loads(text[len(_MAGIC) :])
        head = _Head(*(said[name] for name in _Head._fields))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ArchiveError("not an index of archives, or one of another version") from error
    numbers = ((head.size, _LARGEST_ARCHIVE), (head.clips, MOST_CLIPS), (head.bytes, _MOST_PACKED))
    if not (
        isinstance(head.archive, str)
        and all(type(number) is int and 0 <= number <= most for number, most in numbers)
        and (head.etag is None or (isinstance(head.etag, str) and re.fullmatch(r"[!-~]{1,200}", head.etag)))
        and isinstance(head.gzipped, bool)
    ):
        raise ArchiveError("the index is damaged: its first line makes no sense")
    check_name(head.archive)
    return head


def _records(content: bytes, head: _Head) -> Iterator[tuple[Clip, Record]]:
    place = head.clips * _ROW.size
    if len(content) < place:
        raise ArchiveError("the index is damaged: records are missing")
    for name, start, end, bit, skip, size, length, crc, window in _ROW.iter_unpack(_rows(content[:place])):
        youtube_id = name.decode("latin-1")
        if not YOUTUBE_ID.fullmatch(youtube_id) or not start < end <= LAST_SECOND:
            raise ArchiveError("the index is damaged: a clip that is none")
        record = Record(bit, skip, size, bit // 8 + length, crc, content[place : place + window])
        place += window
        check_record(record, head.size, gzipped=head.gzipped)
        yield Clip(youtube_id, start, end), record
    if place != len(content):
        raise ArchiveError("the index is damaged: its windows are of another size")


def _columns(rows: bytes | bytearray) -> bytes:
    """All first bytes of rows, then all second ones, and so on: it compresses better by a fifth."""
    return b"".join(rows[column :: _ROW.size] for column in range(_ROW.size))


def _rows(columns: bytes) -> bytes:
    """Undoes `_columns`."""
    count = len(columns) // _ROW.size
    rows = bytearray(len(columns))
    for column in range(_ROW.size):
        rows[column :: _ROW.size] = columns[column * count : (column + 1) * count]
    return bytes(rows)
