"""Proof that a file is the clip that was asked for, before anyone gets to see it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import Media

TOLERANCE = 0.2
"""Seconds by which a clip may be shorter or longer than asked: a few frames at any usual rate."""

_ROUNDING = 1.5
"""Seconds by which a length given by a site or a header may miss the last frame: sites round, sound runs longer."""


class Span(NamedTuple):
    """From when until when a clip has pictures, in seconds."""

    begin: float
    end: float


def expected_span(media: Media, duration: float) -> Span:
    """Checks fetched media before they are cut, and says when the clip's pictures must begin and end.

    Shorter than asked only if the media are whole and end before the clip does, as some in Kinetics do: a download
    that broke off must not pass for a short video.

    Args:
        media: what the clip is to be cut from.
        duration: seconds that were asked for.

    Raises:
        FetchError: not media, or they broke off before the clip's end (CORRUPT); or the clip begins after their end
            (GONE).
    """
    with _opened(media.path) as container:
        claimed_frames = container.streams.video[0].frames
        begin = max(0.0, (container.start_time or 0) / av.time_base)
        header = 0.0 if media.part else (container.duration or 0) / av.time_base - begin
        frames, first, end = _demux(container)
    claimed = max(header, media.length or 0.0)
    # A header that counts frames (mp4) proves it exactly; else the lengths that are claimed must do.
    whole = frames >= claimed_frames and claimed - header <= _ROUNDING if claimed_frames else claimed - end <= _ROUNDING
    if not whole and end < media.start + duration:
        raise FetchError(FailureKind.CORRUPT, f"the download broke off after {end:.1f} of {claimed:.1f} s")
    if media.start >= end - TOLERANCE:
        raise FetchError(
            FailureKind.GONE, f"the video ends after {end:.1f} s, before the clip begins at {media.start:.1f} s"
        )
    return Span(max(0.0, first - media.start), min(duration, end - media.start))


def verify_clip(clip: Path, expected: Span | None) -> None:
    """Checks a finished clip: it parses, has one video stream, every frame decodes, and they are when they must be.

    Args:
        clip: the file.
        expected: when its pictures must begin and end; None if they may at any time, but must be all that its header
            counts.

    Raises:
        FetchError: it is not that clip (CORRUPT).
    """
    if expected is None:
        check_container(clip)
    found, last = _decoded_span(clip)
    if expected is None:
        return
    if found.begin > expected.begin + TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the clip begins {found.begin - expected.begin:.2f} s late")
    # The last picture may be shown for longer than the clip lasts.
    if found.end < expected.end - TOLERANCE or last > expected.end + TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the clip lasts {found.end:.2f} s instead of {expected.end:.2f} s")


def check_container(clip: Path) -> None:
    """Checks that a clip parses, has one video stream, and all the frames that its header counts; decodes nothing.

    Args:
        clip: the file.

    Raises:
        FetchError: it is no clip, or not all of one (CORRUPT).
    """
    with _opened(clip) as container:
        claimed = container.streams.video[0].frames
        frames, *_ = _demux(container)
    if frames == 0 or frames < claimed:
        raise FetchError(FailureKind.CORRUPT, f"the clip has {frames} of {claimed} frames")


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:  # titles are in any encoding
            if len(container.streams.video) != 1:
                raise FetchError(
                    FailureKind.CORRUPT, f"the file has {len(container.streams.video)} video streams instead of one"
                )
            yield container
    except av.FFmpegError as error:
        raise FetchError(FailureKind.CORRUPT, f"the file does not decode: {error.strerror}") from error


def _decoded_span(path: Path) -> tuple[Span, float]:
    """From the first frame to the end of the last one, and when that begins; decodes every frame on the way."""
    begin, last, end = math.inf, 0.0, 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is not None and frame.time_base is not None:
                begin = min(begin, float(frame.pts * frame.time_base))
                last = max(last, float(frame.pts * frame.time_base))
                end = max(end, float((frame.pts + (frame.duration or 0)) * frame.time_base))
    return Span(begin, end), last


def _demux(container: InputContainer) -> tuple[int, float, float]:
    """How many video packets are really there, and from when until when they are; decodes nothing."""
    stream = container.streams.video[0]
    frames, first, end = 0, math.inf, -math.inf
    for packet in container.demux(stream):
        if packet.pts is not None:
            frames += 1
            first = min(first, packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
    if frames == 0 or stream.time_base is None:
        return 0, math.inf, 0.0
    tick, begin = float(stream.time_base), (container.start_time or 0) / av.time_base
    return frames, first * tick - begin, end * tick - begin
