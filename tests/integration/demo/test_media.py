"""Tests of numbered videos: frame numbers can be read back, also after a cut; unreadable frames raise an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import imageio_ffmpeg
import pytest

from kinetics_fs.demo.media import frame_numbers, make_video

FFMPEG = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([FFMPEG, "-nostdin", "-loglevel", "error", "-y", *arguments], check=True, timeout=60)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "video.mp4"
    make_video(path, seconds=15, ffmpeg=FFMPEG)
    return path


def atoms(path: Path) -> Iterator[str]:
    """Return the names of the top-level boxes of an mp4."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        yield data[at + 4 : at + 8].decode("ascii")
        at += int.from_bytes(data[at : at + 4], "big")


def test_frame_numbers_reads_every_frame(video: Path) -> None:
    assert frame_numbers(video) == list(range(375))


def test_video_has_one_h264_and_one_aac_stream(video: Path) -> None:
    with av.open(str(video)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (picture.width, picture.height) == (640, 360)
        assert picture.average_rate == 25
        assert picture.sample_aspect_ratio in (None, 1)
        assert sound.codec_context.name == "aac"
        assert container.duration == pytest.approx(15 * av.time_base, abs=0.05 * av.time_base)


@pytest.mark.parametrize(
    ("size", "crf"),
    [("320:180", 28), ("214:120", 34), ("340:256", 30), ("1280:720", 36)],
)
def test_frame_numbers_survive_a_cut_and_reencoding(video: Path, tmp_path: Path, size: str, crf: int) -> None:
    cut = tmp_path / "cut.mp4"
    encode = ("-vf", f"scale={size}", "-an", "-preset", "veryfast", "-crf", str(crf))
    ffmpeg("-ss", "4", "-t", "10", "-i", video, *encode, cut)
    assert frame_numbers(cut) == list(range(100, 350))


def test_frame_numbers_reveal_a_missing_or_extra_frame(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    ffmpeg("-i", video, "-vf", "select='not(eq(n,7))'", "-fps_mode", "vfr", "-frames:v", "10", "-an", cut)
    assert frame_numbers(cut) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]


def test_frame_numbers_reveal_the_start_of_a_stream_copy(tmp_path: Path) -> None:
    video, cut = tmp_path / "video.mp4", tmp_path / "cut.mp4"
    make_video(video, seconds=4, ffmpeg=FFMPEG, gop=25)
    # A copy can only start at a key frame.
    ffmpeg("-ss", "1", "-i", video, "-frames:v", "20", "-c", "copy", "-an", "-avoid_negative_ts", "make_zero", cut)
    assert frame_numbers(cut)[0] == 25


def test_gop_sets_the_distance_of_key_frames(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    make_video(video, seconds=2, ffmpeg=FFMPEG, gop=10)
    with av.open(str(video)) as container:
        keys = [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(("faststart", "before"), [(True, ["moov", "mdat"]), (False, ["mdat", "moov"])])
def test_faststart_sets_the_position_of_the_index(tmp_path: Path, faststart: bool, before: list[str]) -> None:
    video = tmp_path / "video.mp4"
    make_video(video, seconds=1, ffmpeg=FFMPEG, faststart=faststart)
    assert [name for name in atoms(video) if name in before] == before


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_frame_numbers_are_readable_at_other_rates_and_sizes(tmp_path: Path, rate: int) -> None:
    video = tmp_path / "video.mp4"
    make_video(video, seconds=1.5, ffmpeg=FFMPEG, rate=rate, width=320, height=240)
    assert frame_numbers(video) == list(range(rate * 3 // 2))


def test_make_video_accepts_names_with_colons_and_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-abcdefghij.mp4", "http:a %d.mp4"):
        make_video(Path(name), seconds=0.2, ffmpeg=FFMPEG)
        assert frame_numbers(Path(name)) == [0, 1, 2, 3, 4]


def test_make_video_works_with_the_packaged_ffmpeg(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    make_video(video, seconds=1, ffmpeg=imageio_ffmpeg.get_ffmpeg_exe())
    assert frame_numbers(video) == list(range(25))


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param("crop=iw:ih-40:0:40", id="cut off"),
        pytest.param("hflip", id="mirrored"),
        pytest.param("tmix=frames=2", id="blended"),
        pytest.param("eq=contrast=0", id="flat"),
        pytest.param("drawbox=x=120:y=0:w=20:h=24:color=gray:t=fill", id="a cell greyed"),
    ],
)
def test_frame_numbers_rejects_an_unreadable_strip(video: Path, tmp_path: Path, graph: str) -> None:
    spoilt = tmp_path / "spoilt.mp4"
    ffmpeg("-i", video, "-vf", graph, "-frames:v", "5", "-an", spoilt)
    with pytest.raises(ValueError, match=r"frame \d of .* has no readable number"):
        frame_numbers(spoilt)


def test_frame_numbers_rejects_a_file_without_video(video: Path, tmp_path: Path) -> None:
    sound = tmp_path / "sound.m4a"
    ffmpeg("-i", video, "-vn", "-c", "copy", sound)
    with pytest.raises(ValueError, match="no video stream"):
        frame_numbers(sound)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": 3000}, {"width": 641}, {"height": 60}])
def test_make_video_rejects_arguments_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    arguments: dict[str, int] = {"seconds": 1, **wrong}
    with pytest.raises(ValueError):
        make_video(tmp_path / "video.mp4", ffmpeg=FFMPEG, **arguments)  # type: ignore[arg-type]


def test_make_video_reports_the_error_of_ffmpeg(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No such file or directory"):
        make_video(tmp_path / "nowhere" / "video.mp4", seconds=1, ffmpeg=FFMPEG)
    with pytest.raises(RuntimeError, match="cannot run no-such-program"):
        make_video(tmp_path / "video.mp4", seconds=1, ffmpeg="no-such-program")
    assert list(tmp_path.iterdir()) == []
