"""Cutting a clip out of a longer file: frame-exact, by re-encoding; or quickly, by copying."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import Media

MOST_BITS_PER_SECOND = 6_000_000
"""Cap of the video's rate. With it a clip is always smaller than `vfs` says of one that it does not know yet."""


_LEAD = 1.0
"""Seconds to seek before the clip. ffmpeg seeks by the time of decoding: a keyframe may be decoded before the clip's
first frames, and be shown after them."""


def cut(media: Media, duration: float, target: Path, *, ffmpeg: str, max_height: int, exact: bool = True) -> None:
    """Cuts `duration` seconds out of `media` into an mp4 (h264, aac) whose index stands in front.

    Unless it is to be `exact`, the streams are copied as they are. That is quicker, but begins at a keyframe: up to
    several seconds early, hidden by an edit list that half of the readers ignore.

    Raises:
        FetchError: ffmpeg cannot be run (CONFIG), cannot read the media (CORRUPT) or not write (LOCAL).
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
    said = lines[-1][:200] if lines else f"status {done.returncode}"
    if any("No space left on device" in line for line in lines):
        raise FetchError(FailureKind.LOCAL, f"ffmpeg: {said}", errno=errno.ENOSPC)
    raise FetchError(FailureKind.CORRUPT, f"ffmpeg could not cut the clip: {said}")


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
        # Frames keep their times, on a clock that every usual rate divides: else some are doubled or dropped.
        rate_option, "vfr", "-enc_time_base", "1:90000",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p",
        "-maxrate", str(MOST_BITS_PER_SECOND), "-bufsize", str(MOST_BITS_PER_SECOND),
        "-c:a", "aac", "-b:a", "128k", "-ac", "2",
    ]  # fmt: skip
    return _command(media.path, media.start - lead, target, ffmpeg, output)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise FetchError(FailureKind.CONFIG, f"cannot run {command[0]}: {error.strerror}") from error
