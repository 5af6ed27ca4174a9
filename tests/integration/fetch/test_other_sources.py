"""A failure that one source has found does not keep a clip from another source that has it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch import outcomes
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import Store, read_reports, report_line
from kinetics_fs.store.failures import FailureReport
from tests.support.archive_site import ArchiveSite, index_of
from tests.support.fetching import TIMEOUT, error_of
from tests.support.tarballs import make_tar
from tests.support.youtube import FakeYouTube

CLIP = Clip("-a_Video-01", 0, 2)
GONE = FetchError(FailureKind.GONE, "Video unavailable", source="youtube")
PART = "400/train/part_120.tar.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


FetcherMaker = Callable[..., Fetcher]


@pytest.fixture
def fetcher(store: Store, yt: FakeYouTube, folder: Path) -> Iterator[FetcherMaker]:
    with ExitStack() as stack:

        def make(order: tuple[str, ...], **settings: Any) -> Fetcher:
            ytdlp = {**yt.ytdlp_options, "extractor_retries": 0}
            index, lock = store.layout.archive_indexes, store.layout.archive_reading_lock
            sources = SourceSettings(
                order=order,
                ytdlp=ytdlp,
                folders=(str(folder),),
                archive_index=str(index),
                archive_lock=str(lock),
                **settings,
            )
            made = Fetcher(store, FetchSettings(workers=1, timeout=TIMEOUT, sources=sources))
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize("kind", [FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT])
def test_clip_that_youtube_lacks_comes_from_a_folder(
    fetcher: FetcherMaker, store: Store, folder: Path, video: Path, yt: FakeYouTube, kind: FailureKind
) -> None:
    store.failures.remember(CLIP, FetchError(kind, "Video unavailable", source="youtube"))
    shutil.copy(video, folder / CLIP.name)

    assert fetcher(("folder", "youtube")).request(CLIP).result(TIMEOUT) is None

    assert store.is_cached(CLIP)
    assert yt.player_requests(CLIP.youtube_id) == 0


def test_clip_of_an_imported_failure_comes_from_a_folder(
    fetcher: FetcherMaker, store: Store, folder: Path, video: Path, yt: FakeYouTube, tmp_path: Path
) -> None:
    with Store(tmp_path / "other") as other:
        line = report_line(other.failures.remember(CLIP, GONE))
    reports = [one for one in read_reports(io.BytesIO(line.encode())) if isinstance(one, FailureReport)]
    assert store.failures.import_reports(reports).new == 1
    shutil.copy(video, folder / CLIP.name)

    assert fetcher(("folder", "youtube")).request(CLIP).result(TIMEOUT) is None

    assert yt.player_requests(CLIP.youtube_id) == 0


def test_clip_that_no_other_source_has_keeps_its_failure(fetcher: FetcherMaker, store: Store, yt: FakeYouTube) -> None:
    before = store.failures.remember(CLIP, GONE)
    one = fetcher(("archive", "folder", "youtube"))

    for _ in range(2):
        error = error_of(one.request(CLIP))
        assert (error.kind, error.source) == (FailureKind.GONE, "youtube")

    assert store.failures.get(CLIP) == before
    assert yt.player_requests(CLIP.youtube_id) == 0
    assert one.known_failure(CLIP) is not None


def test_folder_is_searched_again_after_a_while(
    fetcher: FetcherMaker, store: Store, folder: Path, video: Path, yt: FakeYouTube, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fetcher(("folder", "youtube"))
    assert error_of(one.request(CLIP)).kind is FailureKind.GONE
    shutil.copy(video, folder / CLIP.name)
    assert error_of(one.request(CLIP)).kind is FailureKind.GONE, "not for each open"

    monkeypatch.setattr(outcomes, "_LOOK_INTERVAL", 0.0)

    assert one.request(CLIP).result(TIMEOUT) is None
    requests = yt.player_requests(CLIP.youtube_id)
    assert requests > 0
    assert yt.player_requests(CLIP.youtube_id) == requests


def test_broken_file_of_a_folder_does_not_hide_what_youtube_said(
    fetcher: FetcherMaker, store: Store, folder: Path, yt: FakeYouTube
) -> None:
    before = store.failures.remember(CLIP, GONE)
    (folder / CLIP.name).write_bytes(b"no media" * 1000)

    error = error_of(fetcher(("folder", "youtube")).request(CLIP))

    assert (error.kind, error.source) == (FailureKind.CORRUPT, "folder")
    assert store.failures.get(CLIP) == before
    assert yt.player_requests(CLIP.youtube_id) == 0


def test_clip_that_youtube_lacks_comes_from_an_archive_that_is_indexed_later(
    fetcher: FetcherMaker, store: Store, video: Path, yt: FakeYouTube, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.failures.remember(CLIP, GONE)
    monkeypatch.setattr(outcomes, "_LOOK_INTERVAL", 0.0)
    with ArchiveSite({PART: make_tar({CLIP: video.read_bytes()})}) as archives:
        one = fetcher(("archive", "youtube"), archive_url=archives.url)
        assert error_of(one.request(CLIP)).kind is FailureKind.GONE
        assert archives.requests == [], "no network for each open"
        with ArchiveIndexDB(store.layout.archive_indexes) as index_db:
            index_db.add(index_of(archives.url, PART))

        assert one.request(CLIP).result(TIMEOUT) is None

    assert yt.player_requests(CLIP.youtube_id) == 0
