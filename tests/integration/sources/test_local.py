"""Clips that folders and indexes have, found without the network."""

from __future__ import annotations

from pathlib import Path

from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.local import LocalClips
from tests.support.archive_site import ArchiveSite, index_of
from tests.support.tarballs import make_clips, make_tar

PART = "400/train/part_120.tar.gz"


def test_clips_of_folders_and_indexes_are_found(tmp_path: Path) -> None:
    archived, plain, deep, missing = make_clips(4)
    folder = tmp_path / "clips"
    (folder / "some" / "where").mkdir(parents=True)
    (folder / plain.name).write_bytes(b"media")
    (folder / f"{deep.youtube_id}_{deep.start}_{deep.end}.mp4").write_bytes(b"media")
    index = tmp_path / "archives.sqlite"
    with ArchiveSite({PART: make_tar({archived: b"media"})}) as archives, ArchiveIndexDB(index) as index_db:
        index_db.add(index_of(archives.url, PART))
        archives.requests.clear()
        settings = SourceSettings(
            order=("archive", "folder", "youtube"),
            archive_url=archives.url,
            archive_index=str(index),
            folders=(str(folder),),
        )
        keys = [clip.key for clip in (archived, plain, deep, missing)]

        assert LocalClips(settings).among(keys) == set(keys[:3])
        assert archives.requests == []

    assert LocalClips(SourceSettings()).among(keys) == set()
