"""Extraction of one clip from an archive by its index record. Python's own zlib is enough."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.index import Record, unpack_window
from kinetics_fs.sources.archive.inflate import Block, Decompressor, Gzip, Plain
from kinetics_fs.sources.archive.tar import HEADER, clip_of_header


def extract(clip: Clip, record: Record, pieces: Iterable[bytes], *, gzipped: bool) -> Iterator[memoryview]:
    """Decompress a clip.

    The tar header before the data is decompressed too, and must name the clip. An index that is wrong, by accident or
    on purpose, therefore cannot pass off one clip as another.

    Args:
        clip: the expected clip.
        record: its index record.
        pieces: bytes of the archive from `record.begin` up to `record.end`.
        gzipped: whether the archive is compressed.

    Yields:
        The bytes of the clip; each piece is valid until the next one. They are complete only if no error follows.

    Raises:
        ArchiveError: the bytes are not those of the clip.
    """
    at = Block(record.bit, record.begin, unpack_window(record.window))
    source: Decompressor = Gzip(at) if gzipped else Plain(at)
    skip, left, crc = record.skip, record.size, 0
    header = b""
    for data in pieces:
        for output in source.feed(data):
            if isinstance(output, Block):
                continue
            piece = output[skip:]
            skip -= len(output) - len(piece)
            if piece and len(header) < HEADER:
                wanted = HEADER - len(header)
                header += piece[:wanted]
                piece = piece[wanted:]
                if len(header) == HEADER and clip_of_header(header) != (clip, record.size):
                    raise ArchiveError("the archive has something else at the offset that the index gives for the clip")
            piece = piece[:left]
            if piece:
                left -= len(piece)
                crc = zlib.crc32(piece, crc)
                yield piece
            if left == 0:
                if crc != record.crc:
                    raise ArchiveError("the clip's checksum is wrong")
                return
    raise ArchiveError("the archive ends within the clip")
