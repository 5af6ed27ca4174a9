"""The videos and annotations of the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video

RATE = 25
"""Frames per second of every video."""

VIDEOS = {"-demo_video": 24.0, "demo-video2": 20.0, "_demo_vid3_": 16.0, "demo_video4": 30.0, "DEMOvideo-5": 14.5}
"""Length of each video in seconds. The ids are as irregular as real ones."""

GONE = "GoneVideo_0"
"""An id without a video."""


class Row(NamedTuple):
    """A row of the annotations."""

    label: str
    clip: Clip
    split: str


ROWS = [
    Row("surfing water", Clip("-demo_video", 10, 20), "validate"),
    Row("surfing water", Clip("_demo_vid3_", 3, 13), "validate"),
    Row("surfing water", Clip("DEMOvideo-5", 8, 18), "validate"),  # ends after its video, as some real clips do
    Row("massaging person's head", Clip("demo-video2", 0, 10), "validate"),
    Row("massaging person's head", Clip("-demo_video", 2, 12), "validate"),  # the second clip of this video
    Row("passing American football (in game)", Clip("demo_video4", 15, 25), "validate"),
    Row("passing American football (in game)", Clip(GONE, 5, 15), "validate"),
    Row("surfing water", Clip("demo_video4", 0, 10), "train"),
]


def make_dataset(
    folder: Path,
    ffmpeg: str,
    made: Callable[[str], None] = lambda video: None,
    *,
    width: int = 320,
    height: int = 180,
) -> Path:
    """Make the videos, as `<id>.mp4`, and the annotations.

    Args:
        folder: an empty folder.
        ffmpeg: path of the program.
        made: called with each id after its video is written.
        width: width of the pictures in pixels; small by default, because the demo encodes each video twice.
        height: their height in pixels.

    Returns:
        The path of the annotation file.
    """
    for video, seconds in VIDEOS.items():
        path = folder / f"{video}.mp4"
        make_video(path, seconds=seconds, ffmpeg=ffmpeg, rate=RATE, width=width, height=height, gop=2 * RATE)
        made(video)
    annotations = folder / "annotations.csv"
    lines = ["label,youtube_id,time_start,time_end,split"]
    lines += [f"{row.label},{row.clip.youtube_id},{row.clip.start},{row.clip.end},{row.split}" for row in ROWS]
    annotations.write_text("\n".join(lines) + "\n")
    return annotations


def expected_frames(clip: Clip) -> list[int]:
    """Return the numbers of the frames that a clip must contain."""
    end = min(float(clip.end), VIDEOS[clip.youtube_id])
    return list(range(clip.start * RATE, round(end * RATE)))
