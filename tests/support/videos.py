"""One video in all the shapes of YouTube's videos. Every frame carries its number, the same in each shape.

The pictures are those of `kinetics_fs.demo.media`, so `frame_numbers` there checks a cut from any shape. They are
encoded once; the other shapes are copies of the same packets.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics_fs.demo.media import make_video
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.convert import convert, is_served_as_it_is
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.verify import check_clip

RATE = 25
"""Frames per second."""

KEYFRAMES = 5
"""Seconds between keyframes; fragments and segments begin at keyframes too."""


@dataclass(frozen=True)
class Videos:
    """The shapes of one video, with 640x360 pixels and about a megabit per second.

    Attributes:
        seconds: length of the video.
        progressive: mp4 with its index in front of the media, as itag 18.
        index_last: mp4 with its index after the media.
        picture: fragmented mp4 without sound, with one `sidx` for all fragments, as itag 134.
        sound: fragmented mp4 without picture, as itag 140.
        playlist: HLS playlist; the MPEG-TS segments are in the same folder.
    """

    seconds: float
    progressive: Path
    index_last: Path
    picture: Path
    sound: Path
    playlist: Path

    def formats(self, shape: str) -> dict[str, Any]:
        """Return the arguments of `FakeYouTube.add_video` for a shape: a field's name, `adaptive` or `hls`."""
        if shape == "adaptive":
            return {"adaptive": (self.picture, self.sound)}
        return {"hls": self.playlist} if shape == "hls" else {"path": getattr(self, shape)}


def make_videos(folder: Path, *, seconds: float, width: int = 640, height: int = 360) -> Videos:
    """Make a video in all its shapes, 20 times as fast as it plays.

    Args:
        folder: an empty folder; the playlist is in `hls` below it.
        seconds: length of the video, a multiple of the duration of a frame.
        width: of its picture.
        height: of its picture.

    Raises:
        RuntimeError: ffmpeg failed.
        subprocess.CalledProcessError: ffmpeg failed.
    """
    hls = folder / "hls"
    hls.mkdir()
    videos = Videos(
        seconds,
        progressive=folder / "progressive.mp4",
        index_last=folder / "index last.mp4",
        picture=folder / "picture.mp4",
        sound=folder / "sound.m4a",
        playlist=hls / "index.m3u8",
    )
    gop = RATE * KEYFRAMES
    make_video(
        videos.progressive, seconds=seconds, ffmpeg=find_ffmpeg(), rate=RATE, width=width, height=height, gop=gop
    )
    # Without `delay_moov` there is no edit list, and the picture would begin two frames late.
    fragmented = ("-movflags", "+dash+global_sidx+delay_moov")
    for arguments in (
        ("-c", "copy", videos.index_last),
        ("-map", "0:v", "-c", "copy", *fragmented, videos.picture),
        ("-map", "0:a", "-c", "copy", *fragmented, "-frag_duration", f"{2 * KEYFRAMES}000000", videos.sound),
        (
            *("-c", "copy", "-f", "hls", "-hls_time", KEYFRAMES, "-hls_playlist_type", "vod"),
            *("-hls_segment_filename", hls / "%d.ts", videos.playlist),
        ),
    ):
        run_ffmpeg("-i", videos.progressive, *arguments)
    return videos


def make_webm(path: Path, *, seconds: float) -> None:
    """Make a small webm (vp9, opus) of numbered frames. VP9 is slow to encode.

    Args:
        path: a name that ends in `.webm`.
        seconds: length of the video, a multiple of the duration of a frame.

    Raises:
        RuntimeError: ffmpeg failed.
        subprocess.CalledProcessError: ffmpeg failed.
    """
    source = path.with_suffix(".mp4")
    make_video(source, seconds=seconds, ffmpeg=find_ffmpeg(), rate=RATE, width=320, height=180)
    vp9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-b:v", "400k")
    run_ffmpeg("-i", source, *vp9, "-g", RATE * KEYFRAMES, "-c:a", "libopus", "-b:a", "64k", path)
    source.unlink()


def run_ffmpeg(*arguments: object) -> None:
    """Run ffmpeg; it must succeed."""
    subprocess.run(
        [find_ffmpeg(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def check_file(path: Path, level: VerifyLevel) -> float | None:
    """Verify a file as `Checker.check` does, but in this process."""
    if not is_served_as_it_is(path, accept_unknown=level is VerifyLevel.NONE):
        converted = path.with_name(f"{path.name}.converted")
        convert(path, converted)
        converted.replace(path)
    return check_clip(path, level)
