"""Verification of clips before they are published, at three levels of effort."""

from __future__ import annotations

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.probe import (
    MP4,
    TOLERANCE,
    Span,
    VideoFile,
    decode_span,
    demux,
    open_video,
    picture_of,
    read_at,
    size_of,
    stated_frames,
)

_TAIL = 512
"""Bytes at the end of a file that are looked at."""


def check_clip(clip: VideoFile, level: VerifyLevel) -> float | None:
    """Verify a clip, an mp4 file, at a level.

    Returns:
        The seconds that the pictures cover; None if the level does not measure them.

    Raises:
        FetchError: the file is not a clip, or is incomplete (CORRUPT).
    """
    if level is VerifyLevel.NONE:
        return None
    return check_container(clip) if level is VerifyLevel.CONTAINER else verify_clip(clip, None)


def check_container(clip: VideoFile) -> float:
    """Check that a clip is an mp4 file with a video stream, and contains all frames that its index lists.

    Nothing is decoded, unless the file ends with zeros: they may stand for a part of a download that never arrived.

    Returns:
        The seconds that the pictures cover.

    Raises:
        FetchError: the file is not a clip, or is incomplete (CORRUPT).
    """
    with open_video(clip, formats=MP4) as container:
        stated = stated_frames(picture_of(container))
        found = demux(container)
    if not found.times:
        raise FetchError(FailureKind.CORRUPT, "the clip has no frames")
    if found.frames < stated:
        raise FetchError(FailureKind.CORRUPT, f"the clip has {found.frames} of {stated} frames")
    if _ends_with_zeros(clip):
        decode_span(clip)
    return found.duration


def _ends_with_zeros(clip: VideoFile) -> bool:
    return not any(read_at(clip, max(0, size_of(clip) - _TAIL), _TAIL))


def verify_clip(clip: VideoFile, expected: Span | None) -> float:
    """Check that a finished clip is an mp4 file with a video stream, decodes completely, and covers a span.

    Args:
        clip: the file.
        expected: span that the pictures must cover. None accepts any span, but requires all frames that the index
            lists.

    Returns:
        The seconds that the pictures cover.

    Raises:
        FetchError: the file is not that clip (CORRUPT).
    """
    if expected is None:
        check_container(clip)
    found, last = decode_span(clip)
    if expected is None:
        return found.duration
    if found.begin > expected.begin + TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the clip begins {found.begin - expected.begin:.2f} s late")
    # The last picture may be shown for longer than the clip lasts.
    if found.end < expected.end - TOLERANCE or last > expected.end + TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the clip lasts {found.end:.2f} s instead of {expected.end:.2f} s")
    return found.duration
