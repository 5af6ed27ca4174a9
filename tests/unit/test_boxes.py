"""The structure of mp4 files."""

from __future__ import annotations

import pytest

from kinetics_fs.media.boxes import is_mp4


def box(kind: bytes, content: bytes = b"", *, large: bool = False) -> bytes:
    if large:
        return b"\0\0\0\1" + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (8 + len(content)).to_bytes(4, "big") + kind + content


FTYP, MOOV, MDAT = box(b"ftyp", b"isom"), box(b"moov", b"index"), box(b"mdat", b"media")


@pytest.mark.parametrize(
    "body",
    [
        FTYP + MOOV + MDAT,
        FTYP + MDAT + MOOV,
        MDAT + MOOV,  # QuickTime of cameras
        FTYP + MOOV + box(b"moof") + MDAT,
        FTYP + MOOV + box(b"mdat", b"media", large=True),
        FTYP + MOOV + b"\0\0\0\0mdatmedia to the end",
        FTYP + MOOV + MDAT + b"noise of another program",
        FTYP + MOOV + MDAT + b"\0" * 100,
    ],
)
def test_mp4_files_are_accepted(body: bytes) -> None:
    assert is_mp4(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 100_000,
        b"<html><body>moov mdat</body></html>",
        b"\x1aE\xdf\xa3" + b"matroska" * 100,
        FTYP,
        FTYP + MOOV,
        FTYP + MDAT,
        box(b"text", MOOV + MDAT),
        b"\x89PNG\r\n\x1a\n" + FTYP + MOOV + MDAT,
        FTYP + MOOV + MDAT[:-1],
        FTYP + b"\0\0\0\1moov" + (2**63).to_bytes(8, "big") + MDAT,
        FTYP + b"\0\0\0\4moov" + MDAT,
        box(b"free") * 1_000_000,
    ],
)
def test_other_files_are_not(body: bytes) -> None:
    assert not is_mp4(body)
