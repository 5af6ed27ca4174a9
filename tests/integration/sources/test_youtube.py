"""The YouTube source: the right bytes of the right video, from YouTube and from any other site by its template."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import RATE
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.youtube.source import YouTubeSource
from tests.conftest import Dataset
from tests.support.youtube import AD_SECONDS, FakeYouTube

pytestmark = pytest.mark.usefixtures("as_in_a_worker")

VIDEO = "-demo_video"
CLIP = Clip(VIDEO, 10, 20)


@pytest.fixture
def yt(yt: FakeYouTube, dataset: Dataset) -> FakeYouTube:
    yt.add_video(VIDEO, dataset.videos / f"{VIDEO}.mp4", duration=24.0)
    return yt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def numbers(media: Media, clip: Clip, folder: Path) -> list[int]:
    """Return the numbers on the frames of the clip that is cut from the fetched media."""
    target = folder.parent / f"{clip.key} of {folder.name}.mp4"
    cut(media, expected_span(media, clip.duration).end, target, ffmpeg=find_ffmpeg(), max_height=360)
    return frame_numbers(target)


def test_what_the_clip_is_cut_from(yt: FakeYouTube, dataset: Dataset, folder: Path) -> None:
    source = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options))

    media = source.fetch(CLIP, folder)

    assert source.name == "youtube"
    assert media.path.parent == folder
    assert list(folder.iterdir()) == [media.path]
    assert yt.player_requests(VIDEO) == 1
    assert numbers(media, CLIP, folder) == list(range(10 * RATE, 20 * RATE))
    assert {status for _, status, _ in yt.media_requests(VIDEO)} == {206}


@pytest.mark.parametrize("video", ["--HHKLZPagg", "-exec-touch", "__________-", "-----------"])
def test_ids_that_look_like_options(yt: FakeYouTube, folder: Path, video: str) -> None:
    path = folder.parent / "other.mp4"
    path.write_bytes(random.Random(video).randbytes(10_000))
    yt.add_video(video, path, duration=10.0)

    media = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options)).fetch(Clip(video, 0, 10), folder)

    assert media.path.read_bytes() == path.read_bytes()
    assert yt.player_requests(video) == 1
    assert yt.player_requests(VIDEO) == 0


def test_one_after_another(yt: FakeYouTube, dataset: Dataset, tmp_path: Path) -> None:
    other = dataset.videos / "demo_video4.mp4"
    yt.add_video("demo_video4", other, duration=30.0)
    source = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options))
    for number, video in enumerate([VIDEO, "demo_video4", VIDEO]):
        folder = tmp_path / str(number)
        folder.mkdir()
        clip = Clip(video, number, 10)
        media = source.fetch(clip, folder)
        assert numbers(media, clip, folder) == list(range(number * RATE, 10 * RATE))


@pytest.mark.parametrize("name", ["100% (sure) %(id)s", "$HOME", "~", "-o", "ünïcode 🎬", "two\nlines"])
def test_folder_with_an_odd_name(yt: FakeYouTube, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()

    media = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options)).fetch(CLIP, folder)

    assert list(folder.iterdir()) == [media.path]


def test_media_are_awaited_that_come_after_an_advertisement(yt: FakeYouTube, folder: Path) -> None:
    assert AD_SECONDS < 5
    yt.set_scenario(VIDEO, "preroll")

    media = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options)).fetch(CLIP, folder)

    assert media.path.stat().st_size > 0
    assert {status for _, status, _ in yt.media_requests(VIDEO)} == {206}


def test_broken_transfers_are_taken_up_again(yt: FakeYouTube, dataset: Dataset, folder: Path) -> None:
    yt.media_fault[VIDEO] = ["truncate", "reset", "503"]

    media = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options)).fetch(CLIP, folder)

    assert numbers(media, CLIP, folder) == list(range(10 * RATE, 20 * RATE))


def test_low_picture_is_merged_with_its_sound(yt: FakeYouTube, dataset: Dataset, folder: Path) -> None:
    path = dataset.videos / f"{VIDEO}.mp4"
    yt.add_video(VIDEO, path, duration=24.0, adaptive=(path, path))

    media = YouTubeSource(SourceSettings(ytdlp={**yt.ytdlp_options, "format": "134+140"})).fetch(CLIP, folder)

    assert list(folder.iterdir()) == [media.path]
    assert [len(yt.media_requests(VIDEO, itag)) > 0 for itag in (18, 134, 140)] == [False, True, True]


def test_site_by_its_template(site: VideoSite, dataset: Dataset, folder: Path) -> None:
    source = YouTubeSource(SourceSettings(video_url=site.url_template))

    media = source.fetch(CLIP, folder)

    assert numbers(media, CLIP, folder) == list(range(10 * RATE, 20 * RATE))
    assert site.video_fetches(VIDEO) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, FailureKind.GONE),
        (410, FailureKind.GONE),
        (403, FailureKind.TRANSIENT),
        (429, FailureKind.BLOCKED),
        (500, FailureKind.TRANSIENT),
        (503, FailureKind.TRANSIENT),
    ],
)
def test_site_that_refuses(site: VideoSite, folder: Path, status: int, kind: FailureKind) -> None:
    site.fail[VIDEO] = status

    with pytest.raises(FetchError) as caught:
        YouTubeSource(SourceSettings(video_url=site.url_template)).fetch(CLIP, folder)

    assert caught.value.kind == kind
    assert str(status) in caught.value.reason


def test_slow_page_is_a_timeout(site: VideoSite, folder: Path) -> None:
    site.delay[VIDEO] = 30

    with pytest.raises(FetchError) as caught:
        YouTubeSource(SourceSettings(video_url=site.url_template, ytdlp={"socket_timeout": 0.3})).fetch(CLIP, folder)

    assert caught.value.kind is FailureKind.TRANSIENT


def test_nothing_is_kept_beside_the_clip(yt: FakeYouTube, tmp_path: Path, folder: Path) -> None:
    cache = tmp_path / "yt-dlp"

    YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options, ytdlp_cache=str(cache))).fetch(CLIP, folder)

    assert sorted(path.name for path in tmp_path.iterdir() if path != cache) == ["incoming"]
