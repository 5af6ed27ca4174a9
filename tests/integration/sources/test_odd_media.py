"""Sections of media that are not as YouTube usually has them: still the frames of the clip, or the right failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers, make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.media.verify import verify_clip
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.youtube.source import YouTubeSource
from tests.support.videos import run_ffmpeg
from tests.support.youtube import FakeYouTube

pytestmark = pytest.mark.usefixtures("as_in_a_worker")

VIDEO = "-a_Video-01"
SECONDS = 20
H264 = ("-c:v", "libx264", "-preset", "superfast", "-bf", "3")
OPEN_GROUPS = ("-x264-params", "keyint=100:min-keyint=100:scenecut=0:open-gop=1:bframes=8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "plain.mp4"
    make_video(path, seconds=SECONDS, ffmpeg=find_ffmpeg(), width=160, height=120, gop=50)
    return path


Frames = Callable[[Path, int, int], list[int]]


@pytest.fixture
def source(yt: FakeYouTube) -> YouTubeSource:
    return YouTubeSource(SourceSettings(ytdlp={**yt.ytdlp_options, "format": "18"}))


@pytest.fixture
def frames(yt: FakeYouTube, source: YouTubeSource, tmp_path: Path) -> Frames:
    """The frames of a clip, as a worker makes it from a file on the server."""

    def run(path: Path, start: int, end: int) -> list[int]:
        yt.add_video(VIDEO, path, duration=length(path))
        folder = tmp_path / "fetch"
        folder.mkdir()
        media = source.fetch(Clip(VIDEO, start, end), folder)
        expected = expected_span(media, end - start)
        target = folder / "clip.mp4"
        cut(media, end - start, target, ffmpeg=find_ffmpeg(), max_height=360)
        verify_clip(target, expected)
        return frame_numbers(target)

    return run


def length(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / av.time_base


def test_picture_that_begins_late(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path = tmp_path / "late.mp4"
    run_ffmpeg("-itsoffset", 1, "-i", plain, "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", path)

    assert frames(path, 0, 3) == list(range(50))


def test_no_edit_list(plain: Path, tmp_path: Path, frames: Frames) -> None:
    """The sound begins at 0, the picture 0.08 s later; so it is with the whole file, too."""
    path = tmp_path / "no edit list.mp4"
    run_ffmpeg("-i", plain, *H264, *OPEN_GROUPS, "-use_editlist", 0, "-movflags", "+faststart", path)

    assert frames(path, 12, 15) == list(range(298, 373))


def test_matroska(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path = tmp_path / "video.mkv"
    run_ffmpeg("-i", plain, *H264, "-g", 250, "-c:a", "copy", path)

    assert frames(path, 3, 6) == list(range(75, 150))


def test_matroska_with_a_keyframe_just_after_the_beginning(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path = tmp_path / "video.mkv"
    run_ffmpeg("-i", plain, *H264, "-g", 250, "-force_key_frames", "12.12", "-c:a", "copy", path)

    assert frames(path, 12, 15) == list(range(300, 375))


SLOW = "select='not(mod(n,{}))'"
GAPS = "select='lt(n,100)+between(n,280,290)+gt(n,400)'"


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
@pytest.mark.parametrize("filters", [SLOW.format(17), SLOW.format(60), GAPS])
@pytest.mark.parametrize("start", [5, 8, 11])
def test_frames_that_do_not_fall_on_the_start(
    plain: Path, tmp_path: Path, frames: Frames, filters: str, start: int, name: str
) -> None:
    path = tmp_path / name
    run_ffmpeg("-i", plain, "-vf", filters, "-fps_mode", "vfr", *H264, "-c:a", "copy", "-movflags", "+faststart", path)
    every = frame_numbers(path)
    first = max(number for number in every if number <= start * 25)

    assert frames(path, start, start + 6) == [n for n in every if first <= n < (start + 6) * 25]


def test_last_frame_that_is_shown_for_long(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path, slow = tmp_path / "video.mp4", tmp_path / "slow.mp4"
    run_ffmpeg("-i", plain, "-vf", f"{SLOW.format(100)},setpts=N*8/TB", "-r", "0.125", *H264, "-an", slow)
    run_ffmpeg("-i", slow, "-c", "copy", "-movflags", "+faststart", path)

    assert frame_numbers(path)[-1] == 400
    assert frames(path, 35, 39) == [400]


def test_cover_picture_is_not_the_video(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path, cover = tmp_path / "video.mp4", tmp_path / "cover.png"
    run_ffmpeg("-i", plain, "-frames:v", 1, cover)
    run_ffmpeg(
        *("-i", plain, "-i", cover, "-map", 1, "-map", 0, "-c", "copy", "-disposition:v:0", "attached_pic"),
        *("-movflags", "+faststart", path),
    )

    assert frames(path, 3, 6) == list(range(75, 150))


def test_edit_list(plain: Path, tmp_path: Path, frames: Frames) -> None:
    """A lossless cutter keeps the frames from the keyframe on, and hides those before the cut."""
    path = tmp_path / "video.mp4"
    run_ffmpeg("-ss", "7.2", "-i", plain, "-c", "copy", "-movflags", "+faststart", path)

    assert frames(path, 3, 6) == list(range(255, 330))


def test_sound_that_outlasts_the_picture(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path = tmp_path / "long sound.mp4"
    run_ffmpeg("-i", plain, "-itsoffset", 3, "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", path)

    assert frames(path, 17, 27) == list(range(425, 500))


def test_clip_of_sound_alone(plain: Path, tmp_path: Path, frames: Frames) -> None:
    path = tmp_path / "short picture.mp4"
    run_ffmpeg("-t", 8, "-i", plain, "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", path)

    with pytest.raises(FetchError) as caught:
        frames(path, 12, 15)
    assert caught.value.kind is FailureKind.GONE


def test_one_video_does_not_stop_everyone(yt: FakeYouTube, source: YouTubeSource, plain: Path, tmp_path: Path) -> None:
    yt.add_video(VIDEO, plain, duration=SECONDS)
    yt.media_fault[VIDEO] = "404"

    kinds = []
    for _ in range(3):
        with pytest.raises(FetchError) as caught:
            source.fetch(Clip(VIDEO, 0, 3), tmp_path)
        kinds.append(caught.value.kind)

    assert kinds == [FailureKind.TRANSIENT] * 3
