"""Parsing of the clips in a tar that arrives in pieces, in constant memory.

A tar is untrusted: it can name any file and claim any size. The parser never uses a member's name as a path. It reads
only the last part of the name of each plain file, which must be the name of a clip, and skips and counts all other
members. Formats: POSIX.1-2001 (`pax`), and the GNU tar manual, "Basic Tar Format".

A tar is complete if it ends with its end mark, two blocks of zeros, which all programs in use write. Zeros may follow
up to the end of a record. More zeros are a part of a download that never arrived. After an end mark, another tar may
follow, as `cat` joins them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.file_names import HIDDEN, OTHER_NAME, parse_file_name
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import RECORD, IncompleteArchive, is_padding

MAX_CLIP_SIZE = 64 * 1024 * 1024
"""Largest size of a clip in bytes. The largest in the public archives has 7 MB."""

MAX_UNUSABLE = 10_000
"""Clips to remember of which there is only a refused member."""

HEADER = 512
"""Bytes of the header before a member's data. The data are padded to a multiple of this."""

_ZEROS = bytes(HEADER)
_END_MARK = 2 * HEADER
"""Bytes of the mark at the end of a tar."""

_MAX_EXTENSION = 16 * 1024
"""Bytes of an extended header that are read. Real ones have a few hundred."""

_DATALESS = frozenset(b"123456")
"""Types without data, whatever their size field states: links, devices, folders, pipes."""
_REASONS = {
    ord("1"): "hard link",
    ord("2"): "symbolic link",
    ord("3"): "device",
    ord("4"): "device",
    ord("6"): "pipe",
    ord("S"): "sparse file",
}
_FOLDERS = frozenset(b"5D")
_REGULAR = frozenset(b"0\0")


_OTHER_FORMATS = {
    b"<": "a web page or XML; download the archive itself",
    b"{": "JSON; download the archive itself",
    b"PK": "a zip archive; pack its files as a tar",
    b"BZh": "compressed by bzip2; unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it with gzip",
    b"(\xb5/\xfd": "compressed by zstd; unpack it, or compress it with gzip",
    b"7z\xbc\xaf": "a 7z archive; pack its files as a tar",
    b"Rar!": "a rar archive; pack its files as a tar",
    b"\x1f\x8b": "compressed twice; unpack it once",
    b"version https://git-lfs": "a pointer of Git LFS; download the archive itself",
}
"""How files of other formats begin, the name of each format, and a cure."""


def not_an_archive(head: bytes) -> str:
    """Return why a file is not an archive, by its first bytes."""
    for beginning, format_and_cure in _OTHER_FORMATS.items():
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(beginning):
            return f"the file is not an archive: it is {format_and_cure}"
    return "the file is not an archive: a header is missing or cut short"


class Begin(NamedTuple):
    """The start of the data of a clip."""

    clip: Clip
    size: int
    """Size of the clip in bytes."""
    position: int
    """Offset of the data in the tar."""
    header: int
    """Offset of the first of its headers: an extended one, if its name does not fit into a single header."""


class End(NamedTuple):
    """The end of the data of a clip."""

    clip: Clip


_Part = Callable[[memoryview], Iterator[Begin | memoryview | End]]

Refuse = Callable[[Clip], str | None]
"""Returns why a clip is refused, in a few words; None to accept it."""


def take_all(clip: Clip) -> str | None:
    """Refuse no clip."""
    return None


class TarParser:
    """Parses the bytes of a tar as they arrive, and yields those of its clips.

    Args:
        refuse: called for each clip before its data.
        position: offset in the tar of the first byte to feed, which must be that of a header.
    """

    def __init__(self, refuse: Refuse = take_all, position: int = 0) -> None:
        self.position = position
        self.refusals: Counter[str] = Counter()
        """Number of refused members, by reason. Folders, and the files that macOS adds (`._*`), are not counted."""
        self.unusable: set[Clip] = set()
        """Clips that a member is named after which was refused; at most `MAX_UNUSABLE`."""
        self._refuse = refuse
        self._part: _Part = self._header
        self._left = HEADER
        self._buffered = bytearray()
        self._padding = 0
        self._clip: Clip | None = None
        self._zeros = 0
        """Bytes of zeros that were read where a header is expected."""
        self._missing: str | None = None
        """Why the tar is incomplete, as far as is known before its end."""
        self._first_header = position
        # Values of extended headers for the next member
        self._extended = False
        self._path: bytes | None = None
        self._size: int | None = None
        self._fault: str | None = None

    @property
    def next_header(self) -> int | None:
        """Offset of the next header, at which another parser can start; None in the middle of a member."""
        if self._extended:
            return None
        if self._part == self._header and not self._buffered:
            return self.position
        return self.position + self._left if self._part == self._skip else None

    def feed(self, data: memoryview) -> Iterator[Begin | memoryview | End]:
        """Parse the next bytes.

        Yields:
            For each clip a `Begin`, its data in pieces, and an `End`. Each piece is valid until the next one. The
            caller must take all of them.

        Raises:
            ArchiveError: the bytes are not a tar.
        """
        at = 0
        while at < len(data):
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            self.position += len(piece)
            yield from self._part(piece)

    def finish(self) -> None:
        """Check that the tar is complete.

        Raises:
            IncompleteArchive: it is not.
        """
        if self._part != self._ended:
            rest = bytes(self._buffered)
            if self.position == len(rest) and any(rest):
                raise IncompleteArchive(not_an_archive(rest))
            if self._part != self._header or self._extended or (rest and not self._zeros):
                raise IncompleteArchive("the tar is cut short")
            if any(rest):
                self._end_with(rest)
            else:
                self._check_end(self._zeros + len(rest), self.position)
        if self._missing:
            raise IncompleteArchive(self._missing)

    # The parts of a tar. Each receives at most its remaining `_left` bytes, and selects the next part at their end.

    def _header(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        self._buffered += piece
        if self._left:
            return
        header = bytes(self._buffered)
        self._buffered.clear()
        self._left = HEADER
        if header == _ZEROS:
            self._zeros += HEADER
            return
        if not _checks(header):
            if self.position == HEADER:
                raise IncompleteArchive(not_an_archive(header))
            if not self._zeros:
                raise ArchiveError("the tar is damaged: a header is missing")
            self._end_with(header)
            self._begin(self._ended, 1 << 62)
            return
        if self._zeros:
            self._check_end(self._zeros, self.position - HEADER)
            self._zeros = 0
        if not self._extended:
            self._first_header = self.position - HEADER
        yield from self._member(header)

    def _check_end(self, zeros: int, end: int) -> None:
        """Note if a run of zeros up to the offset `end` is not the end of a tar."""
        if zeros < _END_MARK:
            self._missing = self._missing or "the tar ends without its end mark"
        elif not is_padding(zeros - _END_MARK, end):
            self._missing = self._missing or _hole(zeros)

    def _end_with(self, data: bytes) -> None:
        """Judge data after zeros: they follow the end of the tar, or the zeros are a hole."""
        following = len(data.lstrip(b"\0"))
        zeros, end = self._zeros + len(data) - following, self.position - following
        self._check_end(zeros, end)
        if _END_MARK < zeros <= _END_MARK + RECORD and end % RECORD:
            self._missing = self._missing or _hole(zeros)
        self.refusals["data after the end"] += 1

    def _member(self, header: bytes) -> Iterator[Begin | memoryview | End]:
        kind = header[156]
        size = _number(header[124:136])
        if chr(kind) in "xgLK":
            self._extended = True
            self._kind = kind
            self._padding = -size % HEADER
            self._begin(self._extension, size) if size else self._end_extension()
            return
        name = self._path if self._path is not None else _name(header)
        size = size if self._size is None else self._size
        fault = self._fault
        self._forget_extensions()
        if kind in _DATALESS:
            size = 0
        self._padding = -size % HEADER
        clip, reason = self._judge(name.decode("utf-8", "replace"), kind, size, fault)
        if reason:
            self.refusals[reason] += 1
            if clip is not None and len(self.unusable) < MAX_UNUSABLE:
                self.unusable.add(clip)
            clip = None
        if kind == ord("S") and header[482]:
            self._after_map = size
            self._begin(self._sparse_map, HEADER)
        elif clip is not None:
            self._clip = clip
            self._begin(self._data, size)
            yield Begin(clip, size, self.position, self._first_header)
        else:
            self._skip_on(size + self._padding)

    def _judge(self, name: str, kind: int, size: int, fault: str | None) -> tuple[Clip | None, str | None]:
        """Return the clip that a member is named after, and why the member is refused; neither if it is not counted."""
        parsed = parse_file_name(name)
        if kind in _FOLDERS or name.endswith("/") or parsed.fault == HIDDEN:
            return None, None
        if kind not in _REGULAR:
            return parsed.clip, _REASONS.get(kind, "not a plain file")
        if fault:
            return parsed.clip, fault
        clip = parsed.clip
        if parsed.fault or clip is None:
            return None, parsed.fault or OTHER_NAME
        if size == 0:
            return clip, "empty"
        if size > MAX_CLIP_SIZE:
            return clip, "too large"
        return clip, self._refuse(clip)

    def _data(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        yield piece
        if self._left == 0:
            clip, self._clip = self._clip, None
            assert clip is not None
            self._skip_on(self._padding)
            yield End(clip)

    def _skip(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        if self._left == 0:
            self._begin(self._header, HEADER)
        yield from ()

    def _sparse_map(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        """Skip the blocks between the header of an old GNU sparse file and its data; each states if another follows."""
        self._buffered += piece
        if self._left == 0:
            follows = self._buffered[504]
            self._buffered.clear()
            if follows:
                self._left = HEADER
            else:
                self._skip_on(self._after_map + self._padding)
        yield from ()

    def _extension(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        """Collect data for the next member: a long name, or a set of pax records."""
        self._buffered += piece[: _MAX_EXTENSION + 1 - len(self._buffered)]
        if self._left == 0:
            self._end_extension()
        yield from ()

    def _ended(self, piece: memoryview) -> Iterator[Begin | memoryview | End]:
        self._left = 1 << 62
        yield from ()

    def _end_extension(self) -> None:
        content = bytes(self._buffered)
        self._buffered.clear()
        if len(content) > _MAX_EXTENSION:
            self._fault = "extended header too large"
        elif self._kind == ord("L"):
            self._path = content.rstrip(b"\0")
        elif chr(self._kind) in "xg":
            self._read_pax(content, of_all=self._kind == ord("g"))
        if self._kind == ord("g"):
            self._extended = self._path is not None or self._size is not None or self._fault is not None
        self._skip_on(self._padding)

    def _read_pax(self, content: bytes, *, of_all: bool) -> None:
        """Parse records `LENGTH KEY=VALUE\\n`; the length is that of the whole record."""
        at = 0
        while at < len(content):
            match = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=").match(content, at)
            end = at + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(content) or content[end - 1] != ord("\n"):
                self._fault = "extended header is damaged"
                return
            key, value = match[2], content[match.end() : end - 1]
            at = end
            if key not in (b"path", b"size") and not key.startswith(b"GNU.sparse."):
                continue
            if of_all:  # no real archive gives all its members the same name or size
                self.refusals["extended header for all members"] += 1
            elif key == b"path":
                self._path = value
            elif key == b"size":
                if not re.fullmatch(rb"[0-9]{1,19}", value):
                    raise ArchiveError("the tar is damaged: a size is invalid")
                self._size = int(value)
            else:
                self._fault = "sparse file"

    def _begin(self, part: _Part, size: int) -> None:
        self._part = part
        self._left = size

    def _skip_on(self, size: int) -> None:
        if size:
            self._begin(self._skip, size)
        else:
            self._begin(self._header, HEADER)

    def _forget_extensions(self) -> None:
        self._extended = False
        self._path = self._size = self._fault = None


def _hole(zeros: int) -> str:
    return f"zeros fill {zeros:,} bytes of the tar where members should be"


def _checks(header: bytes) -> bool:
    """Return whether the checksum of a header is right.

    It is the sum of all bytes, with spaces for the checksum itself. Some programs add the bytes as signed numbers.
    """
    match = re.fullmatch(rb"[ \0]*([0-7]+)[ \0]*", header[148:156])
    if match is None:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    total = sum(rest)
    return int(match[1], 8) in (total, total - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes) -> int:
    """Parse a size: octal digits, or base 256 if the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 88)
        if field[0] & 0x40 or value >= 1 << 62:
            raise ArchiveError("the tar is damaged: a size is invalid")
        return value
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ArchiveError("the tar is damaged: a size is invalid")
    return int(digits or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
