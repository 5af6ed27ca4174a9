"""The shapes of a video are what they are said to be."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import pytest

from kinetics_fs.demo.media import frame_numbers
from tests.support.videos import KEYFRAMES, RATE, Videos, make_webm


def boxes(path: Path) -> list[str]:
    data, position, found = path.read_bytes(), 0, []
    while position < len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        found.append(name.decode())
        position += size
    return found


@pytest.mark.parametrize("shape", ["progressive", "index_last", "picture", "playlist"])
def test_every_frame_at_its_time(youtube_videos: Videos, shape: str) -> None:
    path: Path = getattr(youtube_videos, shape)
    frames = round(youtube_videos.seconds * RATE)

    assert frame_numbers(path) == list(range(frames))
    with av.open(str(path)) as container:
        begin = (container.start_time or 0) / av.time_base if shape == "playlist" else 0
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        times = sorted(float(packet.pts * packet.time_base) - begin for packet in packets)  # type: ignore[operator]
        assert times[-1] == pytest.approx((frames - 1) / RATE, abs=0.05)
        assert times[0] == pytest.approx(0, abs=0.05)
        keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        assert keyframes == list(range(0, frames, KEYFRAMES * RATE))


def test_places_of_the_index(youtube_videos: Videos) -> None:
    assert [name for name in boxes(youtube_videos.progressive) if name in ("moov", "mdat")] == ["moov", "mdat"]
    assert [name for name in boxes(youtube_videos.index_last) if name in ("moov", "mdat")] == ["mdat", "moov"]


@pytest.mark.parametrize(("shape", "seconds"), [("picture", KEYFRAMES), ("sound", 2 * KEYFRAMES)])
def test_fragments_and_one_index(youtube_videos: Videos, shape: str, seconds: int) -> None:
    fragments = round(youtube_videos.seconds / seconds)

    assert boxes(getattr(youtube_videos, shape))[: 3 + 2 * fragments] == [
        *("ftyp", "moov", "sidx"),
        *(("moof", "mdat") * fragments),
    ]


def test_sound_is_as_long(youtube_videos: Videos) -> None:
    with av.open(str(youtube_videos.sound)) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        assert (container.duration or 0) / av.time_base == pytest.approx(youtube_videos.seconds, abs=0.1)


def test_segments(youtube_videos: Videos) -> None:
    lines = youtube_videos.playlist.read_text().splitlines()

    segments = [line for line in lines if not line.startswith("#")]
    assert len(segments) == youtube_videos.seconds / KEYFRAMES
    assert lines.count(f"#EXTINF:{KEYFRAMES:.6f},") == len(segments)
    assert all((youtube_videos.playlist.parent / segment).is_file() for segment in segments)


def test_half_a_megabit_a_second(youtube_videos: Videos) -> None:
    assert 250_000 < youtube_videos.progressive.stat().st_size * 8 / youtube_videos.seconds < 750_000


def test_webm(tmp_path: Path) -> None:
    make_webm(tmp_path / "video.webm", seconds=6)

    assert frame_numbers(tmp_path / "video.webm") == list(range(6 * RATE))
    with av.open(str(tmp_path / "video.webm")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["vp9", "opus"]
    assert list(tmp_path.iterdir()) == [tmp_path / "video.webm"]
