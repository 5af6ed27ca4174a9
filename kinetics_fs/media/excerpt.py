"""Videos of which only the YouTube id is known: whole ones, and clips whose file names have no times."""

from __future__ import annotations

from pathlib import Path

import av

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.probe import VideoFile, demux, expected_span, open_video

_SLACK = 1.0
"""Seconds by which durations may differ: tools cut clips at the next frame, and sites round durations."""
_KEYFRAMES = 1.5
"""Largest ratio of a file's duration and a clip's for the file to be that clip, copied from a keyframe on."""


def find_excerpt(file: VideoFile, path: Path, start: int, end: int) -> Media:
    """Find a clip in a video file by the duration of the file.

    The file is the clip if it is no longer than the clip. Otherwise it is the whole video if it covers the end of the
    clip; if not, a clip that is up to half longer, since it was cut at keyframes.

    Args:
        file: the file, as it is read.
        path: the path of the file for the result.
        start: start of the clip, in seconds of the video.
        end: end of the clip.

    Raises:
        FetchError: the file is damaged, or neither the clip nor the whole video (CORRUPT), or the video ends before the
            clip begins (GONE).
    """
    with open_video(file) as container:
        begin = max(0.0, (container.start_time or 0) / av.time_base)
        length = (container.duration or 0) / av.time_base - begin
        if length <= 0:
            length = demux(container).end
    if length <= end - start + _SLACK:
        return Media(path, 0.0, None, whole=True)
    if length >= end - _SLACK:
        media = Media(path, float(start), length)
        expected_span(media, end - start, file)  # now, while another file can follow a broken one
        return media
    if length <= (end - start) * _KEYFRAMES:
        return Media(path, 0.0, None, whole=True)
    raise FetchError(
        FailureKind.CORRUPT,
        f"the file lasts {length:.0f} s: it is neither the clip ({end - start} s) nor a video that has seconds"
        f" {start} to {end}",
    )
