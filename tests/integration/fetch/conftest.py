"""Fixtures of the tests of the fetcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.demo.media import make_video
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.fetching import NO_SLEEP, TIMEOUT, FetcherFactory
from tests.support.store_fixtures import small_disk as small_disk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store without limits."""
    with Store(tmp_path / "cache") as store:
        yield store


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of two seconds."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    make_video(path, seconds=2, ffmpeg=find_ffmpeg())
    return path


@pytest.fixture
def fetcher(store: Store, site: VideoSite) -> Iterator[FetcherFactory]:
    """Make fetchers that fetch from the site into the store."""
    with ExitStack() as stack:

        def make(workers: int = 1, timeout: float = TIMEOUT, url: str = "", into: Store = store) -> Fetcher:
            sources = SourceSettings(video_url=url or site.url_template, ytdlp=NO_SLEEP)
            made = Fetcher(into, FetchSettings(workers=workers, timeout=timeout, sources=sources))
            stack.callback(made.close)
            return made

        yield make
