"""A confined process that reads video files for another one: `python -m kinetics_fs.media.checker_process`.

`kinetics_fs.util.confined` describes the conversation. The errno of a failure is ENOMEM if the process has not enough
memory for the file.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.convert import convert, is_served_as_it_is
from kinetics_fs.media.cut import cut
from kinetics_fs.media.excerpt import find_excerpt
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.media.thumbnail import thumbnail
from kinetics_fs.media.verify import check_clip, check_container, verify_clip
from kinetics_fs.util import logs
from kinetics_fs.util.confined import MAX_FILE_SIZE, Opened, Operation, serve
from kinetics_fs.util.files import link_or_copy

_COPY = "input"
_CREATED = "clip.mp4"


def file_operations(opened: Opened) -> dict[str, Operation]:
    """Return the operations on files, by name. Each receives the descriptor of the file."""
    folder = opened.folder

    def check(file: int, level: str, accept_unknown: bool) -> tuple[str | None, float | None]:
        wanted = VerifyLevel(level)
        if is_served_as_it_is(file, accept_unknown=accept_unknown and wanted is VerifyLevel.NONE):
            return None, check_clip(file, wanted)
        convert(_copy(file, folder), folder / _CREATED)
        return _CREATED, check_clip(folder / _CREATED, wanted)

    def measure(file: int) -> float:
        return check_container(file)

    def decode(file: int) -> float:
        return verify_clip(file, None)

    def excerpt(file: int, start: int, end: int) -> tuple[float, float | None, bool]:
        media = find_excerpt(file, Path(), start, end)
        return media.start, media.length, media.whole

    def cut_clip(file: int, media: dict[str, Any], duration: float, max_height: int, exact: bool) -> tuple[str, float]:
        video = Media(**media | {"path": _copy(file, folder)})
        return _CREATED, cut_and_verify(video, duration, folder / _CREATED, max_height=max_height, exact=exact)

    def picture(file: int, width: int) -> str:
        with os.fdopen(os.dup(file), "rb") as video:
            video.seek(0)
            return base64.b64encode(thumbnail(video, width)).decode()

    return {
        "check": check,
        "measure": measure,
        "decode": decode,
        "excerpt": excerpt,
        "cut": cut_clip,
        "thumbnail": picture,
    }


def cut_and_verify(media: Media, duration: float, target: Path, *, max_height: int, exact: bool) -> float:
    """Cut a clip as `cut` does, verify it, and return the seconds that its pictures cover."""
    expected = expected_span(media, duration)
    cut(media, duration, target, ffmpeg=find_ffmpeg(), max_height=max_height, exact=exact)
    return verify_clip(target, expected)


def _copy(file: int, folder: Path) -> Path:
    """Give a file a path: ffmpeg cannot open what only this process has open."""
    path = folder / _COPY
    link_or_copy(file, path, max_size=MAX_FILE_SIZE, link=False)
    return path


def file_failure(_: str, error: Exception) -> FetchError:
    """Return the failure for an exception of a file operation."""
    if isinstance(error, OSError):
        return FetchError(
            FailureKind.LOCAL, f"cannot read or write the file: {error.strerror}", cause_errno=error.errno
        )
    # Neither FFmpeg nor PyAV says which exceptions a file from outside may cause.
    return FetchError(FailureKind.CORRUPT, f"the file does not decode: {type(error).__name__}: {error}")


def programs(_: Mapping[str, Any]) -> list[str]:
    """Return the paths of the programs that the operations run."""
    try:
        return [find_ffmpeg()]
    except FetchError:  # the operation that needs it fails with that error
        return []


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    serve(file_operations, file_failure, programs)
