"""One video in the shapes in which YouTube has videos: every frame carries its number, in all of them the same.

The pictures are those of `kinetics_fs.demo.media`, so `frame_numbers` there proves a cut from any shape. They are
encoded once; the other shapes are copies of the same packets.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kinetics_fs.demo.media import make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg

RATE = 25
"""Frames a second."""

KEYFRAMES = 5
"""Seconds from one to the next; fragments and segments begin at them, too."""


@dataclass(frozen=True)
class Videos:
    """The shapes of one video; of 640x360 pixels, about a megabit a second.

    Attributes:
        seconds: length of each.
        progressive: mp4 whose index stands in front, as itag 18.
        index_last: mp4 whose index stands behind the media.
        picture: fragmented mp4 without sound, with one `sidx` for all, as itag 134.
        sound: the sound alone, in the same way, as itag 140.
        playlist: of HLS; the segments of MPEG-TS are beside it.
    """

    seconds: float
    progressive: Path
    index_last: Path
    picture: Path
    sound: Path
    playlist: Path


def make_videos(folder: Path, *, seconds: float, width: int = 640, height: int = 360) -> Videos:
    """Makes a video in all its shapes; takes a second for 20 of the video's.

    Args:
        folder: an empty one; `hls` in it will be the folder of the playlist.
        seconds: its length, whole frames.
        width: of its picture.
        height: of its picture.

    Raises:
        RuntimeError: ffmpeg failed.
        subprocess.CalledProcessError: the same.
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
        _ffmpeg("-i", videos.progressive, *arguments)
    return videos


def make_webm(path: Path, *, seconds: float) -> None:
    """Makes a small webm (vp9, opus) of numbered frames; slow, for vp9 is.

    Args:
        path: a name that ends in `.webm`.
        seconds: its length, whole frames.

    Raises:
        RuntimeError: ffmpeg failed.
        subprocess.CalledProcessError: the same.
    """
    source = path.with_suffix(".mp4")
    make_video(source, seconds=seconds, ffmpeg=find_ffmpeg(), rate=RATE, width=320, height=180)
    vp9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-b:v", "400k")
    _ffmpeg("-i", source, *vp9, "-g", RATE * KEYFRAMES, "-c:a", "libopus", "-b:a", "64k", path)
    source.unlink()


def _ffmpeg(*arguments: object) -> None:
    subprocess.run(
        [find_ffmpeg(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
