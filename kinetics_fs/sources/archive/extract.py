"""One clip out of an archive, by its record in an index. Needs nothing but Python's own zlib."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.index import Record, unpack_window
from kinetics_fs.sources.archive.inflate import Block, Decompressor, Gzip, Plain
from kinetics_fs.sources.archive.tar import HEADER, clip_of_header


def extract(clip: Clip, record: Record, pieces: Iterable[bytes], *, gzipped: bool) -> Iterator[memoryview]:
    """Unpacks a clip.

    The archive itself must say that this is the clip: the header before its data is unpacked, too. So an index that is
    wrong, by accident or on purpose, cannot pass off one clip as another.

    Args:
        clip: which it is.
        record: where it is.
        pieces: the archive's bytes from `record.begin` to `record.end`.
        gzipped: whether the archive is.

    Yields:
        Its bytes, each piece good until the next. They are the clip only if no error follows.

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
                    raise ArchiveError("the archive has something else where the index says the clip to be")
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
