"""One pass over an archive: its bytes in, its clips out, with an index as a by-product and checkpoints on the way.

The index keeps only those bytes of a window that a clip depends on. To find them, the data from the start of the block
to the first 32 KiB of the clip are decompressed twice more, with two artificial windows that differ in every byte.
Where the outputs differ, a byte was copied from the window, and the two values give its offset there. Later bytes of
the clip can only refer to the clip itself.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import IncompleteArchive, Version
from kinetics_fs.sources.archive.index import (
    MAX_CLIPS,
    MAX_SKIP,
    UNUSABLE,
    ArchiveIndex,
    Record,
    check_record,
    pack_window,
)
from kinetics_fs.sources.archive.inflate import Block, Decompressor, Gzip, Plain, is_gzip
from kinetics_fs.sources.archive.libz import WINDOW, lead_in
from kinetics_fs.sources.archive.tar import HEADER, Begin, End, TarParser

_MAX_KEPT = 16 * 1024 * 1024
"""Bytes of the archive to keep for the search of a window. The usual number is less than one fed piece."""

_INDEX_SPACING = 8 * 1024
"""Minimum bytes of output between two blocks when an index is built."""
_CHECKPOINT_SPACING = 1024 * 1024
"""Minimum bytes of output between two blocks when only checkpoints are made."""

_HOLE = bytes(1024)
"""More zeros than compressed videos have in a row."""

_CHECKPOINT = struct.Struct("<4sB3xQQQQII")
_CHECKPOINT_MAGIC = b"kfc1"


class Checkpoint(NamedTuple):
    """A state of a pass from which another process can resume it."""

    block: Block
    """Where to start decompressing."""
    header: int
    """Offset in the tar of the next member, which is not before the block."""
    gzipped: bool
    """Whether the archive is compressed."""

    def pack(self) -> bytes:
        """Return the checkpoint as about 33,000 bytes."""
        block = self.block
        head = _CHECKPOINT.pack(
            _CHECKPOINT_MAGIC,
            self.gzipped,
            *(block.bit, block.position, self.header, block.length, block.crc or 0, len(block.window)),
        )
        return head + block.window + zlib.crc32(head + block.window).to_bytes(4, "little")

    @classmethod
    def unpack(cls, packed: bytes) -> Checkpoint:
        """Parse a packed checkpoint.

        Raises:
            ArchiveError: the bytes are not in the format of `pack`.
        """
        content, crc = packed[:-4], int.from_bytes(packed[-4:], "little")
        if len(content) < _CHECKPOINT.size or zlib.crc32(content) != crc or content[:4] != _CHECKPOINT_MAGIC:
            raise ArchiveError("the checkpoint is damaged")
        _, gzipped, bit, position, header, length, member_crc, size = _CHECKPOINT.unpack_from(content)
        window = content[_CHECKPOINT.size :]
        if len(window) != size or size > WINDOW or header < position:
            raise ArchiveError("the checkpoint is damaged")
        return cls(Block(bit, position, window, member_crc, length), header, bool(gzipped))


class _CurrentClip:
    """The clip whose data are passing."""

    def __init__(self, begin: Begin, block: Block | None) -> None:
        self.begin = begin
        self.header = begin.header
        self.block = block
        """Block at which to start; None if the clip cannot be read alone."""
        self.seen = 0
        self.crc = 0
        self.window: bytes | None = b"" if block is not None and not block.window else None
        """Needed bytes of the window, packed; None until they are known."""


class Scan:
    """One pass over an archive.

    Args:
        at: checkpoint from which to resume. The first byte to feed is then the one at offset `at.block.bit // 8`.
        records: records that an earlier part of the pass has built.
        not_indexed: number of clips for which it could not build one.
        index: build index records, which takes half as much time again as decompression alone.
    """

    def __init__(
        self,
        *,
        at: Checkpoint | None = None,
        records: Mapping[Clip, Record] | None = None,
        not_indexed: int = 0,
        index: bool = True,
    ) -> None:
        self.records = {clip: record for clip, record in (records or {}).items() if record != UNUSABLE}
        """Records of the clips that have passed and can be read alone."""
        self.not_indexed = not_indexed
        """Number of clips that have passed and cannot be read alone."""
        self.is_repeated = False
        """Whether the clip that is passing, or has just passed, has passed before."""
        self._other: tuple[Clip, Record] | None = None
        """Record of the last repeated clip, if it differs from the one in `records`."""
        self._index = index
        self._has_clips = at is not None  # checkpoints are made after clips
        self._seen = set(self.records)
        self._tar = TarParser(self._refuse, at.header if at else 0)
        self._tar.unusable |= (records or {}).keys() - self.records.keys()
        self._drop = at.header - at.block.position if at else 0
        self._source: Decompressor | None = None
        if at is not None:
            self._source = self._gzip(at.block) if at.gzipped else Plain(at.block)
        self._blocks: list[Block] = []
        """The last block that starts before the next header, and all later ones."""
        self._open: _CurrentClip | None = None
        self._first = b""
        self._kept = bytearray()
        self._kept_from = at.block.bit // 8 if at else 0

    @property
    def gzipped(self) -> bool:
        """Whether the archive is compressed, which the first two bytes show."""
        return self._source is not None and self._source.gzipped

    @property
    def taken(self) -> int:
        """Number of bytes of the archive that have been processed."""
        return self._source.taken if self._source else 0

    @property
    def unusable(self) -> set[Clip]:
        """Clips of which only refused members have passed, such as empty files."""
        return self._tar.unusable - self._seen

    def index(self, archive: str, version: Version) -> ArchiveIndex:
        """Return the index of the clips that have passed.

        Args:
            archive: name of the archive.
            version: its version.
        """
        records = self.records | dict.fromkeys(self.unusable, UNUSABLE)
        return ArchiveIndex(archive, version.size, version.etag, self.gzipped, records)

    @property
    def refusals(self) -> Counter[str]:
        """Number of refused members, by reason."""
        return self._tar.refusals

    def feed(self, data: bytes) -> Iterator[Begin | memoryview | End]:
        """Process the next bytes of the archive.

        Yields:
            The events of `TarParser.feed`. After an `End` the clip's record is in `records`, and `checkpoint` may
            return one.

        Raises:
            IncompleteArchive: the file is not an archive, or zeros are in place of a part of it.
            ArchiveError: the archive is damaged.
        """
        try:
            yield from self._feed(data)
        except IncompleteArchive:
            raise
        except ArchiveError as error:
            if self.gzipped and _HOLE in data:
                raise IncompleteArchive(f"zeros are in place of compressed data ({error})") from error
            raise

    def _feed(self, data: bytes) -> Iterator[Begin | memoryview | End]:
        if self._source is None:
            data = self._first + data
            if len(data) < 2:
                self._first = data
                return
            self._source = self._gzip() if is_gzip(data) else Plain()
        self._keep(data)
        for output in self._source.feed(data):
            if isinstance(output, Block):
                self._note_block(output)
                continue
            piece = output[self._drop :]
            self._drop -= len(output) - len(piece)
            for event in self._tar.feed(piece):
                self._note(event)
                yield event

    def finish(self) -> None:
        """Check that the archive is complete: it has its end mark, all checksums, and at least one clip.

        Raises:
            IncompleteArchive: it is not.
        """
        if self._source is None:
            raise IncompleteArchive("the file is cut short" if self._first else "the file is empty")
        self._source.finish()
        self._tar.finish()
        if not self._has_clips:
            raise IncompleteArchive("the archive has no clips")

    @property
    def has_two_records(self) -> bool:
        """Whether the clip that has just passed has an earlier record with other content."""
        return self._other is not None

    def replace_record(self) -> None:
        """Replace the earlier record of the clip that has just passed by that of its last copy."""
        assert self._other is not None
        clip, record = self._other
        self.records[clip] = record

    def checkpoint(self) -> Checkpoint | None:
        """Return a checkpoint; None if none is possible at this moment. After an `End` it usually is."""
        header = self._tar.next_header
        if header is None or not self._blocks or self._drop:
            return None
        return Checkpoint(self._blocks[-1], header, self.gzipped)

    def _refuse(self, clip: Clip) -> str | None:
        return "too many clips" if len(self._seen) >= MAX_CLIPS and clip not in self._seen else None

    def _gzip(self, at: Block | None = None) -> Gzip:
        return Gzip(at, _INDEX_SPACING if self._index else _CHECKPOINT_SPACING)

    # The index

    def _note_block(self, block: Block) -> None:
        blocks = self._blocks
        if blocks and blocks[-1].position == block.position:
            blocks.pop()
        blocks.append(block)
        while len(blocks) > 1 and blocks[1].position <= self._tar.position - HEADER:
            del blocks[0]

    def _note(self, event: Begin | memoryview | End) -> None:
        if isinstance(event, Begin):
            self._has_clips = True
            self._other = None
            self.is_repeated = event.clip in self._seen
            if self.is_repeated:
                self.refusals["in the archive twice"] += 1
            self._seen.add(event.clip)
            self._open = _CurrentClip(event, self._entry(event)) if self._index else None
        elif self._open is None:
            return
        elif isinstance(event, End):
            self._learn_window(self._open)
            self._record(self._open)
            self._open = None
        else:
            self._open.crc = zlib.crc32(event, self._open.crc)
            self._open.seen += len(event)
            if self._open.seen >= WINDOW:
                self._learn_window(self._open)

    def _entry(self, begin: Begin) -> Block | None:
        """Return the block at which to start for a clip; None if the clip cannot be read alone."""
        header = begin.header
        if not self.gzipped:
            return Block(8 * header, header)
        near = [block for block in self._blocks if header - MAX_SKIP <= block.position <= header]
        return near[-1] if near else None

    def _learn_window(self, clip: _CurrentClip) -> None:
        if clip.block is None or clip.window is not None:
            return
        begin = clip.block.bit // 8 - self._kept_from
        if begin < 0:
            clip.block = None  # the blocks are so far apart that the data are no longer kept
            return
        compressed = bytes(memoryview(self._kept)[begin : self.taken - self._kept_from])
        clip.window = _needed_window(compressed, clip.block, clip.header - clip.block.position)

    def _record(self, clip: _CurrentClip) -> None:
        begin, block = clip.begin, clip.block
        if block is not None and clip.window is not None:
            end = self.taken if self.gzipped else begin.position + begin.size
            record = Record(block.bit, clip.header - block.position, begin.size, end, clip.crc, clip.window)
            try:
                check_record(record, end, gzipped=self.gzipped)
            except ArchiveError:
                pass  # the compressed data are larger than a reader accepts
            else:
                earlier = self.records.setdefault(begin.clip, record)
                if (earlier.size, earlier.crc) != (record.size, record.crc):
                    self._other = begin.clip, record
                return
        if not self.is_repeated:
            self.not_indexed += 1

    def _keep(self, data: bytes) -> None:
        """Keep the compressed data from the last block on."""
        if not self._index or not self.gzipped:
            return
        needed = self._blocks[:1]
        if self._open and self._open.block and self._open.window is None:
            needed = [self._open.block]
        begin = needed[0].bit // 8 if needed else self.taken
        if len(self._kept) > _MAX_KEPT:
            begin = self._kept_from + len(self._kept)
        if begin > self._kept_from:
            del self._kept[: begin - self._kept_from]
            self._kept_from = begin
        self._kept += data


_CYCLE = bytes(range(256))
_LOW = _CYCLE * (WINDOW // 256)
_OTHER = b"".join((2 * _CYCLE)[page + 1 :][:256] for page in range(WINDOW // 256))
"""A window that differs from `_LOW` at every offset, by 1 more than the high byte of the offset."""


def _needed_window(compressed: bytes, block: Block, skip: int) -> bytes:
    """Return, packed, the bytes of a block's window that the 32 KiB from `skip` bytes after the block depend on."""
    low, other = (_inflate_over(window, compressed, block.bit % 8, skip + WINDOW)[skip:] for window in (_LOW, _OTHER))
    if low == other:
        return b""
    length = len(low)
    differing = int.from_bytes(low, "big") ^ int.from_bytes(other, "big")
    offsets: set[int] = set()
    for run in re.finditer(rb"[^\0]+", differing.to_bytes(length, "big")):
        for at in range(*run.span()):
            offsets.add(low[at] | (other[at] - low[at] - 1 & 0xFF) << 8)
    runs: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], offset + 1)
        else:
            runs.append((offset, offset + 1))
    return pack_window(block.window.rjust(WINDOW, b"\0"), runs)


def _inflate_over(window: bytes, compressed: bytes, bits: int, limit: int) -> bytes:
    stream = zlib.decompressobj(-15, zdict=window)
    if bits:
        stream.decompress(lead_in(bits, compressed[0]), 1)
        compressed = compressed[1:]
    return stream.decompress(compressed, limit)
