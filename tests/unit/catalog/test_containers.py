from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
from pathlib import Path

import pytest

from kinetics_fs.catalog import Annotation, Refusal, containers
from kinetics_fs.errors import CatalogError
from tests.support.annotations import csv_text, write_and_read, youtube_id

CSV = csv_text(f"abseiling,{youtube_id(number)},{number},{number + 10},train" for number in range(3)).encode()
JSON = json.dumps(
    {youtube_id(7): {"annotations": {"label": "from json", "segment": [1.0, 11.0]}, "subset": "train"}}
).encode()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def tar(*contents: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for content in contents:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                archive.addfile(member(content[0], len(content[1])), io.BytesIO(content[1]))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "kinetics.bin"


def test_the_name_of_a_list_in_an_archive_gives_its_split(archive: Path) -> None:
    rows = csv_text(["x,ddddddddddd,1,11"], header="label,youtube_id,time_start,time_end").encode()
    content = tar(("k/validate.csv", rows), ("k/test.csv", rows))
    taken = [row.split for row in write_and_read(archive, content) if isinstance(row, Annotation)]
    assert taken == ["validation", "test"]


def test_a_text_in_an_archive_is_a_list_if_its_first_line_is_one(archive: Path) -> None:
    content = tar(
        ("k/README.txt", b"The lists of k.\n0wR5jVB-WPk_000001_000011\n"),
        ("k/train.txt", b"abseiling/0wR5jVB-WPk_000001_000011.mp4 0\n"),
        ("k/val.tsv", b"video_id\tstart\tend\n0wR5jVB-WPk\t1\t11\n"),
        ("k/test.list", b"0wR5jVB-WPk_000001_000011\n"),
    )
    taken = [row.split for row in write_and_read(archive, content) if isinstance(row, Annotation)]
    assert taken == ["train", "validation", "test"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_all_lists_of_an_archive_are_read_and_nothing_is_unpacked(archive: Path, mode: str) -> None:
    content = tar(
        member("kinetics600", kind=tarfile.DIRTYPE),
        ("kinetics600/train.csv", CSV),
        ("kinetics600/._train.csv", b"\x00\x05\x16\x07"),
        ("../../x.csv", CSV),
        ("/absolute.json", JSON),
        ("kinetics600/video.mp4", b"not a list"),
        member("link.csv", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("hard.csv", kind=tarfile.LNKTYPE, target="kinetics600/train.csv"),
        member("pipe.csv", kind=tarfile.FIFOTYPE),
        mode=mode,
    )
    assert len(write_and_read(archive, content)) == 3 + 3 + 1
    assert list(archive.parent.iterdir()) == [archive]


def test_a_row_that_looks_like_the_magic_of_tar_is_a_row(archive: Path) -> None:
    content = CSV + b"x" * (257 - len(CSV)) + b"ustar\0" + b"00\n" + CSV.partition(b"\n")[2]
    assert [type(row) for row in write_and_read(archive, content)] == [Annotation] * 3 + [Refusal] + [Annotation] * 3


def test_csv_is_preferred_to_json_of_the_same_name(archive: Path) -> None:
    content = tar(("k/train.json", JSON), ("k/train.csv", CSV), ("k/test.json", JSON))
    labels = [row.label for row in write_and_read(archive, content) if isinstance(row, Annotation)]
    assert labels == ["abseiling"] * 3 + ["from json"]


def test_refusals_in_an_archive_name_the_member(archive: Path) -> None:
    rows = write_and_read(archive, tar(("some/where/train.csv", CSV + b"bad\n")))
    assert [(row.file, row.line) for row in rows if isinstance(row, Refusal)] == [("kinetics.bin:train.csv", 5)]


def test_a_read_me_in_an_archive_is_passed_over(archive: Path) -> None:
    assert len(write_and_read(archive, tar(("readme.txt", b"Kinetics is a dataset.\n"), ("train.csv", CSV)))) == 3
    assert len(write_and_read(archive, tar(("train.txt", CSV)))) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(("video.mp4", b"x")), "without annotations"),
        (tar(("readme.txt", b"Kinetics is a dataset.\n")), "without annotations"),
        (tar(("train.csv", b"Kinetics is a dataset.\n")), "kinetics.bin:train.csv: it is not a list"),
        (tar(("train.csv", CSV))[:-20], "damaged or incomplete"),
        (tar(("train.csv", CSV * 100), mode="w")[:2000], "damaged"),
        (tar(member("link.csv", kind=tarfile.SYMTYPE, target="/etc/passwd")), "without annotations"),
    ],
)
def test_a_useless_archive_is_an_error(archive: Path, content: bytes, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        write_and_read(archive, content)


def test_a_damaged_header_in_the_middle_is_no_end(archive: Path) -> None:
    content = bytearray(tar(("train.csv", CSV), ("test.csv", CSV), mode="w"))
    at = content.index(b"test.csv")
    content[at] ^= 1
    with pytest.raises(CatalogError, match="data after its last member"):
        write_and_read(archive, bytes(content))


def test_a_bomb_is_cut_off(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_BYTES", 1 << 20)
    row = b"abseiling,0wR5jVB-WPk,1,11,train\n"
    bomb = CSV + row * (2 * containers.MAX_BYTES // len(row))
    for content in (gzip.compress(bomb), tar(("train.csv", bomb)), tar(("x.mp4", bomb), ("train.csv", CSV)), bomb):
        with pytest.raises(CatalogError, match="holds more than 1,048,576 bytes"):
            write_and_read(archive, content)
    assert write_and_read(archive, gzip.compress(CSV * 1))


@pytest.mark.parametrize("content", [b"\n", b"x\n", CSV[CSV.index(b"\n") + 1 :]])
def test_a_small_file_does_not_cost_a_minute(archive: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "FREE_GROWTH", 1 << 16)
    bomb = gzip.compress(CSV + content * (3_000_000 // len(content)), 1)
    begun = time.process_time()
    with pytest.raises(CatalogError, match="unpacks to far more than its size"):
        write_and_read(archive, bomb)
    assert time.process_time() - begun < 5


def test_a_list_has_a_maximum_of_rows(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinetics_fs.catalog.annotations.MAX_ROWS", 100)
    entry = b'"0wR5jVB-WPk": {"annotations": {"label": "x", "segment": [1, 11]}, "subset": "train"}'
    for content in (CSV + b"\n" * 100, CSV * 101, b"{" + b",".join([entry] * 101) + b"}", tar(("a.csv", CSV * 101))):
        with pytest.raises(CatalogError, match="has more than 100 rows"):
            write_and_read(archive, content)


def test_what_lies_beyond_the_limit_is_not_even_decompressed() -> None:
    source = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(CSV)))
    content = containers._Bounded(source, "x", None)
    with pytest.raises(CatalogError, match="holds more than"):
        content.seek(containers.MAX_BYTES + 1)
    assert source.tell() == 0


def test_a_sparse_member_is_not_inflated(archive: Path) -> None:
    sparse = member("huge.csv")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    sparse.size = 512
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.addfile(sparse, io.BytesIO(b"0\n" + bytes(510)))
    with pytest.raises(CatalogError, match="without annotations"):
        write_and_read(archive, buffer.getvalue())


def test_a_header_cannot_ask_for_all_memory(archive: Path) -> None:
    long_name = member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME)
    long_name.size = 1 << 40
    content = long_name.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
    with pytest.raises(CatalogError, match="header of 1,099,511,62"):
        write_and_read(archive, content)


def test_an_archive_of_too_many_members_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_MEMBERS", 3)
    assert write_and_read(archive, tar(*[(f"{number}.csv", CSV) for number in range(3)]))
    with pytest.raises(CatalogError, match="more than 3 members"):
        write_and_read(archive, tar(*[(f"{number}.csv", CSV) for number in range(4)]))
