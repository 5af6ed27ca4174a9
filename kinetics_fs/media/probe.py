"""Probing of video files: container, number of frames, and the time span that the pictures cover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media

TOLERANCE = 0.2
"""Seconds by which a clip may be shorter or longer than requested: a few frames at any usual rate."""

_ROUNDING = 1.5
"""Seconds by which a stated duration may differ from the end of the last frame. Sites round durations, and sound often
runs longer than the pictures."""


class Span(NamedTuple):
    """The time from the first picture to the end of the last one, in seconds."""

    begin: float
    end: float


class Packets(NamedTuple):
    """The video packets of a file. Times are in seconds from the beginning of the container.

    Attributes:
        frames: number of packets, one for each frame.
        begin: time at which the first picture is shown; infinite if there is none.
        end: time at which the last picture ends.
    """

    frames: int
    begin: float
    end: float


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file that has exactly one video stream.

    Raises:
        FetchError: the file, or something that is read from it in the context, cannot be parsed or decoded, or the
            number of video streams is not one (CORRUPT).
    """
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:  # titles are in any encoding
            if len(container.streams.video) != 1:
                raise FetchError(
                    FailureKind.CORRUPT, f"the file has {len(container.streams.video)} video streams instead of one"
                )
            yield container
    except av.FFmpegError as error:
        raise FetchError(FailureKind.CORRUPT, f"the file does not decode: {error.strerror}") from error


def demux(container: InputContainer) -> Packets:
    """Read all video packets of a container without decoding them."""
    stream = container.streams.video[0]
    count, first, end = 0, math.inf, -math.inf
    for packet in container.demux(stream):
        if packet.pts is not None:
            count += 1
            first = min(first, packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
    if count == 0 or stream.time_base is None:
        return Packets(0, math.inf, 0.0)
    tick, begin = float(stream.time_base), (container.start_time or 0) / av.time_base
    return Packets(count, first * tick - begin, end * tick - begin)


def expected_span(media: Media, duration: float) -> Span:
    """Check fetched media before they are cut, and return the span that the clip's pictures must cover.

    The span is shorter than requested only if the video is complete and ends before the clip does, as some in Kinetics
    do. A download that was interrupted must not pass for a short video.

    Args:
        media: file from which the clip is to be cut.
        duration: requested duration of the clip in seconds.

    Returns:
        The span, in seconds from the beginning of the clip.

    Raises:
        FetchError: the file is not a video, or the download ended before the clip does (CORRUPT); or the complete video
            ends before the clip begins (GONE).
    """
    with open_video(media.path) as container:
        stated_frames = container.streams.video[0].frames
        begin = max(0.0, (container.start_time or 0) / av.time_base)
        header = 0.0 if media.part else (container.duration or 0) / av.time_base - begin
        count, first, end = demux(container)
    stated = max(header, media.length or 0.0)
    # A header that counts frames (mp4) proves completeness exactly. Otherwise the stated durations decide.
    counted = count >= stated_frames and stated - header <= _ROUNDING
    complete = counted if stated_frames else stated - end <= _ROUNDING
    if not complete and end < media.start + duration:
        raise FetchError(FailureKind.CORRUPT, f"the download ended after {end:.1f} of {stated:.1f} s")
    if media.start >= end - TOLERANCE:
        raise FetchError(
            FailureKind.GONE, f"the video ends after {end:.1f} s, before the clip begins at {media.start:.1f} s"
        )
    return Span(max(0.0, first - media.start), min(duration, end - media.start))


def decode_span(path: Path) -> tuple[Span, float]:
    """Decode every frame of a file.

    Returns:
        The span of the pictures, and the time at which the last picture begins, both in seconds.

    Raises:
        FetchError: a frame does not decode (CORRUPT).
    """
    begin, last, end = math.inf, 0.0, 0.0
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is not None and frame.time_base is not None:
                begin = min(begin, float(frame.pts * frame.time_base))
                last = max(last, float(frame.pts * frame.time_base))
                end = max(end, float((frame.pts + (frame.duration or 0)) * frame.time_base))
    return Span(begin, end), last
