"""Members of all kinds, most of them hostile: clips come out, nothing else does, and it is counted why."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import IncompleteArchive
from kinetics_fs.sources.archive.tar import Begin, End, TarParser
from tests.support.tarballs import LAYOUTS, make_clips, make_tar

CLIP = Clip("-a_Video-01", 7, 17)
LAST = Clip("lastLASTlas", 0, 10)
GOOD = b"these are the bytes of the last clip" * 40


def parse(data: bytes, parser: TarParser | None = None, step: int = 1 << 20) -> tuple[dict[Clip, bytes], Counter[str]]:
    parser = parser or TarParser()
    clips: dict[Clip, bytes] = {}
    for offset in range(0, len(data), step):
        for event in parser.feed(memoryview(data)[offset : offset + step]):
            if isinstance(event, Begin):
                clip, size, content = event.clip, event.size, bytearray()
            elif isinstance(event, End):
                assert event.clip == clip
                assert len(content) == size
                clips[clip] = bytes(content)
            else:
                content += event
    parser.finish()
    return clips, parser.refusals


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"x" * 600, **rest: object) -> bytes:
    """Return a member by itself, as tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for key, value in rest.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(records: dict[str, str], kind: bytes = b"x") -> bytes:
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + 2))
        length += len(str(length)) - len(str(len(rest) + 2))
        lines += str(length).encode() + rest
    return member("PaxHeaders/x", kind, lines)


def header(**fields: bytes) -> bytes:
    """Return a header for `CLIP` with these fields, and a valid checksum."""
    bounds = {"name": (0, 100), "size": (124, 12), "type": (156, 1), "magic": (257, 8), "extended": (482, 1)}
    block = bytearray(member(CLIP.name)[:512])
    for field, value in fields.items():
        begin, width = bounds[field]
        block[begin : begin + width] = value.ljust(width, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = member(LAST.name, content=GOOD) + bytes(1024)
"""The clip after every hostile member, which must be found nevertheless."""

NAME = CLIP.name
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "symbolic link": (member(NAME, tarfile.SYMTYPE, b"", linkname="/etc/passwd"), "symbolic link"),
    "hard link": (member(NAME, tarfile.LNKTYPE, b"", linkname="/etc/passwd"), "hard link"),
    "link that claims data": (header(type=b"2", size=b"00000001000"), "symbolic link"),
    "device": (member(NAME, tarfile.CHRTYPE, b""), "device"),
    "pipe": (member(NAME, tarfile.FIFOTYPE, b""), "pipe"),
    "folder named as a clip": (member(NAME, tarfile.DIRTYPE, b""), None),
    "contiguous": (member(NAME, tarfile.CONTTYPE), "not a plain file"),
    "unknown type": (header(type=b"Q", size=b"1130") + padded(b"x" * 600), "not a plain file"),
    "newline": (member(NAME.replace("V", "\n")), "not the name of a clip"),
    "newline at the end": (member(NAME + "\n"), "not the name of a clip"),
    "other file": (member("readme.md"), "not the name of a clip"),
    "other digits": (member(NAME.replace("7", "٧")), "not the name of a clip"),
    "ends before it starts": (member("-a_Video-01_000017_000007.mp4"), "not the name of a clip"),
    "AppleDouble": (member("class/._" + NAME), None),
    "empty": (member(NAME, content=b""), "empty"),
    "long name of a clip, with more behind a zero": (member("a" * 120 + "/\0" + NAME), "not the name of a clip"),
    "pax that names something else": (pax({"path": "evil.sh"}) + member(NAME), "not the name of a clip"),
    "sparse by pax 0.0": (pax({"GNU.sparse.size": "99"}) + member(NAME), "sparse file"),
    "sparse by pax 1.0": (pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}) + member(NAME), "sparse file"),
    "sparse by GNU": (header(type=b"S", size=b"1130") + padded(b"x" * 600), "sparse file"),
    "sparse by GNU, with more of its map": (
        header(type=b"S", size=b"1130", extended=b"\1")
        + b"\0" * 504
        + b"\1"
        + bytes(7)
        + bytes(512)
        + padded(b"x" * 600),
        "sparse file",
    ),
    "pax for all": (pax({"path": NAME, "size": "9"}, b"g") + member("other.txt"), "extended header for all members"),
    "huge pax": (member("x", b"x", b"9" * 100_000) + member(NAME), "extended header too large"),
    "huge long name": (member("x", b"L", b"a/" * 100_000 + NAME.encode()) + member(NAME), "extended header too large"),
    "broken pax": (member("x", b"x", b"12 path") + member(NAME), "extended header is damaged"),
    "pax with a length that lies": (member("x", b"x", b"999 path=x\n") + member(NAME), "extended header is damaged"),
    "pax of length nought": (member("x", b"x", b"0 path=x\n") + member(NAME), "extended header is damaged"),
    "pax without end": (pax({"path": "x"}) * 300 + member(NAME), "not the name of a clip"),
    "volume label": (header(type=b"V", size=b"0"), "not a plain file"),
}


PATHS = {
    "absolute": member("/data/k/" + NAME),
    "upwards": member("a/../../../" + NAME),
    "only upwards": member("../" + NAME),
    "here": member("././" + NAME),
    "backslashes": member("C:\\data\\..\\" + NAME),
    "in no encoding": header(name=b"\xff\xe9/" + NAME.encode()) + padded(b"x" * 600),
    "times without zeros": member("k/-a_Video-01_7_17.mp4"),
    "upwards by pax": pax({"path": "../" + NAME}) + member("other"),
    "long by pax": pax({"path": "a/" * 200 + NAME}) + member("a/" * 50),
    "long by GNU": member("a/" * 200 + NAME),
    "long and not in ASCII": pax({"path": "é/" * 200 + NAME}) + member("e" * 100),
}
"""Members that are clips by the last part of their names."""


@pytest.mark.parametrize("step", [1 << 20, 100])
@pytest.mark.parametrize("case", PATHS)
def test_only_the_last_part_of_a_name_counts(case: str, step: int) -> None:
    assert parse(PATHS[case] + END, step=step) == ({CLIP: b"x" * 600, LAST: GOOD}, {})


@pytest.mark.parametrize("step", [1 << 20, 100])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members(case: str, step: int) -> None:
    data, reason = HOSTILE[case]

    clips, refusals = parse(data + END, step=step)

    assert clips == {LAST: GOOD}
    assert (reason in refusals) if reason else not refusals


@pytest.mark.parametrize(
    "size",
    [b"99999999999", b"77777777777", b"\x80" + bytes(3) + b"\x10" + bytes(7), b"10000000000"],
)
def test_giant_members_take_no_space(size: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"cut short|a size is invalid"):
        parse(header(size=size) + bytes(100_000))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"0", b"Q"])
def test_large_members_of_any_kind_take_no_space(kind: bytes) -> None:
    parser = TarParser()
    piece = bytes(1_000_000)
    tracemalloc.start()
    list(parser.feed(memoryview(header(type=kind, size=b"77777777777"))))
    for _ in range(20):
        list(parser.feed(memoryview(piece)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80\xff" + b"\xff" * 10, b"-1", b"12x", b"1 1"])
def test_sizes_that_are_none(size: bytes) -> None:
    with pytest.raises(ArchiveError, match="size"):
        parse(header(size=size) + END)


def test_size_by_pax_is_heeded() -> None:
    clips, _ = parse(pax({"size": "1000"}) + header(size=b"0") + padded(b"y" * 1000) + END)

    assert clips == {CLIP: b"y" * 1000, LAST: GOOD}


@pytest.mark.parametrize("size", ["-1", "1e9", "9" * 30, ""])
def test_size_by_pax_that_is_none(size: str) -> None:
    with pytest.raises(ArchiveError, match="size"):
        parse(pax({"size": size}) + member(CLIP.name) + END)


def test_clips_that_are_not_wanted() -> None:
    parser = TarParser(lambda clip: "not in the annotations" if clip == CLIP else None)

    clips, refusals = parse(member(CLIP.name) * 2 + END, parser)

    assert clips == {LAST: GOOD}
    assert refusals == {"not in the annotations": 2}


def test_damaged_header() -> None:
    broken = bytearray(member(CLIP.name))
    broken[3] ^= 1
    with pytest.raises(ArchiveError, match="a header is missing"):
        parse(bytes(broken) + END)


def test_signed_checksum() -> None:
    """As some old tars have it: it differs where a name is not ASCII."""
    block = bytearray(header(name="é/".encode() + CLIP.name.encode()))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 512)
    assert CLIP in parse(bytes(block) + padded(b"x" * 600) + END)[0]


@pytest.mark.parametrize("zeros", [0, 512, 1_000])
def test_a_tar_without_its_end_mark_is_incomplete(zeros: int) -> None:
    with pytest.raises(IncompleteArchive, match="ends without its end mark"):
        parse(END[:-1024] + bytes(zeros))


@pytest.mark.parametrize("step", [1 << 20, 100])
@pytest.mark.parametrize("zeros", [1_024, 1_100, 1_536, 10_240, 11_264])
def test_zeros_may_follow_the_end_mark_up_to_a_record(zeros: int, step: int) -> None:
    assert parse(END[:-1024] + bytes(zeros), step=step) == ({LAST: GOOD}, {})


def test_a_larger_record_is_one_of_a_power_of_two() -> None:
    members = END[:-1024]
    size = 256 * 1024
    assert parse(members + bytes(size - len(members)))[0] == {LAST: GOOD}
    for other in (size - 512, size + 10_240, 4 * 1024 * 1024):
        with pytest.raises(IncompleteArchive, match=f"zeros fill {other - len(members):,} bytes"):
            parse(members + bytes(other - len(members)))


@pytest.mark.parametrize("step", [1 << 20, 100])
@pytest.mark.parametrize("size", [5_000, 9_000, 30_000, 700_001])
def test_a_hole_is_no_end(size: int, step: int) -> None:
    """As a download in several parts leaves it: zeros, then the middle of a clip."""
    with pytest.raises(IncompleteArchive, match=r"zeros fill [0-9,]+ bytes"):
        parse(END[:-1024] + bytes(size) + b"the middle of a clip" * 100, step=step)


def test_data_after_the_end_of_a_tar_are_ignored() -> None:
    whole = END + bytes(10_240 - len(END))
    for rest in (b"<html>", b"<html>" * 300):
        assert parse(whole + rest) == ({LAST: GOOD}, {"data after the end": 1})


def test_tars_may_be_concatenated() -> None:
    first = member(CLIP.name) + bytes(1024)
    for zeros in (0, 512, 8_192):
        assert parse(first + bytes(zeros) + END)[0] == {CLIP: b"x" * 600, LAST: GOOD}
    with pytest.raises(IncompleteArchive, match="ends without its end mark"):
        parse(first[:-512] + END)


@pytest.mark.parametrize("end", [1, 511, 513, 1_000, 2_047])
def test_cut_short(end: int) -> None:
    with pytest.raises(ArchiveError, match="cut short"):
        parse(END[:end])


def test_next_header_is_where_another_parser_can_begin() -> None:
    clips = make_clips(4, size=(100, 3_000))
    data = make_tar(clips)
    parser, offsets = TarParser(), []
    for event in parser.feed(memoryview(data)):
        if isinstance(event, End):
            assert parser.next_header is not None
            offsets.append(parser.next_header)
        elif not isinstance(event, Begin):
            assert parser.next_header is None
    for done, offset in enumerate(offsets, 1):
        assert parse(data[offset:], TarParser(position=offset))[0] == dict(list(clips.items())[done:])


_LINES = st.sampled_from([part for part, _ in HOSTILE.values()])
_NOISE = st.binary(max_size=1500)


@given(st.lists(_LINES | _NOISE | st.just(END), max_size=6), st.integers(50, 5000))
@settings(deadline=None, max_examples=50)
def test_any_input_is_parsed_or_refused(parts: list[bytes], step: int) -> None:
    """And in pieces of whatever size, it is the same."""
    data = b"".join(parts)
    outcomes = []
    for size in (len(data) or 1, step):
        try:
            outcomes.append(parse(data, step=size))
        except ArchiveError as error:
            outcomes.append(({}, Counter([str(error)])))
    assert outcomes[0] == outcomes[1]


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_real_archives_with_a_few_bytes_changed(data: st.DataObject) -> None:
    clips = make_clips(3, size=(10, 900))
    tar = bytearray(make_tar(clips, data.draw(st.sampled_from(LAYOUTS)), tarfile.PAX_FORMAT))
    for offset, byte in data.draw(st.lists(st.tuples(st.integers(0, len(tar) - 1), st.integers(0, 255)), max_size=4)):
        tar[offset] = byte
    try:
        found, _ = parse(bytes(tar))
    except ArchiveError:
        return
    # The clips that tarfile finds. It stops at fields that this parser ignores.
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(bytes(tar))) as opened:
        theirs = {entry.name.rsplit("/", 1)[-1]: entry for entry in opened if entry.isreg()}
        for clip, content in found.items():
            if clip.name in theirs:
                reader = opened.extractfile(theirs[clip.name])
                assert reader is not None
                assert reader.read() == content
