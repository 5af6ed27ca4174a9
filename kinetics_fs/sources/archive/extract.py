"""Extraction of one clip from an archive by its index record. Python's own zlib is enough."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.index import Record, unpack_window
from kinetics_fs.sources.archive.inflate import Block, Decompressor, Gzip, Plain
from kinetics_fs.sources.archive.tar import Begin, End, TarParser


def extract(clip: Clip, record: Record, pieces: Iterable[bytes], *, gzipped: bool) -> Iterator[memoryview]:
    """Decompress a clip.

    The tar headers before the data are decompressed too, and must name the clip. An index that is wrong, by accident or
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
    tar = TarParser()
    skip, crc = record.skip, 0
    for data in pieces:
        for output in source.feed(data):
            if isinstance(output, Block):
                continue
            piece = output[skip:]
            skip -= len(output) - len(piece)
            for event in tar.feed(piece):
                if isinstance(event, Begin):
                    if event.clip != clip or event.size != record.size:
                        raise ArchiveError(
                            "the archive has something else at the offset that the index gives for the clip"
                        )
                elif isinstance(event, End):
                    if crc != record.crc:
                        raise ArchiveError("the clip's checksum is wrong")
                    return
                else:
                    crc = zlib.crc32(event, crc)
                    yield event
    raise ArchiveError("the archive ends within the clip")
