"""Cutting of a clip out of a longer file: frame-exact by re-encoding, or fast by copying."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media

MAX_BITS_PER_SECOND = 6_000_000
"""Cap of the video bit rate. It keeps every cut clip smaller than the size that `vfs` reports for an unknown clip."""

_LEAD = 1.0
"""Seconds to seek before the clip. ffmpeg seeks by decoding time, and a keyframe that is decoded before the clip's
first frame may be shown after it."""


def cut(media: Media, duration: float, target: Path, *, ffmpeg: str, max_height: int, exact: bool = True) -> None:
    """Cut a clip into an mp4 file (h264, aac) with its index in front.

    Args:
        media: file from which to cut, and where in it the clip begins.
        duration: duration of the clip in seconds.
        target: file to create; an existing one is overwritten.
        ffmpeg: path of the ffmpeg program.
        max_height: maximum height of the picture in lines; taller ones are scaled down.
        exact: re-encode, so that the clip begins at the exact frame. Otherwise the streams are copied. That is faster,
            but the copy begins at a keyframe up to several seconds early, and half of all readers ignore the edit list
            that hides these seconds.

    Raises:
        FetchError: ffmpeg cannot be run (CONFIG), cannot read the media (CORRUPT) or cannot write (LOCAL).
    """
    if exact:
        done = _run(_exact_command(media, duration, target, ffmpeg, max_height, "-fps_mode"))
        if b"fps_mode" in done.stderr:  # before ffmpeg 5.1
            done = _run(_exact_command(media, duration, target, ffmpeg, max_height, "-vsync"))
    else:
        done = _run(_command(media.path, media.start, target, ffmpeg, ["-t", f"{duration:.6f}", "-c", "copy"]))
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    message = lines[-1][:200] if lines else f"status {done.returncode}"
    if any("No space left on device" in line for line in lines):
        raise FetchError(FailureKind.LOCAL, f"ffmpeg cannot write the clip: {message}", errno=errno.ENOSPC)
    raise FetchError(FailureKind.CORRUPT, f"ffmpeg cannot cut the clip: {message}")


def _command(path: Path, seek: float, target: Path, ffmpeg: str, output: list[str]) -> list[str]:
    return [
        ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-y",
        "-ss", f"{seek:.6f}", "-i", f"file:{path}",
        "-map", "0:v:0", "-map", "0:a:0?", "-map_metadata", "-1", "-map_chapters", "-1",
        *output,
        "-movflags", "+faststart", "-f", "mp4", f"file:{target}",
    ]  # fmt: skip


def _exact_command(
    media: Media, duration: float, target: Path, ffmpeg: str, max_height: int, rate_option: str
) -> list[str]:
    lead = min(_LEAD, media.start)
    span = f"trim=start={lead:.6f}:end={lead + duration:.6f}"
    output = [
        "-vf", f"{span},setpts=PTS-{lead:.6f}/TB,scale=-2:'trunc(min({max_height},ih)/2)*2'",
        "-af", f"a{span},asetpts=PTS-{lead:.6f}/TB",
        # Frames keep their times, on a clock that every usual rate divides; otherwise some are doubled or dropped.
        rate_option, "vfr", "-enc_time_base", "1:90000",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p",
        "-maxrate", str(MAX_BITS_PER_SECOND), "-bufsize", str(MAX_BITS_PER_SECOND),
        "-c:a", "aac", "-b:a", "128k", "-ac", "2",
    ]  # fmt: skip
    return _command(media.path, media.start - lead, target, ffmpeg, output)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise FetchError(FailureKind.CONFIG, f"cannot run {command[0]}: {error.strerror}") from error
