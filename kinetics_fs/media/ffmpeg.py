"""Where the ffmpeg program is, and whether it will do."""

from __future__ import annotations

import shutil
import subprocess

from kinetics_fs.errors import FailureKind, FetchError

_PATIENCE = 15.0
"""Seconds for the least that ffmpeg can be asked to do."""


def find_ffmpeg() -> str:
    """Absolute path of ffmpeg: the system's where there is one, else the one in the imageio-ffmpeg package.

    Raises:
        FetchError: neither is there (CONFIG).
    """
    system = shutil.which("ffmpeg")
    if system is not None:
        return system
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise FetchError(
            FailureKind.CONFIG, "no ffmpeg program: install the system's ffmpeg, or the package imageio-ffmpeg"
        ) from error


def missing_encoders(ffmpeg: str) -> list[str]:
    """Which of the encoders that cutting takes this ffmpeg lacks, by encoding a little with each.

    Args:
        ffmpeg: its path.

    Raises:
        OSError: it cannot be run.
        subprocess.TimeoutExpired: it does not end.
    """
    picture, sound = bytes(64 * 64 * 3 // 2), bytes(44100 // 4 * 2)
    return [
        encoder
        for encoder, form, raw in (
            ("libx264", ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "64x64", "-i", "pipe:0", "-c:v"], picture),
            ("aac", ["-f", "s16le", "-ar", "44100", "-i", "pipe:0", "-c:a"], sound),
        )
        if subprocess.run(
            [ffmpeg, "-hide_banner", "-loglevel", "error", *form, encoder, "-f", "null", "-"],
            input=raw,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        ).returncode
    ]
