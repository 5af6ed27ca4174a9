"""Which formats of a video are fetched: the next one if the server refuses one, and the original sound before a dub."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.youtube.source import YouTubeSource
from tests.support.videos import RATE, Videos
from tests.support.youtube import HLS, FakeYouTube

pytestmark = pytest.mark.usefixtures("as_in_a_worker")

VIDEO = "-a_Video-01"
CLIP = Clip(VIDEO, 20, 22)


@pytest.fixture
def yt(yt: FakeYouTube, youtube_videos: Videos) -> FakeYouTube:
    shapes = youtube_videos
    adaptive = (shapes.picture, shapes.sound)
    yt.add_video(VIDEO, shapes.progressive, duration=shapes.seconds, adaptive=adaptive, hls=shapes.playlist)
    return yt


def source(yt: FakeYouTube) -> YouTubeSource:
    few = {"socket_timeout": 20, "retries": 0, "extractor_retries": 0, "fragment_retries": 0}
    return YouTubeSource(SourceSettings(ytdlp={**yt.ytdlp_options, **few}))


def check_frames(media: Media, folder: Path) -> None:
    target = folder / "cut.mp4"
    cut(media, expected_span(media, CLIP.duration).end, target, ffmpeg=find_ffmpeg(), max_height=360)
    assert frame_numbers(target) == list(range(CLIP.start * RATE, CLIP.end * RATE))


@pytest.mark.parametrize("fault", ["403", "404", "500", "empty", "html", "truncate", "reset"])
def test_refused_or_empty_format_falls_through_to_the_next(yt: FakeYouTube, tmp_path: Path, fault: str) -> None:
    yt.media_fault[f"{VIDEO}/18"] = fault

    check_frames(source(yt).fetch(CLIP, tmp_path), tmp_path)

    assert yt.media_requests(VIDEO, 134)
    assert yt.media_requests(VIDEO, 140)


@pytest.mark.parametrize("itag", [134, 140])
def test_refused_part_of_a_pair_falls_through_to_the_next(yt: FakeYouTube, tmp_path: Path, itag: int) -> None:
    yt.media_fault[f"{VIDEO}/18"] = yt.media_fault[f"{VIDEO}/{itag}"] = "403"

    check_frames(source(yt).fetch(CLIP, tmp_path), tmp_path)

    assert yt.media_requests(VIDEO, HLS)


def test_file_of_no_bytes_falls_through_to_the_next(yt: FakeYouTube, tmp_path: Path, youtube_videos: Videos) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    shapes = youtube_videos
    yt.add_video(VIDEO, empty, duration=shapes.seconds, adaptive=(shapes.picture, shapes.sound))

    check_frames(source(yt).fetch(CLIP, tmp_path), tmp_path)


def test_failed_formats_are_forgotten_with_the_video(yt: FakeYouTube, tmp_path: Path) -> None:
    reused = source(yt)
    yt.media_fault[f"{VIDEO}/18"] = "403"
    reused.fetch(CLIP, tmp_path)
    yt.media_fault.clear()
    before = len(yt.media_requests(VIDEO, 18))

    reused.fetch(CLIP, tmp_path)

    assert len(yt.media_requests(VIDEO, 18)) > before


def test_video_whose_formats_are_all_refused_fails_as_the_first(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "403"

    with pytest.raises(FetchError) as caught:
        source(yt).fetch(CLIP, tmp_path)

    assert (caught.value.kind, caught.value.reason) == (FailureKind.TRANSIENT, "media server: HTTP 403")
    assert yt.player_requests(VIDEO) == 2


def test_rate_limit_of_the_media_server_tries_no_other_format(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[f"{VIDEO}/18"] = "429"

    with pytest.raises(FetchError) as caught:
        source(yt).fetch(CLIP, tmp_path)

    assert caught.value.kind is FailureKind.BLOCKED
    assert yt.media_requests(VIDEO, 134) == []


@pytest.mark.parametrize(
    ("progressive", "sound", "is_progressive"),
    [
        ([""], [""], True),
        (["German"], ["English original", "German"], False),
        (["English original"], ["English original", "German"], True),
        (["German", "English original"], ["German"], True),
        (["English descriptive"], ["English original"], False),
        ([""], ["English original", "German"], True),
        (["German"], ["German"], True),
    ],
)
def test_original_language_is_fetched_before_a_dub(
    yt: FakeYouTube,
    tmp_path: Path,
    youtube_videos: Videos,
    progressive: list[str],
    sound: list[str],
    is_progressive: bool,
) -> None:
    shapes = youtube_videos
    adaptive, languages = (shapes.picture, shapes.sound), {18: progressive, 140: sound}
    yt.add_video(VIDEO, shapes.progressive, duration=shapes.seconds, adaptive=adaptive, languages=languages)

    source(yt).fetch(CLIP, tmp_path)

    assert bool(yt.media_requests(VIDEO, 18)) == is_progressive
    assert bool(yt.media_requests(VIDEO, 140)) != is_progressive
