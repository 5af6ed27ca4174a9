"""Videos in which every frame carries its own number, so that tests can check a cut to the frame.

A strip along the top edge (1/15 of the height) holds 26 cells of equal width, black or white, from left to
right:

====== ==============================================================
cells  meaning
====== ==============================================================
1      white; with the last cell, the reference for white and black
16     the frame's number, most significant bit first
8      a checksum of the number: the low byte of its CRC-32
1      black
====== ==============================================================

The cells are large, and their positions are relative to the picture, so that the strip survives a lossy re-encode and
any scaling. It does not survive the blending of two frames, on purpose: a blended cell is neither black nor white.
"""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame

_NUMBER_BITS = 16
_CHECK_BITS = 8
_CELLS = 1 + _NUMBER_BITS + _CHECK_BITS + 1
_STRIP_SHARE = 15
_WHITE, _BLACK = 255, 0

_READ_WIDTH, _READ_HEIGHT = 4 * _CELLS, 4 * _STRIP_SHARE
"""The size to which frames are scaled for reading; a cell is then four by four pixels."""

_MIN_CONTRAST = 64
"""Smallest difference of the reference cells, of 255; below it, the frame has no strip."""
_GREY_ZONE = (0.35, 0.65)
"""Range between black (0) and white (1) in which a cell counts as neither."""


def make_video(
    path: Path,
    *,
    seconds: float,
    ffmpeg: str,
    rate: int = 25,
    width: int = 640,
    height: int = 360,
    gop: int | None = None,
    tone: int = 440,
    faststart: bool = True,
) -> None:
    """Write an mp4 (h264, aac) of numbered frames, with a moving picture and a beep each second.

    Args:
        path: the file to write; an existing file is replaced. After a failure, no file is left.
        seconds: length, rounded to a whole number of frames, at most 65,536.
        ffmpeg: the program, by name or path; needs libx264.
        rate: frames per second.
        width: width in pixels; even, and at least 160.
        height: height in pixels; even, and at least 120.
        gop: exact number of frames from one key frame to the next; None for the encoder's default.
        tone: frequency of the sound in Hz.
        faststart: write the index before the media, as video hosts do; otherwise after it.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: ffmpeg failed; the message ends with its last line.
    """
    frames = round(seconds * rate)
    if not 1 <= frames <= 1 << _NUMBER_BITS:
        raise ValueError(
            f"{seconds} s at {rate} frames per second are {frames} frames; the range is 1 to {1 << _NUMBER_BITS}"
        )
    if width % 2 or height % 2 or width < 160 or height < 120:
        raise ValueError(f"{width}x{height} is odd, or too small for a readable strip")
    strip = height // (2 * _STRIP_SHARE) * 2
    duration = f"{frames / rate:.6f}"

    # The input of ffmpeg is a picture one pixel high with one pixel per cell, which ffmpeg enlarges, so that all strips
    # fit into one bytes object. The other inputs are longer: the video has exactly as many frames as strips.
    graph = (
        f"[0:v]scale={width}:{strip}:flags=neighbor,format=yuv420p,setsar=1[strip];"
        f"[1:v]format=yuv420p,setsar=1[picture];"
        f"[strip][picture]vstack=shortest=1[video]"
    )
    command = [ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{_CELLS}x1", "-r", str(rate), "-i", "pipe:0"]
    command += ["-f", "lavfi", "-i", f"testsrc2=size={width}x{height - strip}:rate={rate}"]
    command += ["-f", "lavfi", "-i", f"sine=frequency={tone}:beep_factor=4:sample_rate=44100:duration={duration}"]
    command += ["-filter_complex", graph, "-map", "[video]", "-map", "2:a"]
    command += ["-c:v", "libx264", "-preset", "superfast", "-crf", "26", "-pix_fmt", "yuv420p"]
    if gop is not None:
        command += ["-g", str(gop), "-keyint_min", str(gop), "-sc_threshold", "0"]
    command += ["-c:a", "aac", "-b:a", "64k"]
    if faststart:
        command += ["-movflags", "+faststart"]
    # Without "file:", ffmpeg reads a colon in a name as a protocol and a leading dash as an option.
    command += ["-f", "mp4", f"file:{path.absolute()}"]
    strips = b"".join(_cells(number) for number in range(frames))
    try:
        run = subprocess.run(command, input=strips, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise RuntimeError(f"cannot run {ffmpeg}: {error.strerror}") from error
    if run.returncode:
        if path.is_file():
            path.unlink()
        lines = run.stderr.decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {run.returncode}")
        raise RuntimeError(f"cannot make {path} with ffmpeg: {last}")


def frame_numbers(path: Path) -> list[int]:
    """Return the number on each frame of a video, in presentation order.

    Raises:
        ValueError: a frame has no readable strip.
        av.FFmpegError: the file is damaged, or not a video.
    """
    import av  # lazy: loading FFmpeg's libraries takes longer than the rest of the demo
    from av.video.reformatter import VideoReformatter

    with av.open(f"file:{path.absolute()}") as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        scaler = VideoReformatter()
        numbers: list[int] = []
        for frame in container.decode(stream):
            number = _read(scaler.reformat(frame, _READ_WIDTH, _READ_HEIGHT, "gray", interpolation="AREA"))
            if number is None:
                raise ValueError(f"frame {len(numbers)} of {path} has no readable number")
            numbers.append(number)
        return numbers


def _bits(number: int) -> str:
    """Return the binary digits of the number and its checksum."""
    check = zlib.crc32(number.to_bytes(2, "big")) & 0xFF
    return f"{number:0{_NUMBER_BITS}b}{check:0{_CHECK_BITS}b}"


def _cells(number: int) -> bytes:
    """Return the strip of one frame, one grey level per cell."""
    return bytes(_WHITE if bit == "1" else _BLACK for bit in f"1{_bits(number)}0")


def _read(picture: VideoFrame) -> int | None:
    """Return the number on a frame of size `_READ_WIDTH` by `_READ_HEIGHT`; None if it is not readable."""
    plane = picture.planes[0]
    pixels = memoryview(plane)
    # Compression blurs the edges of a cell: only its four middle pixels count.
    levels: list[float] = []
    for left in range(1, _READ_WIDTH, 4):
        middle = (pixels[row * plane.line_size + left + column] for row in (1, 2) for column in (0, 1))
        levels.append(sum(middle) / 4)

    white, black = levels[0], levels[-1]
    if white - black < _MIN_CONTRAST:
        return None
    shades = [(level - black) / (white - black) for level in levels[1:-1]]
    if any(_GREY_ZONE[0] < shade < _GREY_ZONE[1] for shade in shades):
        return None
    digits = "".join("1" if shade > 0.5 else "0" for shade in shades)
    number = int(digits[:_NUMBER_BITS], 2)
    return number if digits == _bits(number) else None
