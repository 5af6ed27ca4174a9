"""The index of an archive: where each clip is, so precisely that it can be read alone.

To read one clip from a `.tar.gz`, a decoder must start at a deflate block before the clip, and needs those bytes of the
window, the 32 KiB of output before that block, that later data refer to. Videos hardly repeat themselves, so a clip
needs a few bytes of the window or none, and the index keeps only those. `scan` finds them.

An index can be published as a file, and a file from elsewhere is untrusted. It has one section for each archive, so
that `cat` joins the indexes of many archives. A section is one line of text::

    kinetics-fs archive index 1 {"archive": "600/val/abseiling.tar.gz", "size": 1234, "etag": "…", …}

followed by a zlib stream, of as many bytes as the line says, with the records (`_ROW`) and their windows. An index does
not say where archives are. All its values must be within bounds, and every clip that is read by it is checked against
the tar header and the checksum (see `extract`).
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
from kinetics_fs.sources.archive.tar import HEADER, MAX_CLIP_SIZE, MAX_UNUSABLE

MAX_SKIP = 4 * 1024 * 1024
"""Bytes to decompress before a clip. The usual number is 33,000, half a deflate block."""

MAX_CLIPS = 200_000
"""Clips in one archive. Real archives have up to about 1,000."""

_MAGIC = "kinetics-fs archive index 1 "
_MAX_LINE = 8192
_MAX_PACKED = 32 * 1024 * 1024
_MAX_UNPACKED = 64 * 1024 * 1024
_MAX_GROWTH = 8
"""Bytes of records and windows that each byte of a file may unpack to, beyond `_FREE_GROWTH`. Most of them hardly
compress: real indexes stay below 3."""
_FREE_GROWTH = 16 * 1024 * 1024
"""Bytes that the sections of any file may unpack to, all together."""
_MAX_ARCHIVE = 1 << 50
_ROW = struct.Struct("<11sIIQIIIII")
"""YouTube id, start, end; bit, skip, size, length of the range, crc; length of the packed window in bytes."""
_RUN = struct.Struct("<HB")
_MAX_RUN = 256
_MAX_WINDOW = WINDOW + _RUN.size * (WINDOW // _MAX_RUN)
"""Bytes of a packed window of which all 32 KiB are needed."""


class Record(NamedTuple):
    """The location of a clip in an archive."""

    bit: int
    """Offset in the archive at which to start decompressing, in bits."""
    skip: int
    """Bytes of the tar from there to the first header of the clip. Its data follow its last header."""
    size: int
    """Size of the clip in bytes."""
    end: int
    """Offset in the archive at which to stop reading, in bytes."""
    crc: int
    """CRC-32 of the clip."""
    window: bytes
    """The bytes of the window that the clip needs, in the format of `pack_window`."""

    @property
    def begin(self) -> int:
        """Offset in the archive at which to start reading, in bytes."""
        return self.bit // 8


UNUSABLE = Record(bit=0, skip=0, size=0, end=1, crc=0, window=b"")
"""Record of a clip of which an archive has only an empty file, a link or the like: the archive does not lack it."""


@dataclass(frozen=True)
class ArchiveIndex:
    """The index of one archive.

    Attributes:
        archive: name of the archive: its path below the location of all archives, as `600/val/abseiling.tar.gz`.
        size: size of the archive in bytes.
        etag: entity tag of the indexed version; None if it was read from a disk.
        gzipped: whether the archive is compressed.
        records: records of the clips, in any order.
    """

    archive: str
    size: int
    etag: str | None
    gzipped: bool
    records: Mapping[Clip, Record]


def pack_window(window: bytes, needed: Iterable[tuple[int, int]]) -> bytes:
    """Return parts of a window as runs of an offset (2 bytes), a length minus 1 (1 byte), and the bytes.

    Args:
        window: all 32 KiB of the window.
        needed: (begin, end) of the needed parts, sorted.
    """
    packed = bytearray()
    for begin, end in needed:
        for offset in range(begin, end, _MAX_RUN):
            piece = window[offset : min(end, offset + _MAX_RUN)]
            packed += _RUN.pack(offset, len(piece) - 1) + piece
    # Many short runs take more than all of the window.
    return bytes(packed) if len(packed) <= _MAX_WINDOW else pack_window(window, [(0, WINDOW)])


def unpack_window(packed: bytes) -> bytes:
    """Return the window, with zeros for the bytes that are not needed.

    Raises:
        ArchiveError: the bytes are not in the format of `pack_window`.
    """
    if len(packed) > _MAX_WINDOW:
        raise ArchiveError("the index is damaged: a window is too large")
    window = bytearray(WINDOW)
    at = 0
    while at < len(packed):
        if at + _RUN.size > len(packed):
            raise ArchiveError("the index is damaged: a window ends early")
        offset, last = _RUN.unpack_from(packed, at)
        at += _RUN.size
        piece = packed[at : at + last + 1]
        at += last + 1
        if len(piece) != last + 1 or offset + len(piece) > WINDOW:
            raise ArchiveError("the index is damaged: a run of a window is out of bounds")
        window[offset : offset + len(piece)] = piece
    return bytes(window)


def check_record(record: Record, size: int, *, gzipped: bool) -> None:
    """Check that a record is possible in an archive of `size` bytes.

    Raises:
        ArchiveError: a value is out of bounds.
    """
    if record == UNUSABLE:
        return
    limit = 2 * (record.skip + HEADER + record.size) + MAX_SKIP
    sound = (
        0 < record.size <= MAX_CLIP_SIZE
        and 0 <= record.skip <= MAX_SKIP
        and record.bit >= 0
        and record.begin < record.end <= size
        and record.end - record.begin <= limit
        and 0 <= record.crc < 1 << 32
        and (
            gzipped
            or (
                record.bit % 8 == record.skip == len(record.window) == 0
                and record.end - record.begin >= HEADER + record.size
            )
        )
    )
    if not sound:
        raise ArchiveError("the index is damaged: a record is out of bounds")
    unpack_window(record.window)


def write_index(index: ArchiveIndex, file: IO[bytes]) -> None:
    """Append an index to a file."""
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
    """Yield the indexes in a file. Each is complete, and all its values are within bounds.

    Raises:
        ArchiveError: the file is not an index, is damaged or cut short, or has values out of bounds.
    """
    budget = _FREE_GROWTH
    while line := file.readline(_MAX_LINE):
        head = _head(line)
        packed = file.read(head.bytes)
        if len(packed) != head.bytes:
            raise ArchiveError("the index is cut short")
        budget += _MAX_GROWTH * (len(line) + len(packed))
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(packed, min(_MAX_UNPACKED, budget) + 1)
        except zlib.error as error:
            raise ArchiveError(f"the index is damaged: {error}") from error
        budget -= len(content)
        if len(content) > _MAX_UNPACKED or budget < 0:
            raise ArchiveError("the index is damaged: it unpacks to far more than its size")
        if not stream.eof or stream.unused_data:
            raise ArchiveError("the index is damaged: it has another length")
        records = dict(_records(content, head))
        if len(records) != head.clips:
            raise ArchiveError("the index is damaged: it lists a clip twice")
        yield ArchiveIndex(head.archive, head.size, head.etag, head.gzipped, records)


class _Head(NamedTuple):
    archive: str
    size: int
    etag: str | None
    gzipped: bool
    clips: int
    bytes: int


def check_name(name: str) -> str:
    """Return the name of an archive if it is a plain relative path.

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
        fields = json.loads(text[len(_MAGIC) :])
        head = _Head(*(fields[name] for name in _Head._fields))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ArchiveError("the file is not an index of archives, or has another version of the format") from error
    limits = ((head.size, _MAX_ARCHIVE), (head.clips, MAX_CLIPS + MAX_UNUSABLE), (head.bytes, _MAX_PACKED))
    if not (
        isinstance(head.archive, str)
        and all(type(value) is int and 0 <= value <= limit for value, limit in limits)
        and (head.etag is None or (isinstance(head.etag, str) and re.fullmatch(r"[!-~]{1,200}", head.etag)))
        and isinstance(head.gzipped, bool)
    ):
        raise ArchiveError("the index is damaged: its first line has a value out of bounds")
    check_name(head.archive)
    return head


def _records(content: bytes, head: _Head) -> Iterator[tuple[Clip, Record]]:
    at = head.clips * _ROW.size
    if len(content) < at:
        raise ArchiveError("the index is damaged: records are missing")
    for name, start, end, bit, skip, size, length, crc, window in _ROW.iter_unpack(_rows(content[:at])):
        youtube_id = name.decode("latin-1")
        if not YOUTUBE_ID.fullmatch(youtube_id) or not start < end <= LAST_SECOND:
            raise ArchiveError("the index is damaged: it lists an impossible clip")
        record = Record(bit, skip, size, bit // 8 + length, crc, content[at : at + window])
        at += window
        check_record(record, head.size, gzipped=head.gzipped)
        yield Clip(youtube_id, start, end), record
    if at != len(content):
        raise ArchiveError("the index is damaged: its windows have another size")


def _columns(rows: bytes | bytearray) -> bytes:
    """Return all first bytes of the rows, then all second ones, and so on, which compresses better by a fifth."""
    return b"".join(rows[column :: _ROW.size] for column in range(_ROW.size))


def _rows(columns: bytes) -> bytes:
    """Undo `_columns`."""
    count = len(columns) // _ROW.size
    rows = bytearray(len(columns))
    for column in range(_ROW.size):
        rows[column :: _ROW.size] = columns[column * count : (column + 1) * count]
    return bytes(rows)
