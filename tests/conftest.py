"""Fixtures: a dataset that is generated once, a site that hosts it, and mounts of it."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from kinetics_fs.demo.dataset import make_dataset
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.ffmpeg import find_ffmpeg
from tests.support.command_line import NEUTRAL, Mounted
from tests.support.videos import Videos, make_videos, run_ffmpeg
from tests.support.youtube import FakeYouTube


class Dataset(NamedTuple):
    """The demo's dataset, with small pictures.

    Attributes:
        videos: folder of the videos, `<id>.mp4`.
        annotations: the annotation file.
        clips: five different clips of ten seconds, as the archives of a release have them.
    """

    videos: Path
    annotations: Path
    clips: tuple[bytes, ...]


SERVERS = frozenset({"archives", "fetched", "host", "mount", "serve", "site", "yt"})
"""Names of fixtures that start a server or use one."""

T = TypeVar("T")


def pytest_configure() -> None:
    """Set the variables of `NEUTRAL` for all tests."""
    os.environ.update(NEUTRAL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses one of `SERVERS`."""
    for item in items:
        if isinstance(item, pytest.Function) and not SERVERS.isdisjoint(item.fixturenames):
            item.add_marker("server")


def made_once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], T]) -> T:
    """Return the result of `make` for a folder; one process of a test run calls it, and the others get its result."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            made: T = pickle.loads(done.read_bytes())  # noqa: S301  # written by this run of the tests
            return made
        folder.mkdir()
        made = make(folder)
        done.write_bytes(pickle.dumps(made))
        return made


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    def make(videos: Path) -> Dataset:
        annotations = make_dataset(videos, find_ffmpeg(), width=160, height=120)
        clips = list[bytes]()
        # Each begins with another keyframe: the first seconds of all videos are alike.
        for start, video in zip(range(0, 10, 2), sorted(videos.glob("*.mp4")), strict=True):
            clip = videos.with_name("clip.mp4")
            run_ffmpeg("-ss", start, "-i", video, "-t", 10, "-c", "copy", "-movflags", "+faststart", clip)
            clips.append(clip.read_bytes())
        return Dataset(videos, annotations, tuple(clips))

    return made_once("videos", tmp_path_factory, make)


@pytest.fixture(scope="session")
def youtube_videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    return made_once("youtube", tmp_path_factory, lambda folder: make_videos(folder, seconds=60, width=320, height=180))


@pytest.fixture
def site(dataset: Dataset) -> Iterator[VideoSite]:
    with VideoSite(dataset.videos) as site:
        yield site


@pytest.fixture
def yt() -> Iterator[FakeYouTube]:
    """A YouTube without videos."""
    with FakeYouTube() as fake:
        yield fake


MountFactory = Callable[..., Mounted]


@pytest.fixture
def mount(dataset: Dataset, site: VideoSite, tmp_path: Path) -> Iterator[MountFactory]:
    """Mount the dataset, with further arguments of `kinetics-fs mount`; by default all mounts share a cache."""
    with ExitStack() as mounts:
        numbers = iter(range(1, 100))

        def make(*arguments: str | Path, cache: Path = tmp_path / "cache", config: Path | None = None) -> Mounted:
            return mounts.enter_context(
                Mounted(
                    tmp_path / f"mount {next(numbers)}",
                    *("--annotations", dataset.annotations),
                    *("--video-url", site.url_template),
                    *("--cache-dir", cache),
                    *("--min-free", "0"),
                    *arguments,
                    config=config,
                )
            )

        yield make
