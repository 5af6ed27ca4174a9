"""A pass over an archive: every clip comes out, can be read alone afterwards, and the pass can be broken off."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable
from itertools import pairwise

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive import libz
from kinetics_fs.sources.archive.base import IncompleteArchive
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.index import check_record
from kinetics_fs.sources.archive.scan import Checkpoint, Scan
from kinetics_fs.sources.archive.tar import Begin, End
from tests.support.tarballs import (
    LAYOUTS,
    PACKERS,
    Clips,
    by_zlib,
    flat,
    in_members,
    make_clips,
    make_tar,
    with_giant_block,
)

CLIPS = make_clips(10, size=(20_000, 60_000))
TAR = make_tar(CLIPS)


class Collector:
    """The clips of a scan, and the checkpoints after each."""

    def __init__(self) -> None:
        self.clips: dict[Clip, bytes] = {}
        self.checkpoints: list[bytes] = []
        self._data = bytearray()

    def feed(self, scan: Scan, data: bytes) -> None:
        for event in scan.feed(data):
            if isinstance(event, Begin):
                self._data.clear()
            elif isinstance(event, End):
                self.clips[event.clip] = bytes(self._data)
                checkpoint = scan.checkpoint()
                assert checkpoint is not None
                self.checkpoints.append(checkpoint.pack())
            else:
                self._data += event


def run(archive: bytes, step: int = 1 << 20, scan: Scan | None = None, begin: int = 0) -> tuple[Scan, Collector]:
    scan, found = scan or Scan(), Collector()
    for offset in range(begin, len(archive), step):
        found.feed(scan, archive[offset : offset + step])
    scan.finish()
    return scan, found


def read_by_index(scan: Scan, archive: bytes, step: int = 1 << 18) -> dict[Clip, bytes]:
    """Every clip, by its record alone and from its own range of the archive alone."""
    clips = {}
    for clip, record in scan.records.items():
        check_record(record, len(archive), gzipped=scan.gzipped)
        part = archive[record.begin : record.end]
        pieces = [part[offset : offset + step] for offset in range(0, len(part), step)]
        clips[clip] = b"".join(map(bytes, extract(clip, record, pieces, gzipped=scan.gzipped)))
    return clips


def packers(*names: str) -> pytest.MarkDecorator:
    """Parametrize a test by names of `PACKERS`."""
    marked = (pytest.param(name, marks=pytest.mark.debian if name.startswith("pigz") else ()) for name in names)
    return pytest.mark.parametrize("packer", list(marked))


@packers(*PACKERS)
def test_every_clip_by_its_record(packer: str) -> None:
    archive = PACKERS[packer](TAR)

    scan, found = run(archive)

    assert found.clips == CLIPS
    assert scan.not_indexed == 0
    assert read_by_index(scan, archive) == CLIPS
    assert scan.gzipped == (packer != "plain")


@packers("zlib -6", "members", "pigz", "plain")
def test_reading_takes_no_more_than_the_standard_library(packer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = PACKERS[packer](TAR)
    scan, _ = run(archive)
    monkeypatch.setattr("kinetics_fs.sources.archive.libz.finds_block_boundaries", lambda: False)

    assert read_by_index(scan, archive, step=5_000) == CLIPS


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: Callable[[Clip], str], format: int) -> None:
    archive = by_zlib(make_tar(CLIPS, layout, format))

    scan, found = run(archive)

    assert found.clips == read_by_index(scan, archive) == CLIPS
    assert not scan.refusals


@pytest.mark.parametrize("step", [1, 7, 512, 65_537])
def test_pieces_of_any_size(step: int) -> None:
    clips = make_clips(3, size=(500, 20_000))
    archive = in_members(make_tar(clips), 20_000)

    scan, found = run(archive, step)

    assert found.clips == read_by_index(scan, archive, step) == clips


def test_index_asks_for_little_more_than_the_clip() -> None:
    clips = make_clips(4, size=(1_400_000, 1_600_000))
    archive = by_zlib(make_tar(clips))

    scan, _ = run(archive)

    asked = sum(record.end - record.begin for record in scan.records.values())
    assert asked < 1.05 * sum(map(len, clips.values()))
    assert all(len(record.window) < 4_000 for record in scan.records.values())


def test_where_libz_cannot_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinetics_fs.sources.archive.libz.finds_block_boundaries", lambda: False)
    archive = by_zlib(TAR)

    scan, found = run(archive)

    assert found.clips == CLIPS
    # From the archive's very beginning what is near can be read.
    assert read_by_index(scan, archive) == {clip: CLIPS[clip] for clip in scan.records}


def test_blocks_are_told_here() -> None:
    assert libz.finds_block_boundaries()


def test_clips_that_are_too_far_from_any_block_are_not_indexed() -> None:
    far = {Clip("far________", 0, 10): bytes(6_000_000), **make_clips(1)}
    archive = by_zlib(make_tar(far), 9, memory=9)  # zeros: all in a few blocks

    scan, found = run(archive)

    assert found.clips == far
    assert scan.not_indexed == 1
    assert read_by_index(scan, archive).items() <= far.items()


def test_giant_block_takes_no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = {clip: bytes(byte % 144 for byte in content) for clip, content in CLIPS.items()}
    archive = with_giant_block(make_tar(clips), 45_000)
    monkeypatch.setattr("kinetics_fs.sources.archive.scan._MAX_KEPT", 150_000)
    scan, found = Scan(), Collector()

    for offset in range(0, len(archive), 10_000):
        found.feed(scan, archive[offset : offset + 10_000])
        assert len(scan._kept) <= 170_000
    scan.finish()

    assert found.clips == clips
    assert 2 <= len(scan.records) < len(clips)
    assert len(scan.records) + scan.not_indexed == len(clips)
    assert read_by_index(scan, archive).items() <= clips.items()


@packers("zlib -6", "zlib, small blocks", "stored", "members", "pigz", "padded", "plain")
def test_going_on_from_a_checkpoint(packer: str) -> None:
    archive = PACKERS[packer](TAR)
    whole, found = run(archive)
    for done in range(1, len(CLIPS) + 1, 3):
        packed = found.checkpoints[done - 1]
        checkpoint = Checkpoint.unpack(packed)

        rest = Scan(at=checkpoint, records=dict(list(whole.records.items())[:done]))
        _, after = run(archive, 50_000, rest, begin=checkpoint.block.bit // 8)

        assert list(after.clips.items()) == list(CLIPS.items())[done:]
        assert rest.records.keys() == whole.records.keys()
        assert read_by_index(rest, archive) == CLIPS
        assert len(packed) < 33_000


def test_broken_off_again_and_again() -> None:
    chance = random.Random(2)
    archive = by_zlib(TAR)
    got: dict[Clip, bytes] = {}
    packed: bytes | None = None
    tries = 0
    while True:
        tries += 1
        checkpoint = Checkpoint.unpack(packed) if packed else None
        scan, found = Scan(at=checkpoint), Collector()
        offset = checkpoint.block.bit // 8 if checkpoint else 0
        stop = offset + chance.randint(50_000, 150_000)
        for begin in range(offset, min(stop, len(archive)), 10_000):
            found.feed(scan, archive[begin : min(begin + 10_000, stop)])
        got |= found.clips
        packed = found.checkpoints[-1] if found.checkpoints else packed
        if stop >= len(archive):
            break
    scan.finish()  # the checksum of the whole member matched
    assert got == CLIPS
    assert tries > 3


def test_damage_after_a_checkpoint_is_noticed() -> None:
    archive = bytearray(by_zlib(TAR, 0))  # stored: only the checksum can tell
    _, found = run(bytes(archive))
    checkpoint = Checkpoint.unpack(found.checkpoints[5])
    archive[-100_000] ^= 1

    with pytest.raises(ArchiveError, match="checksum"):
        run(bytes(archive), scan=Scan(at=checkpoint), begin=checkpoint.block.bit // 8)


def test_damaged_checkpoints() -> None:
    _, found = run(by_zlib(TAR))
    good = found.checkpoints[3]
    for bad in (b"", good[:-1], good[:40], good[:100] + bytes([good[100] ^ 1]) + good[101:], good + b"\0"):
        with pytest.raises(ArchiveError, match="checkpoint"):
            Checkpoint.unpack(bad)


@pytest.mark.parametrize("packer", ["zlib -6", "members", "plain"])
def test_cut_short(packer: str) -> None:
    archive = PACKERS[packer](TAR)
    chance = random.Random(3)
    for end in [
        0,
        1,
        2,
        5,
        11,
        *(chance.randrange(20, len(archive) - 20_000) for _ in range(20)),
        len(archive) - 20_000,
    ]:
        with pytest.raises(ArchiveError):
            run(archive[:end])


def test_trailer_cut_short() -> None:
    archive = by_zlib(TAR)
    for missing in range(1, 9):
        with pytest.raises(ArchiveError, match="cut short"):
            run(archive[:-missing])


def test_several_archives_in_one() -> None:
    first, second = dict(list(CLIPS.items())[:5]), dict(list(CLIPS.items())[4:])
    for archive in (make_tar(first) + make_tar(second), by_zlib(make_tar(first)) + by_zlib(make_tar(second))):
        scan, found = run(archive)

        assert found.clips == read_by_index(scan, archive) == CLIPS
        assert scan.refusals == {"in the archive twice": 1}


def test_something_else_behind_the_end() -> None:
    with pytest.raises(ArchiveError, match="data follow its end"):
        run(by_zlib(TAR) + b"\0" * 100 + b"x")
    with pytest.raises(ArchiveError, match="a gzip header is missing"):
        run(by_zlib(TAR) + b"<html>")
    scan, found = run(TAR + b"<html>" * 1_000)
    assert found.clips == CLIPS
    assert scan.refusals == {"data after the end": 1}


def test_what_is_no_archive() -> None:
    for data in (
        b"<html>" * 500,
        b"\x1f\x8b\x07" + bytes(600),
        b"\x1f\x8b\x08\xff" + bytes(600),
        bytes(range(256)) * 9,
    ):
        with pytest.raises(ArchiveError):
            run(data)


def test_endless_gzip_header() -> None:
    scan = Scan()
    with pytest.raises(ArchiveError, match="header is too long"):
        for piece in [b"\x1f\x8b\x08\x08" + bytes(6), *[b"name" * 10_000] * 10]:
            list(scan.feed(piece))


def test_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros from a thousandth of their size: stopped early, in bounded memory."""
    monkeypatch.setattr("kinetics_fs.sources.archive.inflate._FREE_GROWTH", 1_000_000)
    bomb = by_zlib(bytes(20_000_000), 1)
    scan = Scan()
    largest = 0
    with pytest.raises(ArchiveError, match="far more than its size"):
        for event in scan.feed(by_zlib(make_tar(CLIPS)) + bomb):
            largest = max(largest, len(event) if isinstance(event, memoryview) else 0)
    assert largest <= 256 * 1024


def test_clip_larger_than_any() -> None:
    clips = {Clip("huge_______", 0, 10): bytes(70_000_000), **make_clips(1)}

    scan, found = run(make_tar(clips))

    assert found.clips == make_clips(1)
    assert scan.refusals == {"too large": 1}


def test_wrong_records_are_noticed() -> None:
    archive = by_zlib(TAR)
    scan, _ = run(archive)
    for (clip, record), (other, other_record) in pairwise(scan.records.items()):
        for claimed, wrong in [
            (clip, other_record),  # another clip of the archive
            (other, record),
            (clip, record._replace(crc=record.crc ^ 1)),
            (clip, record._replace(size=record.size - 1)),
            (clip, record._replace(bit=record.bit + 1)),
            (clip, record._replace(skip=record.skip + 512)),
            (clip, record._replace(end=record.begin + record.size // 2)),
        ]:
            with pytest.raises(ArchiveError):
                list(extract(claimed, wrong, [archive[wrong.begin : wrong.end]], gzipped=True))


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@packers("plain", "zlib -6", "members")
def test_names_in_long_form_are_found_and_indexed(packer: str, format: int) -> None:
    clips: Clips = make_clips(3)
    archive = PACKERS[packer](make_tar(clips, lambda clip: "a" * 120 + "/" + "b" * 150 + flat(clip), format))

    scan, found = run(archive)

    assert found.clips == clips
    assert scan.not_indexed == 0
    assert read_by_index(scan, archive) == clips


def test_short_names_are_indexed() -> None:
    clips: Clips = make_clips(3)
    archive = by_zlib(make_tar(clips, lambda clip: f"/data/k/{clip.youtube_id}_{clip.start}_{clip.end}.mp4"))

    scan, found = run(archive)

    assert found.clips == read_by_index(scan, archive) == clips


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x1f", "cut short"),
        (bytes(10_240), "no clips"),
        (bytes(3_000_000), "zeros fill 3,000,000 bytes"),
        (make_tar({}), "no clips"),
        (by_zlib(make_tar({})), "no clips"),
        (by_zlib(b""), "ends without its end mark"),
        (by_zlib(TAR[:-10_240]), "cut short|without its end mark"),
        (by_zlib(TAR) + bytes(3_000_000), "3,000,000 bytes of zeros follow"),
        (b"<html><title>Not Found</title>" * 100, "not an archive"),
        (b"<html>404</html>", "it is a web page"),
        (b"PK\3\4" + bytes(600), "it is a zip archive"),
        (b"(\xb5/\xfd" + bytes(600), "it is compressed by zstd"),
        (by_zlib(b"<html>" * 500), "not an archive"),
    ],
)
def test_an_incomplete_archive_is_recognized(archive: bytes, reason: str) -> None:
    with pytest.raises(IncompleteArchive, match=reason):
        run(archive)


def test_a_tar_of_anything_but_clips_is_incomplete() -> None:
    clips = {Clip("._junk_____", 0, 10): bytes(163)}
    with pytest.raises(IncompleteArchive, match="no clips"):
        run(by_zlib(make_tar(clips, lambda clip: f"class/{clip.name}")))


@pytest.mark.parametrize("packer", ["plain", "zlib -6", "members"])
def test_an_archive_cut_at_any_boundary_is_incomplete(packer: str) -> None:
    """Between members of the tar, blocks of the compressed data, and members of the gzip file."""
    archive = PACKERS[packer](TAR)
    scan, ends = Scan(), {512 * number for number in range(0, len(TAR) // 512, 7)}
    for offset in range(0, len(archive), 997):
        for _ in scan.feed(archive[offset : offset + 997]):
            ends.update(block.bit // 8 for block in scan._blocks)
            ends.update({scan._tar.next_header or 0} if packer == "plain" else {})
    for end in sorted(end for end in ends if end < len(archive) - 20_000):
        with pytest.raises(IncompleteArchive):
            run(archive[:end])


def test_zeros_in_place_of_compressed_data_are_a_part_that_is_missing() -> None:
    """As a download leaves them that was allocated in advance and broken off, or that has holes."""
    archive = by_zlib(TAR)
    for part in range(1, 20):
        begin = len(archive) * part // 20
        for spoilt in (
            archive[:begin] + bytes(len(archive) - begin),
            archive[:begin] + bytes(20_000) + archive[begin + 20_000 :],
        ):
            with pytest.raises(IncompleteArchive):
                run(spoilt[: len(archive)])


def test_a_checkpoint_knows_that_there_were_clips() -> None:
    archive = by_zlib(TAR)
    _, found = run(archive)
    checkpoint = Checkpoint.unpack(found.checkpoints[-1])
    run(archive, scan=Scan(at=checkpoint, index=False), begin=checkpoint.block.bit // 8)


@packers("plain", "zlib -6")
def test_the_record_of_a_repeated_clip_can_be_replaced(packer: str) -> None:
    [clip], [other] = make_clips(1), make_clips(1, seed=2).values()
    archive = PACKERS[packer](make_tar({**CLIPS, clip: CLIPS[clip]})[:-10_240] + make_tar({clip: other}))

    for replaced in (False, True):
        scan = Scan()
        for event in scan.feed(archive):
            if isinstance(event, End) and scan.has_two_records and replaced:
                scan.replace_record()
        scan.finish()
        assert read_by_index(scan, archive) == {**CLIPS, clip: other if replaced else CLIPS[clip]}
