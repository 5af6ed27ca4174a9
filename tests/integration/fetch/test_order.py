"""Several sources: their order, and which failure counts if none delivers the clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import Store
from tests.conftest import Dataset
from tests.support.archive_site import index_of
from tests.support.fetching import CLIP, NO_SLEEP, OTHER, TIMEOUT, error_of
from tests.support.tarballs import by_zlib, make_tar

ARCHIVE = "600/val/juggling.tar.gz"
DEAD = Clip(GONE, 5, 15)
BROKEN = Clip("demo-video2", 0, 2)


@pytest.fixture
def archives_folder(dataset: Dataset, tmp_path: Path) -> Path:
    """A folder with an indexed archive of three clips; the first is good, the third is no video."""
    video = (dataset.videos / f"{CLIP.youtube_id}.mp4").read_bytes()
    path = tmp_path / "archives" / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(by_zlib(make_tar({CLIP: video, DEAD: video, BROKEN: os.urandom(5_000)})))
    with ArchiveIndexDB(tmp_path / "archives.sqlite") as index_db:
        index_db.add(index_of(str(tmp_path / "archives"), ARCHIVE))
    return tmp_path / "archives"


Make = Callable[..., Fetcher]


@pytest.fixture
def fetcher(store: Store, site: VideoSite, archives_folder: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[Fetcher] = []

    def make(*order: str) -> Fetcher:
        sources = SourceSettings(
            order=order,
            video_url=site.url_template,
            ytdlp=NO_SLEEP,
            archive_url=str(archives_folder),
            archive_index=str(tmp_path / "archives.sqlite"),
            archive_lock=str(tmp_path / "archives.sqlite.reading"),
        )
        made.append(Fetcher(store, FetchSettings(workers=1, timeout=TIMEOUT, sources=sources)))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


def source_of(store: Store, clip: Clip) -> str:
    record = store.record(clip)
    assert record is not None
    assert record.cached
    return record.source


def test_the_first_source_that_has_the_clip_delivers_it(fetcher: Make, store: Store, site: VideoSite) -> None:
    both = fetcher("archive", "youtube")
    for clip in (CLIP, OTHER, BROKEN):
        assert both.request(clip).result(TIMEOUT) is None

    # One is in the archive, one is not, and of one the archive has something else.
    assert [source_of(store, clip) for clip in (CLIP, OTHER, BROKEN)] == ["archive", "youtube", "youtube"]
    assert site.video_fetches(CLIP.youtube_id) == 0
    assert list(store.layout.incoming.iterdir()) == []


def test_sources_are_asked_in_the_order_of_the_setting(fetcher: Make, store: Store) -> None:
    assert fetcher("youtube", "archive").request(CLIP).result(TIMEOUT) is None

    assert source_of(store, CLIP) == "youtube"


def test_a_clip_that_is_gone_from_one_source_comes_from_the_next(fetcher: Make, store: Store) -> None:
    assert fetcher("youtube", "archive").request(DEAD).result(TIMEOUT) is None

    assert source_of(store, DEAD) == "archive"
    assert store.failures.get(DEAD) is None


def test_a_clip_is_gone_only_if_every_source_says_so(fetcher: Make, archives_folder: Path, site: VideoSite) -> None:
    (archives_folder / ARCHIVE).unlink()

    error = error_of(fetcher("archive", "youtube").request(DEAD))

    assert error.kind is not FailureKind.GONE
    assert error.source == "archive"


def test_a_clip_that_no_source_has_is_a_config_failure(fetcher: Make) -> None:
    error = error_of(fetcher("archive").request(OTHER))

    assert error.kind is FailureKind.CONFIG
    assert "no source has this clip" in error.reason


def test_a_block_of_one_source_leaves_the_other_in_use(fetcher: Make, store: Store, site: VideoSite) -> None:
    site.fail[OTHER.youtube_id] = 429
    both = fetcher("youtube", "archive")
    assert error_of(both.request(OTHER)).kind is FailureKind.BLOCKED

    assert both.request(CLIP).result(TIMEOUT) is None
    assert source_of(store, CLIP) == "archive"
    assert site.video_fetches(CLIP.youtube_id) == 0
