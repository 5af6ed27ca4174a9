"""Ranges of files, from a disk and from servers that do it in all the wrong ways."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive import remote, s3
from kinetics_fs.sources.archive.base import ArchiveChanged, Version
from kinetics_fs.sources.archive.reader import open_archive, read_small
from kinetics_fs.util.aws import AWSSettings
from tests.support.archive_site import FAULTS, ArchiveSite
from tests.support.archive_site import no_pauses as no_pauses

NAME = "600/val/pull ups (more).tar.gz"
CONTENT = random.Random(5).randbytes(900_000)


@pytest.fixture
def archives() -> Iterator[ArchiveSite]:
    with ArchiveSite({NAME: CONTENT}) as archives:
        yield archives


@pytest.fixture
def address(archives: ArchiveSite) -> str:
    return f"{archives.url}/600/val/pull%20ups%20(more).tar.gz"


def test_one_range_is_one_request(archives: ArchiveSite, address: str) -> None:
    archive = open_archive(address)
    version = archive.version()
    archives.requests.clear()

    data = b"".join(archive.read(1_000, 600_000, version))

    assert data == CONTENT[1_000:600_000]
    assert archives.requests == [(NAME, "bytes=1000-599999", 206, 599_000)]
    assert len(archives.connections) == 1


def test_a_file_reads_alike(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(CONTENT)
    archive = open_archive(str(tmp_path / "a.tar.gz"))
    version = archive.version()

    assert version == Version(len(CONTENT))
    assert b"".join(archive.read(1_000, 600_000, version)) == CONTENT[1_000:600_000]
    assert b"".join(archive.stream(5, version)) == CONTENT[5:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create links of other users")
def test_a_link_of_another_user_to_a_private_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(CONTENT)
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "a.tar.gz"
    link.symlink_to("../private")
    archive = open_archive(str(link))
    version = archive.version()
    assert b"".join(archive.stream(0, version)) == CONTENT
    os.chown(link, 61001, 61001, follow_symlinks=False)
    for read in (archive.version, lambda: next(archive.stream(0, version))):
        with pytest.raises(FetchError, match="a link of uid 61001 leads out of the folder to uid 0"):
            read()


def test_a_bucket(archives: ArchiveSite, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.files["kinetics/400/readme.md"] = b"hello"
    monkeypatch.setattr(s3, "_aws_settings", lambda: AWSSettings(endpoint=archives.url))

    assert read_small(open_archive("s3://kinetics/400/readme.md"), 100) == b"hello"


def test_a_bucket_is_amazons_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_aws_settings", AWSSettings)
    assert open_archive("s3://kinetics/400/a").address == "https://s3.amazonaws.com/kinetics/400/a"


@pytest.mark.parametrize("begin", [0, 1, 123_456, 899_999])
def test_stream_comes_in_order(
    archives: ArchiveSite, address: str, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SEGMENT", 50_000)
    archive = open_archive(address)

    assert b"".join(archive.stream(begin, archive.version())) == CONTENT[begin:]


def test_stream_reads_ahead_only_so_far(archives: ArchiveSite, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SEGMENT", 10_000)
    archive = open_archive(address, connections=2)
    stream = archive.stream(0, archive.version())

    first = next(stream)
    stream.close()

    assert first == CONTENT[:10_000]
    assert len(archives.requests) <= 1 + 4


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(archives: ArchiveSite, address: str, fault: str) -> None:
    archive = open_archive(address)
    version = archive.version()
    archives.faults = [fault]
    if fault in ("page", "slow-down"):
        with pytest.raises(FetchError) as caught:
            list(archive.read(7, 700_000, version))
        assert caught.value.kind is (FailureKind.CONFIG if fault == "page" else FailureKind.TRANSIENT)
        assert caught.value.retry_after == (None if fault == "page" else 3600)
        return

    assert b"".join(archive.read(7, 700_000, version)) == CONTENT[7:700_000]


def test_what_broke_off_is_taken_up_where_it_broke(archives: ArchiveSite, address: str) -> None:
    archive = open_archive(address)
    version = archive.version()
    archives.requests.clear()
    archives.faults = ["short"] * 3

    assert b"".join(archive.read(0, 800_000, version)) == CONTENT[:800_000]
    assert [sent.range for sent in archives.requests] == [
        f"bytes={begin}-799999" for begin in (0, 400_000, 600_000, 700_000)
    ]


@pytest.mark.parametrize(
    ("fault", "kind"), [("503", FailureKind.TRANSIENT), ("429", FailureKind.BLOCKED), ("reset", FailureKind.TRANSIENT)]
)
def test_faults_that_last(archives: ArchiveSite, address: str, fault: str, kind: FailureKind) -> None:
    archive = open_archive(address)
    version = archive.version()
    archives.requests.clear()
    archives.faults = [fault] * 99

    with pytest.raises(FetchError) as caught:
        list(archive.read(0, 2, version))

    assert caught.value.kind is kind
    assert len(archives.requests) < 12


@pytest.mark.parametrize("if_match", [True, False])
def test_another_version(archives: ArchiveSite, address: str, if_match: bool) -> None:
    archive = open_archive(address)
    version = archive.version()
    assert version.etag
    archives.if_match = if_match
    for content in (CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT[:10]):
        archives.files[NAME] = content
        with pytest.raises(ArchiveChanged):
            list(archive.read(100, 200, version))
        assert (archives.requests[-1].status == 412) == if_match
        with pytest.raises(ArchiveChanged):
            list(archive.stream(0, version))


def test_another_version_without_entity_tags(archives: ArchiveSite, address: str) -> None:
    archives.etags = False
    archive = open_archive(address)
    version = archive.version()
    assert version == Version(len(CONTENT))
    archives.files[NAME] = CONTENT + b"x"

    with pytest.raises(ArchiveChanged):
        list(archive.read(100, 200, version))


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    archive = open_archive(str(path))
    version = archive.version()
    path.write_bytes(CONTENT + b"x")

    with pytest.raises(ArchiveChanged):
        list(archive.read(0, 10, version))


def test_version_changes_between_two_pieces(archives: ArchiveSite, address: str) -> None:
    archive = open_archive(address)
    version = archive.version()
    archives.faults = ["short"]
    pieces = archive.read(0, 900_000, version)
    got = b"".join(islice(pieces, 1))
    archives.files[NAME] = b"y" + CONTENT[1:]

    with pytest.raises(ArchiveChanged):
        got += b"".join(pieces)
    assert CONTENT.startswith(got)


def test_server_without_ranges(archives: ArchiveSite, address: str) -> None:
    archives.ranges = False
    with pytest.raises(FetchError, match="range") as caught:
        open_archive(address).version()
    assert caught.value.kind is FailureKind.CONFIG


def test_nothing_there(archives: ArchiveSite, tmp_path: Path) -> None:
    for address in (f"{archives.url}/nothing", str(tmp_path / "nothing"), str(tmp_path)):
        archive = open_archive(address)
        with pytest.raises(FetchError) as caught:
            list(archive.read(0, 10, Version(tmp_path.stat().st_size)))
        assert caught.value.kind is FailureKind.CONFIG


def test_nobody_there() -> None:
    with pytest.raises(FetchError) as caught:
        open_archive("http://127.0.0.1:1/a.tar").version()
    assert caught.value.kind is FailureKind.TRANSIENT


def test_small_file_that_is_large(archives: ArchiveSite, address: str) -> None:
    with pytest.raises(FetchError, match="exceed the limit of 1,000"):
        read_small(open_archive(address), 1_000)


def test_messages_do_not_contain_the_password_of_an_address(archives: ArchiveSite) -> None:
    archive = open_archive(archives.url.replace("//", "//lab:secret@") + "/missing.tar")
    with pytest.raises(FetchError) as caught:
        archive.version()
    assert archives.headers[-1]["Authorization"], "the request itself has it"
    assert "HTTP 404" in caught.value.reason
    assert "secret" not in caught.value.reason
