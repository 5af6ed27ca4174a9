"""Clips of indexed archives: one request, the exact bytes, or a failure with a reason."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.sources import NotInSource, SourceSettings
from kinetics_fs.sources.archive.index import ArchiveIndex, Record
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import list_archives
from kinetics_fs.sources.archive.source import ArchiveSource
from tests.conftest import Dataset
from tests.support.archive_site import ArchiveSite, index_of
from tests.support.archive_site import no_pauses as no_pauses
from tests.support.tarballs import by_zlib, in_class, make_clips, make_tar

VAL = "600/val/pull ups (really).tar.gz"
PART = "400/train/part_120.tar.gz"
CLIPS = make_clips(8)
MORE = make_clips(3, seed=9)
MORE = {Clip("more" + clip.youtube_id[4:], clip.start, clip.end): content for clip, content in MORE.items()}
FILES = {VAL: by_zlib(make_tar(CLIPS, in_class)), PART: make_tar(MORE)}


@pytest.fixture
def archives() -> Iterator[ArchiveSite]:
    with ArchiveSite(dict(FILES)) as archives:
        yield archives


def indexed(base: str, path: Path) -> Path:
    with ArchiveIndexDB(path) as index_db:
        for name in FILES:
            index_db.add(index_of(base, name))
    return path


@pytest.fixture
def index_db(archives: ArchiveSite, tmp_path: Path) -> Path:
    path = indexed(archives.url, tmp_path / "archives.sqlite")
    archives.requests.clear()
    archives.connections.clear()
    return path


def fetched(source: ArchiveSource, clip: Clip, folder: Path) -> bytes:
    folder.mkdir()
    media = source.fetch(clip, folder)
    assert media is not None and media.whole
    return media.path.read_bytes()


def refused(source: ArchiveSource, clip: Clip, folder: Path) -> FetchError:
    folder.mkdir(exist_ok=True)
    with pytest.raises(FetchError) as caught:
        source.fetch(clip, folder)
    assert not list(folder.iterdir()), "nothing is left behind"
    assert caught.value.source == "archive"
    return caught.value


def test_one_request_for_each_clip(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    source = ArchiveSource(archives.url, index_db)
    for clip, content in (CLIPS | MORE).items():
        assert fetched(source, clip, tmp_path / clip.key) == content

    assert len(archives.requests) == len(CLIPS | MORE)
    assert all(sent.status == 206 for sent in archives.requests)
    assert len(archives.connections) == 1
    # Of plain tars no byte more than the clip and its header.
    assert [sent.bytes for sent in archives.requests][-3:] == [len(content) + 512 for content in MORE.values()]


def test_debug_logs_the_read_by_an_index(
    archives: ArchiveSite, index_db: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kinetics_fs")
    clip = next(iter(CLIPS))
    fetched(ArchiveSource(archives.url, index_db), clip, tmp_path / "job")

    [step] = [message for message in caplog.messages if " by its index: ok, " in message]
    assert step.startswith(f"fetch {clip.key}: worker {os.getpid()}: read ")


def test_from_a_folder(archives: ArchiveSite, tmp_path: Path) -> None:
    for name, content in FILES.items():
        path = tmp_path / "archives" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    index_db = indexed(str(tmp_path / "archives"), tmp_path / "archives.sqlite")
    source = ArchiveSource(str(tmp_path / "archives"), index_db)

    for clip, content in (CLIPS | MORE).items():
        assert fetched(source, clip, tmp_path / clip.key) == content


def test_an_index_made_from_the_bucket_is_good_for_a_copy_on_a_disk(index_db: Path, tmp_path: Path) -> None:
    path = tmp_path / "archives" / VAL
    path.parent.mkdir(parents=True)
    path.write_bytes(FILES[VAL])
    clip = next(iter(CLIPS))

    assert fetched(ArchiveSource(str(tmp_path / "archives"), index_db), clip, tmp_path / "job") == CLIPS[clip]


def test_clips_in_no_archive(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    with pytest.raises(NotInSource):
        ArchiveSource(archives.url, index_db).fetch(Clip("x" * 11, 0, 10), tmp_path)
    assert not archives.requests


def test_archive_that_changed(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    source = ArchiveSource(archives.url, index_db)
    archives.files[VAL] = by_zlib(make_tar(CLIPS, in_class), 9)

    assert refused(source, next(iter(CLIPS)), tmp_path / "job").kind is FailureKind.CONFIG


def test_archive_that_changed_on_a_server_that_does_not_tell(
    archives: ArchiveSite, index_db: Path, tmp_path: Path
) -> None:
    """The same length, and no entity tag: the checksum is the last to notice."""
    with ArchiveIndexDB(index_db) as opened:
        for index in list(opened.indexes()):
            opened.add(ArchiveIndex(index.archive, index.size, None, index.gzipped, index.records))
    archives.files = {name: content[:5_000] + b"x" * (len(content) - 5_000) for name, content in FILES.items()}
    source = ArchiveSource(archives.url, index_db)

    for clip in [*CLIPS, *MORE][1:]:
        assert refused(source, clip, tmp_path / "job").kind is FailureKind.CORRUPT


def test_a_copy_on_a_server_with_other_tags(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    archives.tag = b"mirror"
    source = ArchiveSource(archives.url, index_db)
    first, second, *_ = CLIPS
    assert fetched(source, first, tmp_path / "first") == CLIPS[first]

    archives.requests.clear()
    assert fetched(source, second, tmp_path / "second") == CLIPS[second]
    assert [sent.status for sent in archives.requests] == [206], "the index goes by the new tag now"


def test_another_archive_of_the_same_size(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    content = archives.files[VAL]
    archives.files[VAL] = content[:3_000] + bytes(byte ^ 1 for byte in content[3_000:])
    with ArchiveIndexDB(index_db) as opened:
        before = opened.version(VAL)

        error = refused(ArchiveSource(archives.url, index_db), next(iter(CLIPS)), tmp_path / "job")
        assert "has changed since it was indexed" in error.reason
        assert opened.version(VAL) == before


def test_archive_that_is_gone(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    archives.files = {}
    error = refused(ArchiveSource(archives.url, index_db), next(iter(CLIPS)), tmp_path / "job")
    assert error.kind is FailureKind.CONFIG
    assert "404" in error.reason


def test_server_that_fails(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    archives.faults = ["503"] * 99
    error = refused(ArchiveSource(archives.url, index_db), next(iter(CLIPS)), tmp_path / "job")
    assert error.kind is FailureKind.TRANSIENT


def test_server_that_is_not_there(index_db: Path, tmp_path: Path) -> None:
    error = refused(ArchiveSource("http://127.0.0.1:1", index_db), next(iter(CLIPS)), tmp_path / "job")
    assert error.kind is FailureKind.TRANSIENT
    assert error.reason == f"http://127.0.0.1:1/{quote(VAL)}: Connection refused"


def test_broken_off_midway(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    archives.faults = ["reset", "short"]
    clip = next(iter(CLIPS))
    assert fetched(ArchiveSource(archives.url, index_db), clip, tmp_path / "job") == CLIPS[clip]


def test_index_that_lies(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    """It says of each clip what is true of the next one."""
    with ArchiveIndexDB(index_db) as opened:
        [index] = opened.indexes([VAL])
        clips = list(index.records)
        shifted = dict(zip(clips, [index.records[clip] for clip in clips[1:] + clips[:1]], strict=True))
        opened.add(ArchiveIndex(VAL, index.size, index.etag, True, shifted))
    source = ArchiveSource(archives.url, index_db)

    for clip in CLIPS:
        assert refused(source, clip, tmp_path / "job").kind is FailureKind.CORRUPT


def test_replacements_go_first(archives: ArchiveSite, index_db: Path, tmp_path: Path) -> None:
    clip = next(iter(MORE))
    name = "400/replacement_for_corrupted_k400.tgz"
    archives.files[name] = by_zlib(make_tar({clip: b"the right one"}, lambda clip: f"replacement/{clip.name}"))
    with ArchiveIndexDB(index_db) as opened:
        opened.add(index_of(archives.url, name))
        assert opened.sizes([clip.key]) == {clip.key: len(b"the right one")}
    source = ArchiveSource(archives.url, index_db)

    assert fetched(source, clip, tmp_path / "first") == b"the right one"
    del archives.files[name]
    assert fetched(source, clip, tmp_path / "second") == MORE[clip]


def test_through_a_worker(dataset: Dataset, tmp_path: Path) -> None:
    """A real video, with a real worker process: kept byte for byte, and verified."""
    clip, broken = Clip("DEMOvideo-5", 2, 9), Clip("DEMOvideo-6", 2, 9)
    video = (dataset.videos / "DEMOvideo-5.mp4").read_bytes()
    name = "600/train/juggling.tar.gz"
    path = tmp_path / "archives" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(by_zlib(make_tar({clip: video, broken: random.randbytes(5_000)})))
    with ArchiveIndexDB(tmp_path / "archives.sqlite") as index_db:
        index_db.add(index_of(str(tmp_path / "archives"), name))
    worker = Worker(
        SourceSettings(
            archive_url=str(tmp_path / "archives"),
            archive_index=str(tmp_path / "archives.sqlite"),
            archive_lock=str(tmp_path / "archives.sqlite.reading"),
        ),
        lambda: tmp_path,
    )
    try:
        job = tmp_path / "job"
        job.mkdir()
        found = worker.fetch(clip, "archive", job, timeout=60)
        assert found is not None and found.path.read_bytes() == video
        shutil.rmtree(job)
        job.mkdir()
        with pytest.raises(FetchError):
            worker.fetch(broken, "archive", job, timeout=60)
        with pytest.raises(NotInSource):
            worker.fetch(Clip("DEMOvideo-7", 2, 9), "archive", job, timeout=60)

        replacement = "400/replacement_for_corrupted_k400.tgz"
        (tmp_path / "archives/400").mkdir()
        (tmp_path / "archives" / replacement).write_bytes(by_zlib(make_tar({clip: video[: len(video) // 2]})))
        with ArchiveIndexDB(tmp_path / "archives.sqlite") as index_db:
            index_db.add(index_of(str(tmp_path / "archives"), replacement))
        received = []
        assert worker.fetch(clip, "archive", job, timeout=60, on_clip=lambda *told: received.append(told)) is None
        [(delivered, file)] = received
        assert (delivered, file.path.read_bytes()) == (clip, video), "the original instead of the broken replacement"
    finally:
        worker.stop()


# The archive index database


def test_index_db_returns_the_indexes_that_were_added(archives: ArchiveSite, index_db: Path) -> None:
    with ArchiveIndexDB(index_db) as opened:
        assert [(one.archive, one.clips) for one in opened.archives()] == [(PART, len(MORE)), (VAL, len(CLIPS))]
        assert {index.archive: index for index in opened.indexes()} == {
            name: index_of(archives.url, name) for name in FILES
        }
        assert opened.sizes([clip.key for clip in CLIPS] + ["x"]) == {
            clip.key: len(content) for clip, content in CLIPS.items()
        }
        assert opened.remove(VAL)
        assert not opened.remove(VAL)
        assert not opened.find(next(iter(CLIPS)))
        assert [one.archive for one in opened.archives()] == [PART]


def test_an_unconfirmed_index_only_says_where_clips_are(archives: ArchiveSite, index_db: Path) -> None:
    keys = [clip.key for clip in CLIPS]
    with ArchiveIndexDB(index_db) as opened:
        opened.add(index_of(archives.url, VAL), confirmed=False)
        assert opened.find(next(iter(CLIPS)))
        assert opened.listed(keys) == set(keys)
        assert (opened.sizes(keys), opened.version(VAL)) == ({}, None)
        assert (set(opened.versions()), set(opened.versions(confirmed=True))) == ({VAL, PART}, {PART})

        opened.confirm(VAL)

        assert opened.sizes(keys) == {clip.key: len(content) for clip, content in CLIPS.items()}
        assert opened.version(VAL)


def test_indexes_of_an_earlier_format_stay_in_use(archives: ArchiveSite, index_db: Path) -> None:
    with sqlite3.connect(index_db) as db:
        db.execute("ALTER TABLE archive DROP COLUMN confirmed")
        db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        with ArchiveIndexDB(index_db) as opened:
            assert [one.confirmed for one in opened.archives()] == [True, True]
            assert opened.find(next(iter(CLIPS)))
            opened.add(index_of(archives.url, VAL))


def test_damaged_index_db_is_a_config_failure(tmp_path: Path) -> None:
    path = tmp_path / "archives.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ArchiveError):
        ArchiveIndexDB(path)
    with pytest.raises(ArchiveError):
        ArchiveIndexDB(tmp_path / "nowhere" / "archives.sqlite")
    assert refused(ArchiveSource("/data", path), Clip("x" * 11, 0, 10), tmp_path / "job").kind is FailureKind.CONFIG


def test_record_out_of_bounds_is_a_config_failure(index_db: Path, archives: ArchiveSite, tmp_path: Path) -> None:
    clip = Clip("x" * 11, 0, 10)
    with ArchiveIndexDB(index_db) as opened:
        opened.add(ArchiveIndex("a.tar", 100, None, True, {clip: Record(0, 0, 1 << 40, 90, 1, b"")}))
    assert refused(ArchiveSource(archives.url, index_db), clip, tmp_path / "job").kind is FailureKind.CONFIG


# Lists of archives


def test_archives_are_those_of_the_published_list(archives: ArchiveSite) -> None:
    archives.files["600/val/k600_val_path.txt"] = (
        b"https://s3.amazonaws.com/kinetics/600/val/abseiling.tar.gz\r\n"
        b"https://s3.amazonaws.com/kinetics/600/val/mountain climber (exercise).tar.gz\n\n"
        b"https://s3.amazonaws.com/kinetics/600/val/pull%20ups.tar.gz"
    )
    assert list_archives(archives.url, "600", "validation") == [
        "600/val/abseiling.tar.gz",
        "600/val/mountain climber (exercise).tar.gz",
        "600/val/pull ups.tar.gz",
    ]
    archives.files["400/train/k400_train_path.txt"] = b"https://s3.amazonaws.com/kinetics/400/train/part_0.tar.gz"
    assert list_archives(archives.url, "400", "train") == [
        "400/replacement_for_corrupted_k400.tgz",
        "400/train/part_0.tar.gz",
    ]


@pytest.mark.parametrize(
    "content", [b"<html>", b"\xff\xfe", b"https://x/..", b"https://x/a%0A.tar.gz", b"x/a%2f..%2f.tar"]
)
def test_invalid_list_is_refused(archives: ArchiveSite, content: bytes) -> None:
    archives.files["700_2020/test/k700_2020_test_path.txt"] = content
    with pytest.raises(ArchiveError):
        list_archives(archives.url, "700-2020", "test")
