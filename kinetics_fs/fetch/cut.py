"""Cutting a clip out of a longer file: frame-exact, by re-encoding."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import Media

MOST_BITS_PER_SECOND = 6_000_000
"""Cap of the video's rate. With it a clip is always smaller than `vfs` says of one that it does not know yet."""


def cut(media: Media, duration: float, target: Path, *, ffmpeg: str, max_height: int) -> None:
    """Cuts `duration` seconds out of `media` into an mp4 (h264, aac) whose index stands in front.

    A stream copy would be quicker, but it begins at a keyframe: up to several seconds early, hidden by an edit list
    that half of the readers ignore.

    Raises:
        FetchError: ffmpeg cannot be run (CONFIG), cannot read the media (CORRUPT) or not write (LOCAL).
    """
    done = _run(_command(media, duration, target, ffmpeg, max_height, "-fps_mode"))
    if b"fps_mode" in done.stderr:
        done = _run(_command(media, duration, target, ffmpeg, max_height, "-vsync"))  # before ffmpeg 5.1
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    said = lines[-1][:200] if lines else f"status {done.returncode}"
    if any("No space left on device" in line for line in lines):
        raise FetchError(FailureKind.LOCAL, f"ffmpeg: {said}", errno=errno.ENOSPC)
    raise FetchError(FailureKind.CORRUPT, f"ffmpeg could not cut the clip: {said}")


def _command(media: Media, duration: float, target: Path, ffmpeg: str, max_height: int, rate_option: str) -> list[str]:
    return [
        ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-y",
        "-ss", f"{media.start:.6f}", "-i", f"file:{media.path}", "-t", f"{duration:.6f}",
        "-map", "0:v:0", "-map", "0:a:0?", "-map_metadata", "-1", "-map_chapters", "-1",
        "-vf", f"scale=-2:'trunc(min({max_height},ih)/2)*2'",
        # Frames keep their times, on a clock that every usual rate divides: else some are doubled or dropped.
        rate_option, "vfr", "-enc_time_base", "1:90000",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p",
        "-maxrate", str(MOST_BITS_PER_SECOND), "-bufsize", str(MOST_BITS_PER_SECOND),
        "-c:a", "aac", "-b:a", "128k", "-ac", "2",
        "-movflags", "+faststart", "-f", "mp4", f"file:{target}",
    ]  # fmt: skip


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise FetchError(FailureKind.CONFIG, f"cannot run {command[0]}: {error.strerror}") from error
