"""Where the ffmpeg program is."""

from __future__ import annotations

import shutil

from kinetics_fs.errors import FailureKind, FetchError


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
