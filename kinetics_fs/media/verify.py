"""Verification of clips before they are published, at three levels of effort."""

from __future__ import annotations

from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.convert import ensure_mp4
from kinetics_fs.media.probe import MP4, TOLERANCE, Span, decode_span, demux, open_video, picture_of, stated_frames

_TAIL = 512
"""Bytes at the end of a file that are looked at."""


def check_clip(path: Path, level: VerifyLevel) -> float | None:
    """Verify a clip at a level. A video in another container than mp4 is converted first.

    Whatever the level, a file that is served as mp4 is no other known kind of file.

    Returns:
        The seconds that the pictures cover; None if the level does not measure them.

    Raises:
        FetchError: the file is not a clip, or is incomplete (CORRUPT), or cannot be written (LOCAL).
    """
    ensure_mp4(path, accept_unknown=level is VerifyLevel.NONE)
    if level is VerifyLevel.NONE:
        return None
    return check_container(path) if level is VerifyLevel.CONTAINER else verify_clip(path, None)


def check_container(clip: Path) -> float:
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


def _ends_with_zeros(clip: Path) -> bool:
    with clip.open("rb") as file:
        file.seek(max(0, clip.stat().st_size - _TAIL))
        return not any(file.read(_TAIL))


def verify_clip(clip: Path, expected: Span | None) -> float:
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
