"""Cutting of a clip out of a longer file: frame-exact by re-encoding, or fast by copying."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.probe import CLOCK, THREADS, TOLERANCE, demux, open_video, picture_of
from kinetics_fs.util.processes import NO_MEMORY

MAX_BITS_PER_SECOND = 6_000_000
"""Cap of the video bit rate. It keeps every cut clip smaller than the size that `vfs` reports for an unknown clip."""

DECODE = ("-threads", str(THREADS), "-filter_threads", str(THREADS))
"""Options of the input."""
ENCODE_PICTURE = (
    "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", "-threads", str(THREADS),
    "-maxrate", str(MAX_BITS_PER_SECOND), "-bufsize", str(MAX_BITS_PER_SECOND),
)  # fmt: skip
ENCODE_SOUND = ("-c:a", "aac", "-b:a", "128k", "-ac", "2")

_LEAD = 1.0
"""Seconds to seek before the clip. ffmpeg seeks by decoding time, and a keyframe that is decoded before the clip's
first frame may be shown after it."""

_UNINDEXED = {"mpegts", "mpeg"}
"""FFmpeg's demuxers in whose files a seek ends somewhere between two keyframes."""


class _Section(NamedTuple):
    """Where a clip is in a file. Times are in seconds from the beginning of the file."""

    stream: int
    """Index of the video stream."""
    indexed: bool
    """Whether a seek ends at a keyframe."""
    seek: float
    """Time to seek to: all pictures of the clip are decoded from there on."""
    begin: float | None
    """Time at which the first picture of the clip is shown, mostly before the start if no frame falls on it; None if
    the pictures begin after the start."""
    start: float
    """Start of the clip."""
    end: float
    """End of the clip."""
    shown_until: float
    """Time until which the clip's last picture is shown."""
    pause: float
    """Longest time in seconds for which the clip shows the same picture."""


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
    section = _find_section(media, duration)
    # A copy can neither begin between two frames nor change how long the last one is shown.
    early = 0.0 if section.begin is None else media.start - section.begin
    if exact or early > TOLERANCE or section.pause > TOLERANCE or not section.indexed:
        done = run_variable_rate(lambda option: _exact_command(media.path, section, target, ffmpeg, max_height, option))
    else:
        output = ["-t", f"{duration:.6f}", "-c", "copy"]
        done = run_ffmpeg(_command(media.path, section.stream, media.start, target, ffmpeg, output))
    if done.returncode == 0:
        return
    raise_failure(done, "cut the clip")


def _find_section(media: Media, duration: float) -> _Section:
    """Find a clip in a file.

    Raises:
        FetchError: the file is not a video (CORRUPT).
    """
    with open_video(media.path) as container:
        stream, indexed = picture_of(container).index, container.format.name not in _UNINDEXED
        packets = demux(container)
    start, end = media.start, media.start + duration
    begin = packets.first_of(start)
    target = start if begin is None else min(start, begin)
    seek = target - _LEAD
    # The demuxer seeks to the last keyframe that is decoded before that time. With a low or variable frame rate, such a
    # keyframe may be shown only seconds later.
    seek = min([seek, *(decoded - CLOCK for decoded, shown in packets.keyframes if shown > target + CLOCK)])
    times = [time for time in packets.times if target <= time < end - CLOCK]
    shown_until = min(end, max(packets.end, media.end or 0.0))
    pause = max((after - before for before, after in pairwise([*times, shown_until])), default=0.0)
    return _Section(stream, indexed, max(0.0, seek) if indexed else 0.0, begin, start, end, shown_until, pause)


def raise_failure(done: subprocess.CompletedProcess[bytes], action: str) -> NoReturn:
    """Raise the error of an ffmpeg that failed.

    Args:
        done: the finished process.
        action: what ffmpeg was to do, as in "cut the clip".

    Raises:
        FetchError: there is no space (LOCAL), or the input is damaged or needs too much memory (CORRUPT).
    """
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    message = lines[-1][:200] if lines else f"status {done.returncode}"
    if any("No space left on device" in line for line in lines):
        raise FetchError(FailureKind.LOCAL, f"ffmpeg cannot write the clip: {message}", cause_errno=errno.ENOSPC)
    if any("Cannot allocate memory" in line for line in lines):
        raise FetchError(FailureKind.CORRUPT, NO_MEMORY, cause_errno=errno.ENOMEM)
    raise FetchError(FailureKind.CORRUPT, f"ffmpeg cannot {action}: {message}")


def _command(path: Path, stream: int, seek: float, target: Path, ffmpeg: str, output: list[str]) -> list[str]:
    # A seek to 0 may end at the second keyframe if the first one is shown later than 0.
    seeking = ["-ss", f"{seek:.6f}"] if seek else []
    return [
        ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-y",
        *DECODE, *seeking, "-i", f"file:{path}",
        "-map", f"0:{stream}", "-map", "0:a:0?", "-map_metadata", "-1", "-map_chapters", "-1",
        *output,
        "-movflags", "+faststart", "-f", "mp4", f"file:{target}",
    ]  # fmt: skip


def _exact_command(
    path: Path, section: _Section, target: Path, ffmpeg: str, max_height: int, rate_option: str
) -> list[str]:
    lead, end = section.start - section.seek, section.end - section.seek
    first = lead if section.begin is None else max(0.0, section.begin - section.seek - CLOCK)
    # Times are moved after encoding: since ffmpeg 7.1, the filters that move them forget how long frames are shown.
    start = f"{lead:.6f}/TB"
    shown, decoded = ("PTS", "DTS") if section.begin is None else (f"if(N,PTS,{start})", f"if(N,DTS,min(DTS,{start}))")
    times, hold = f"pts='{shown}':dts='{decoded}'", []
    if section.pause > TOLERANCE / 2:
        # The muxer would give the last frame the duration of the one before. Without B-frames, the last packet is also
        # the last frame, and frames are decoded at the times at which they are shown.
        until = f"{section.shown_until - section.seek:.6f}/TB"
        times, hold = f"ts='{shown}':duration='if(eq(NEXT_PTS,NOPTS),{until}-({shown}),DURATION)'", ["-bf", "0"]
    output = [
        "-vf", f"trim=start={first:.6f}:end={end:.6f},scale=-2:'trunc(min({max_height},ih)/2)*2'",
        "-af", f"atrim=start={lead:.6f}:end={end:.6f}",
        # Frames keep their times, on a clock that every usual rate divides; otherwise some are doubled or dropped.
        rate_option, "vfr", "-enc_time_base", "1:90000",
        *ENCODE_PICTURE, *hold, "-bsf:v", f"setts={times}", *ENCODE_SOUND,
        "-output_ts_offset", f"{-lead:.6f}",
    ]  # fmt: skip
    return _command(path, section.stream, section.seek, target, ffmpeg, output)


def run_variable_rate(make_command: Callable[[str], list[str]]) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg with an option that keeps the times of frames, under the name that this ffmpeg knows.

    Args:
        make_command: returns the command line with the option of that name.

    Raises:
        FetchError: ffmpeg cannot be run (CONFIG).
    """
    done = run_ffmpeg(make_command("-fps_mode"))
    if b"fps_mode" in done.stderr:  # before ffmpeg 5.1
        done = run_ffmpeg(make_command("-vsync"))
    return done


def run_ffmpeg(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg to its end.

    Raises:
        FetchError: it cannot be run (CONFIG).
    """
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise FetchError(FailureKind.CONFIG, f"cannot run {command[0]}: {error.strerror}") from error
