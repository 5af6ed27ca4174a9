"""The ffmpeg program: its path, and a test of its encoders."""

from __future__ import annotations

import shutil
import subprocess

from kinetics_fs.errors import FailureKind, FetchError

_TIMEOUT = 15.0
"""Seconds that encoding a few frames may take."""


def find_ffmpeg() -> str:
    """Return the absolute path of ffmpeg: the one on PATH, otherwise the one in the package imageio-ffmpeg.

    Raises:
        FetchError: neither exists (CONFIG).
    """
    system = shutil.which("ffmpeg")
    if system is not None:
        return system
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise FetchError(
            FailureKind.CONFIG, "cannot find ffmpeg: install the system's package or the Python package imageio-ffmpeg"
        ) from error


def missing_encoders(ffmpeg: str) -> list[str]:
    """Return the encoders that cutting needs and this ffmpeg lacks. Each is tested by encoding a few frames.

    Args:
        ffmpeg: path of the program.

    Raises:
        OSError: the program cannot be run.
        subprocess.TimeoutExpired: the program does not end within 15 seconds.
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
            timeout=_TIMEOUT,
            check=False,
        ).returncode
    ]
