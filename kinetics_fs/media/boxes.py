"""The structure of mp4 files, as far as it can be read without a library that parses media."""

from __future__ import annotations

FIRST_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"pnot",
    b"uuid",
    b"styp",
    b"moof",
    b"sidx",
    b"junk",
}
"""Types of the box with which an mp4 or QuickTime file begins (ISO/IEC 14496-12; QuickTime File Format)."""

_MAX_BOXES = 10_000
"""Boxes that are looked at: a clip in fragments has a few for each second."""


def is_mp4(body: bytes) -> bool:
    """Return whether the content of a file has the structure of an mp4 file with media: an index, and data.

    ISO/IEC 14496-12, 4.2: each box begins with its length, 32 bits, and its type. A length of 1 means that a length of
    64 bits follows, and 0 that the box reaches to the end of the file. Other bytes may follow, as in clips of archives.
    """
    at, found = 0, set[bytes]()
    for _ in range(_MAX_BOXES):
        length, kind = int.from_bytes(body[at : at + 4], "big"), body[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(body[at + 8 : at + 16], "big")
        length = length or len(body) - at
        if len(kind) < 4 or length < 8 or at + length > len(body) or (at == 0 and kind not in FIRST_BOXES):
            break
        found.add(kind)
        at += length
    return b"moov" in found and bool(found & {b"mdat", b"moof"})
