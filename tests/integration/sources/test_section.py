"""Sections of remote media: exactly the right frames, for little more than their own bytes."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.youtube.source import YouTubeSource
from tests.support.videos import KEYFRAMES, RATE, Videos
from tests.support.youtube import FakeYouTube

pytestmark = pytest.mark.usefixtures("as_in_a_worker")

VIDEO = "-a_Video-01"
SHAPES = ["progressive", "index_last", "adaptive", "hls"]


def publish(yt: FakeYouTube, videos: Videos, shape: str) -> YouTubeSource:
    """Return a source for the video in one of its shapes."""
    if shape == "hls":
        yt.add_video(VIDEO, duration=videos.seconds, hls=videos.playlist)
        return YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options))
    path = videos.index_last if shape == "index_last" else videos.progressive
    yt.add_video(VIDEO, path, duration=videos.seconds, adaptive=(videos.picture, videos.sound))
    chosen = "134+140" if shape == "adaptive" else "18"
    return YouTubeSource(SourceSettings(ytdlp={**yt.ytdlp_options, "format": chosen}))


def clip_frames(source: YouTubeSource, start: int, end: int, folder: Path) -> list[int]:
    folder.mkdir()
    media = source.fetch(Clip(VIDEO, start, end), folder)
    target = folder / "clip.mp4"
    length = expected_span(media, end - start).end
    cut(media, end - start, target, ffmpeg=find_ffmpeg(), max_height=360)
    numbers = frame_numbers(target)
    assert len(numbers) == pytest.approx(length * RATE, abs=1)
    return numbers


@contextmanager
def serve_folder(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yield the address, and the list of requested paths."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.mark.parametrize("shape", SHAPES)
def test_frames(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path, shape: str) -> None:
    source = publish(yt, youtube_videos, shape)
    last = round(youtube_videos.seconds)
    for start, end in [
        (0, 10),
        (1, 2),
        (KEYFRAMES, KEYFRAMES + 3),  # from a keyframe on
        (KEYFRAMES * 4 - 1, KEYFRAMES * 4),  # up to one
        (32, 42),
        (last - 10, last),
        (last - 3, last + 7),  # as some in Kinetics, it ends after the video does
    ]:
        numbers = clip_frames(source, start, end, tmp_path / f"{start}-{end}")
        assert numbers == list(range(start * RATE, min(end, last) * RATE)), (start, end)


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path, shape: str) -> None:
    source = publish(yt, youtube_videos, shape)

    clip_frames(source, 32, 42, tmp_path / "clip")

    requests = [request for request in yt.media_requests(VIDEO) if request[1] != 200]  # those are playlists
    assert all(asked is not None and asked.rpartition("-")[2].isdigit() for asked, _, _ in requests), "none is open"
    sent = sum(size for _, _, size in requests)
    path = youtube_videos.picture if shape == "adaptive" else youtube_videos.progressive
    # From the keyframe at 30 s on it is 12 seconds of 60; the index, and what is read to find it, are the rest.
    assert sent < path.stat().st_size * 12 / 60 * 1.3 + 200_000
    assert len(requests) <= (8 if shape == "adaptive" else 5)


def test_clip_behind_the_end_is_gone(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path) -> None:
    source = publish(yt, youtube_videos, "progressive")

    with pytest.raises(FetchError) as caught:
        source.fetch(Clip(VIDEO, 60, 70), tmp_path)

    assert caught.value.kind is FailureKind.GONE
    assert caught.value.source == "youtube"
    assert "60.0 s" in caught.value.reason


def test_long_clip_is_fetched_whole(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path) -> None:
    source = publish(yt, youtube_videos, "progressive")

    media = source.fetch(Clip(VIDEO, 0, 121), tmp_path)

    assert media.path.read_bytes() == youtube_videos.progressive.read_bytes()


def test_server_without_ranges(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path) -> None:
    source = publish(yt, youtube_videos, "progressive")
    yt.media_fault[VIDEO] = "no-ranges"

    assert clip_frames(source, 32, 42, tmp_path / "clip") == list(range(32 * RATE, 42 * RATE))


def test_odd_playlist_is_fetched_whole(yt: FakeYouTube, youtube_videos: Videos, tmp_path: Path) -> None:
    folder = tmp_path / "hls"
    shutil.copytree(youtube_videos.playlist.parent, folder)
    playlist = folder / youtube_videos.playlist.name
    playlist.write_text(playlist.read_text().replace("#EXTINF", "#EXT-X-DISCONTINUITY\n#EXTINF", 1))
    yt.add_video(VIDEO, duration=youtube_videos.seconds, hls=playlist)
    source = YouTubeSource(SourceSettings(ytdlp=yt.ytdlp_options))

    assert clip_frames(source, 32, 42, tmp_path / "clip") == list(range(32 * RATE, 42 * RATE))
    assert len(yt.media_requests(VIDEO)) > 12, "all segments"


def test_dash(youtube_videos: Videos, tmp_path: Path) -> None:
    made = tmp_path / "dash"
    made.mkdir()
    subprocess.run(
        [
            *(find_ffmpeg(), "-nostdin", "-loglevel", "error", "-i", youtube_videos.progressive, "-c", "copy"),
            *("-f", "dash", "-seg_duration", str(KEYFRAMES), "-use_template", "1", "-use_timeline", "1"),
            made / f"{VIDEO}.mpd",
        ],
        check=True,
    )
    with serve_folder(made) as (url, asked):
        source = YouTubeSource(SourceSettings(video_url=f"{url}/{{id}}.mpd", ytdlp={"proxy": ""}))
        numbers = clip_frames(source, 32, 42, tmp_path / "clip")

    assert numbers == list(range(32 * RATE, 42 * RATE))
    assert len(asked) < 15, "of 24 segments"
