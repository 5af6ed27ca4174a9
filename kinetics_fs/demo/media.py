"""Videos in which every frame carries its own number, so that a cut can be proved to the frame.

A strip along the top edge (1/15 of the height) holds 26 cells of equal width, black or white, from left to
right:

====== ==============================================================
cells  meaning
====== ==============================================================
1      white: with the last cell, what white and black look like here
16     the frame's number, most significant bit first
8      a check of the number: the low byte of its CRC-32
1      black
====== ==============================================================

The cells are large and are read as a share of the picture, so the strip survives a lossy re-encode and any
scaling. What does not survive, on purpose, is blending: a cell halfway between two frames is neither black
nor white.
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
"""Pictures are read at this size, at which a cell is four pixels by four, whatever their own."""

_MIN_CONTRAST = 64
"""Of 255, between the two reference cells; what is flatter is a picture and not a strip."""
_GREY_ZONE = (0.35, 0.65)
"""Between black (0) and white (1), where a cell is neither."""


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
        path: the file to write; one that exists is replaced. Nothing is left there after a failure.
        seconds: length, rounded to a whole number of frames, of which there can be 65 536.
        ffmpeg: the program, by name or path; needs libx264.
        rate: frames a second.
        width: even, and at least 160.
        height: even, and at least 120.
        gop: frames from one key frame to the next, exactly; None leaves it to the encoder.
        tone: pitch in Hz.
        faststart: index before the media, as hosts of video do it; otherwise after it.

    Raises:
        ValueError: a number is out of bounds.
        RuntimeError: ffmpeg failed; the text is its last line.
    """
    frames = round(seconds * rate)
    if not 1 <= frames <= 1 << _NUMBER_BITS:
        raise ValueError(f"{seconds} s at {rate} frames a second are {frames} frames: 1 to {1 << _NUMBER_BITS} can be")
    if width % 2 or height % 2 or width < 160 or height < 120:
        raise ValueError(f"{width}x{height} is not even, or too small for a readable strip")
    strip = height // (2 * _STRIP_SHARE) * 2
    duration = f"{frames / rate:.6f}"

    # ffmpeg gets a picture one pixel high, a pixel per cell, and enlarges it: all strips together are small
    # enough to be one bytes object. They alone end the video, so it has exactly as many frames as strips.
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
    # "file:" keeps a colon or a dash in a name from being read as a protocol or an option.
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
        raise RuntimeError(f"ffmpeg could not make {path}: {last}")


def frame_numbers(path: Path) -> list[int]:
    """The number on each frame of a video, in the order in which they are shown.

    Raises:
        ValueError: a frame has no readable strip.
        av.FFmpegError: the file is no video, or is damaged.
    """
    import av  # here, because loading FFmpeg's libraries takes longer than all else in the demo
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
                raise ValueError(f"frame {len(numbers)} of {path} carries no readable number")
            numbers.append(number)
        return numbers


def _bits(number: int) -> str:
    """The number and its check, as the digits that the strip shows."""
    check = zlib.crc32(number.to_bytes(2, "big")) & 0xFF
    return f"{number:0{_NUMBER_BITS}b}{check:0{_CHECK_BITS}b}"


def _cells(number: int) -> bytes:
    """The strip of one frame, a grey level per cell."""
    return bytes(_WHITE if bit == "1" else _BLACK for bit in f"1{_bits(number)}0")


def _read(picture: VideoFrame) -> int | None:
    """The number on a frame that was scaled to `_READ_WIDTH` by `_READ_HEIGHT`, or None."""
    plane = picture.planes[0]
    pixels = memoryview(plane)
    # Four pixels by four are a cell. Its edges are blurred by compression: only the middle four count.
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
