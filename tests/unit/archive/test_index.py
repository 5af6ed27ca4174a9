"""The index as a file: it comes back as it was, and nothing else gets in."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.index import (
    ArchiveIndex,
    Record,
    pack_window,
    read_indexes,
    unpack_window,
    write_index,
)
from kinetics_fs.sources.archive.scan import Scan
from tests.support.tarballs import by_zlib, make_clips, make_tar

ARCHIVE = by_zlib(make_tar(make_clips(40)))


@pytest.fixture(scope="module")
def index() -> ArchiveIndex:
    scan = Scan()
    list(scan.feed(ARCHIVE))
    return ArchiveIndex("600/val/pull ups.tar.gz", len(ARCHIVE), '"abc-8"', True, scan.records)


def written(*indexes: ArchiveIndex) -> bytes:
    file = io.BytesIO()
    for index in indexes:
        write_index(index, file)
    return file.getvalue()


def parse(data: bytes) -> list[ArchiveIndex]:
    return list(read_indexes(io.BytesIO(data)))


def test_comes_back_as_it_was(index: ArchiveIndex) -> None:
    assert parse(written(index)) == [index]


def test_many_are_joined_by_putting_one_after_the_other(index: ArchiveIndex) -> None:
    other = ArchiveIndex("400/train/part_0.tar.gz", 10**9, None, False, {})

    assert parse(written(index) + written(other)) == [index, other]
    assert parse(b"") == []


def test_is_small(index: ArchiveIndex) -> None:
    """Although these clips refer back over their own start far more than real ones do."""
    assert len(written(index)) < 120 * len(index.records)


def test_windows() -> None:
    window = bytes(range(256)) * 128
    for needed in ([], [(0, 1)], [(5, 6), (8, 9)], [(0, 32768)], [(32767, 32768)], [(100, 356), (400, 657)]):
        kept = bytearray(32768)
        for begin, end in needed:
            kept[begin:end] = window[begin:end]
        assert unpack_window(pack_window(window, needed)) == kept


SOUND = Record(bit=800, skip=10, size=1_000, end=1_200, crc=1, window=b"")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 1 << 31},
        {"skip": 1 << 31},
        {"bit": 80_000, "end": 10_100},
        {"end": 50_000},
        {"end": 100},
        {"window": b"\0"},
        {"window": b"\xff\x7f\x01ab"},
        {"window": b"\0\0\xffshort"},
        {"size": 10, "end": 8_000_000},
    ],
)
def test_records_that_make_no_sense(wrong: dict[str, int]) -> None:
    size = 10_000_000 if "size" in wrong else 10_000
    index = ArchiveIndex("a.tar.gz", size, None, True, {Clip("x" * 11, 0, 10): SOUND._replace(**wrong)})  # type: ignore[arg-type]

    assert parse(written(ArchiveIndex("a.tar.gz", size, None, True, {Clip("x" * 11, 0, 10): SOUND})))
    with pytest.raises(ArchiveError):
        parse(written(index))


def section(head: dict[str, object], content: bytes = b"") -> bytes:
    packed = zlib.compress(content)
    whole = {"archive": "a.tar.gz", "size": 10, "etag": None, "gzipped": True, "clips": 0, "bytes": len(packed), **head}
    return b"kinetics-fs archive index 1 " + json.dumps(whole).encode() + b"\n" + packed


@pytest.mark.parametrize(
    "head",
    [
        *(
            {"archive": name}
            for name in ("", "/etc/passwd", "../a", "a/../b", "a//b", "a\nb", "a\0b", "a/.", "x" * 2000, 5)
        ),
        *({"size": size} for size in (-1, 1 << 60, "5", 1.5, None, True)),
        *({"etag": etag} for etag in ("", "a b", "a\r\nX: y", "x" * 300, 5)),
        *({"gzipped": value} for value in (None, 1, "yes")),
        *({"clips": value} for value in (-1, 1, 10**9)),
        *({"bytes": value} for value in (-1, 0, 1, 10**12)),
    ],
)
def test_first_lines_that_make_no_sense(head: dict[str, object]) -> None:
    assert parse(section({}))
    with pytest.raises(ArchiveError):
        parse(section(head))


def test_other_files(index: ArchiveIndex) -> None:
    good = written(index)
    for bad in (
        b"\n",
        b"<html>",
        good.replace(b"index 1", b"index 2"),
        good[:-1],
        good[:-1] + b"x",
        good + b"x",
        b"x" * 100_000,
        section({"clips": 1}, bytes(100)),
        section({}, b"more"),
        b"kinetics-fs archive index 1 " + b"[" * 5_000 + b"\n",
        b"kinetics-fs archive index 1 []\n",
        b"kinetics-fs archive index 1 {}\n",
    ):
        with pytest.raises(ArchiveError):
            parse(bad)


def test_bombs() -> None:
    window = pack_window(bytes(32768), [(0, 32768)])
    records = {Clip(f"{clip:011}", 0, 10): SOUND._replace(window=window) for clip in range(300)}
    ten_megabytes = written(ArchiveIndex("a.tar.gz", 10_000, None, True, records))
    assert parse(ten_megabytes)
    for bomb in (section({}, bytes(70_000_000)), 2 * ten_megabytes):
        with pytest.raises(ArchiveError, match="far more than its size"):
            parse(bomb)


def test_a_window_has_at_most_32_kib() -> None:
    window = bytes(range(256)) * 128
    every_other = [(offset, offset + 1) for offset in range(0, 32768, 2)]
    packed = pack_window(window, every_other)
    assert unpack_window(packed) == window, "all of it is smaller than so many runs"
    with pytest.raises(ArchiveError, match="too large"):
        unpack_window(packed + b"\0\0\0x")


def test_one_clip_twice() -> None:
    row = struct.pack("<11sIIQIIIII", b"x" * 11, 0, 10, 800, 10, 1_000, 1_100, 1, 0)
    columns = b"".join(bytes([byte]) * 2 for byte in row)
    with pytest.raises(ArchiveError, match="twice"):
        parse(section({"size": 10_000, "clips": 2}, columns))


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_change_is_noticed_or_harmless(index: ArchiveIndex, data: st.DataObject) -> None:
    good = bytearray(written(index))
    for offset, byte in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=3)):
        good[offset] = byte
    try:
        found = parse(bytes(good))
    except ArchiveError:
        return
    assert [one.records for one in found] == [index.records]


@given(st.binary(max_size=3_000), st.integers(0, 30))
@settings(deadline=None, max_examples=50)
def test_any_content_is_noticed_or_bounded(content: bytes, clips: int) -> None:
    try:
        found = parse(section({"clips": clips, "size": 1 << 40}, content))
    except ArchiveError:
        return
    for record in found[0].records.values():
        assert 0 <= record.begin < record.end <= 1 << 40
        assert record.end - record.begin < 1 << 29
