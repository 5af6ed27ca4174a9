"""Proof that a file is the clip that was asked for, before anyone gets to see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import Media

TOLERANCE = 0.2
"""Seconds by which a clip may be shorter or longer than asked: a few frames at any usual rate."""

_ROUNDING = 1.5
"""Seconds by which lengths given by a site or a header may miss the last frame: sites round, audio runs longer."""


def check_media(media: Media) -> None:
    """Checks fetched media before any work is put into them.

    Raises:
        FetchError: not a media file (CORRUPT), or it ends before the clip begins (GONE).
    """
    with _opened(media.path) as container:
        header = _header_length(container)
    # The longest claim counts: a download that broke off must not pass for a short video.
    length = max(header, media.length or 0.0)
    if length and media.start >= length - TOLERANCE:
        raise FetchError(
            FailureKind.GONE, f"the video ends after {length:.1f} s, before the clip begins at {media.start:.1f} s"
        )


def verify_clip(clip: Path, duration: float, media: Media) -> None:
    """Checks a finished clip: it parses, has one video stream, every frame decodes, and it lasts what was asked.

    A shorter one passes only if its source is shown to end there (the annotations of Kinetics have such clips).

    Args:
        clip: the finished file.
        duration: seconds that were asked for.
        media: what the clip was cut from.

    Raises:
        FetchError: it is not that clip (CORRUPT).
    """
    lasts = _decoded_length(clip)
    if abs(lasts - duration) <= TOLERANCE:
        return
    with _opened(media.path) as container:
        claimed = max(_header_length(container), media.length or 0.0)
        end = _demuxed_length(container)
    if claimed - end > _ROUNDING:
        raise FetchError(FailureKind.CORRUPT, f"the download broke off after {end:.1f} of {claimed:.1f} s")
    if abs(lasts - (end - media.start)) > TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the clip lasts {lasts:.2f} s instead of {duration:.2f} s")


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    try:
        with av.open(f"file:{path}") as container:
            if len(container.streams.video) != 1:
                raise FetchError(
                    FailureKind.CORRUPT, f"the file has {len(container.streams.video)} video streams instead of one"
                )
            yield container
    except av.FFmpegError as error:
        raise FetchError(FailureKind.CORRUPT, f"the file does not decode: {error.strerror}") from error


def _header_length(container: InputContainer) -> float:
    """Seconds that the container says it lasts; 0 if it does not say."""
    return (container.duration or 0) / av.time_base


def _decoded_length(path: Path) -> float:
    """Seconds until the end of the last frame; decodes every frame on the way."""
    end = 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is not None and frame.time_base is not None:
                end = max(end, float((frame.pts + (frame.duration or 0)) * frame.time_base))
    return end


def _demuxed_length(container: InputContainer) -> float:
    """Seconds until the end of the last video packet that is really there; decodes nothing."""
    stream = container.streams.video[0]
    begin = (container.start_time or 0) / av.time_base
    end = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin)
    return end
