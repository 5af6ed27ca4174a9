"""Probing of video files: container, number of frames, and the time span that the pictures cover."""

from __future__ import annotations

import bisect
import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.util.processes import NO_MEMORY

TOLERANCE = 0.2
"""Seconds by which a clip may be shorter or longer than requested: a few frames at any usual rate."""

_ROUNDING = 1.5
"""Seconds by which a stated duration may differ from the end of the last frame. Sites round durations, and sound often
runs longer than the pictures."""


class Span(NamedTuple):
    """The time from the first picture to the end of the last one, in seconds."""

    begin: float
    end: float

    @property
    def duration(self) -> float:
        """Its length, to the millisecond."""
        return round(max(0.0, self.end - self.begin), 3)


CLOCK = 0.0015
"""Seconds by which a time may be rounded: Matroska and FLV count milliseconds."""

_WAIT = 0.05
"""Seconds after which the next picture may be shown for a clip to begin with it. Frames that belong to the start of a
clip often come so late, because encoded sound begins up to 50 ms before the pictures."""

MP4 = "mov"
"""FFmpeg's demuxer for mp4 and its relatives. Clips are published only in this format."""

VIDEO_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,nut"
"""FFmpeg's demuxers for containers of video. Others open pictures, or further files and the network (playlists)."""

THREADS = min(8, (os.cpu_count() or 1) + 1)
"""Threads with which a file is decoded or encoded. Each needs memory for frames of its own."""

_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpegls", "jpeg2000"}
_PICTURE_BRANDS = ("avif", "avis", "heic", "heix", "mif1", "msf1")
"""Brands of picture files in mp4's format (ISO/IEC 23008-12)."""


class Packets(NamedTuple):
    """The video packets of a file. Times are in seconds from the beginning of the container.

    Attributes:
        frames: number of packets, one for each frame.
        times: times at which the pictures are shown, in ascending order, without those that an edit list hides.
        keyframes: decoding and display time of each keyframe.
        end: time at which the last picture ends.
    """

    frames: int
    times: list[float]
    keyframes: list[tuple[float, float]]
    end: float

    @property
    def begin(self) -> float:
        """The time at which the first picture is shown; infinite if there is none."""
        return self.times[0] if self.times else math.inf

    @property
    def duration(self) -> float:
        """The seconds that the pictures cover, to the millisecond."""
        return Span(self.begin, self.end).duration

    def first_of(self, start: float) -> float | None:
        """Return the time at which the first picture of a clip is shown.

        It is the picture that is on screen at the start of the clip, whenever it appeared, or the next one if that
        follows at once.

        Returns:
            The time; None if no picture is shown at the start.
        """
        index = bisect.bisect_right(self.times, start + CLOCK)
        if index < len(self.times) and self.times[index] - start <= _WAIT:
            on_screen = index and self.times[index - 1] >= start - CLOCK
            return self.times[index - 1] if on_screen else self.times[index]
        return self.times[index - 1] if index else None


VideoFile = Path | int
"""A video file: its path, or a descriptor, whose position changes."""


def read_at(file: VideoFile, offset: int, size: int) -> bytes:
    """Return up to `size` bytes of a file from an offset."""
    if isinstance(file, int):
        return os.pread(file, size, offset)
    with file.open("rb") as opened:
        return os.pread(opened.fileno(), size, offset)


def size_of(file: VideoFile) -> int:
    """Return the size of a file in bytes."""
    return os.stat(file).st_size  # noqa: PTH116  # or a descriptor


@contextmanager
def open_video(file: VideoFile, *, formats: str = VIDEO_FORMATS) -> Iterator[InputContainer]:
    """Open a file that has a video stream.

    Args:
        file: the file.
        formats: FFmpeg's demuxers to try, separated by commas.

    Raises:
        FetchError: the file, or something that is read from it in the context, cannot be parsed or decoded, or the
            file has no video stream (CORRUPT). The errno is that of the system's error, if there was one: ENOMEM if the
            file needs more memory than this process has.
    """
    demuxer = None if "," in formats else formats
    url, options = f"file:{file}", {"format_whitelist": formats}
    if isinstance(file, int):
        os.lseek(file, 0, os.SEEK_SET)
        url, options = "fd:", options | {"fd": str(file)}
    with (
        corrupt_if_unreadable(),
        av.open(
            url,
            format=demuxer,
            options=options,
            metadata_errors="replace",  # titles are in any encoding
        ) as container,
    ):
        if find_picture(container) is None:
            raise FetchError(FailureKind.CORRUPT, "the file has no video stream")
        if container.metadata.get("major_brand", "").strip() in _PICTURE_BRANDS:
            raise FetchError(FailureKind.CORRUPT, "the file is a picture, not a video")
        yield container


@contextmanager
def corrupt_if_unreadable() -> Iterator[None]:
    """Turn the errors of PyAV, which reads a file in the context, into a `FetchError` (CORRUPT); see `open_video`."""
    try:
        yield
    except FetchError:
        raise
    except MemoryError as error:
        raise FetchError(FailureKind.CORRUPT, NO_MEMORY, cause_errno=errno.ENOMEM) from error
    except av.FFmpegError as error:
        reason = error.strerror or str(error)
        number = error.errno if isinstance(error, OSError) else None
        raise FetchError(FailureKind.CORRUPT, f"the file does not decode: {reason}", cause_errno=number) from error
    except (ValueError, LookupError, ArithmeticError, AttributeError) as error:  # PyAV's, for values out of range
        raise FetchError(FailureKind.CORRUPT, f"the file does not decode: {error}") from error


def find_picture(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is neither a cover picture nor a thumbnail; None if there is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    moving = (stream for stream in streams if not _is_still(stream))
    return next(moving, streams[0] if streams else None)


def picture_of(container: InputContainer) -> VideoStream:
    """Return the video stream of a file that `open_video` opened."""
    stream = find_picture(container)
    assert stream is not None
    return stream


def _is_still(stream: VideoStream) -> bool:
    """Return whether a stream is a single picture, such as a cover that is not marked as one."""
    # The codec is unknown if FFmpeg was built without it.
    codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
    return codec == "unknown" or (codec in _PICTURE_CODECS and max(stream.frames, len(stream.index_entries)) <= 1)


def stated_frames(stream: VideoStream) -> int:
    """Return the number of frames that the index of a file lists; 0 if the file has no complete index.

    FFmpeg applies edit lists to the index. The header also counts the frames that an edit list leaves out.
    """
    return min(stream.frames, len(stream.index_entries))


def demux(container: InputContainer) -> Packets:
    """Read all packets of the video stream without decoding them."""
    stream = picture_of(container)
    tick, begin = float(stream.time_base or 0), (container.start_time or 0) / av.time_base
    count, last, end = 0, -math.inf, 0.0
    times: list[float] = []
    keyframes: list[tuple[float, float]] = []
    for packet in container.demux(stream):
        shown = packet.pts if packet.pts is not None else packet.dts
        if shown is None or not packet.size:
            continue
        count += 1
        time = shown * tick - begin
        if packet.is_keyframe:
            keyframes.append(((packet.dts if packet.dts is not None else shown) * tick - begin, time))
        if packet.is_discard:
            continue
        times.append(time)
        if time >= last:
            last, end = time, time + (packet.duration or 0) * tick
    times.sort()
    return Packets(count, times, keyframes, end)


def expected_span(media: Media, duration: float, file: VideoFile | None = None) -> Span:
    """Check fetched media before they are cut, and return the span that the clip's pictures must cover.

    The span is shorter than requested only if the video is complete and ends before the clip does, as some in Kinetics
    do. A download that was interrupted must not pass for a short video.

    Args:
        media: file from which the clip is to be cut.
        duration: requested duration of the clip in seconds.
        file: the file as it is read; None for its path.

    Returns:
        The span, in seconds from the beginning of the clip.

    Raises:
        FetchError: the file is not a video, or the download ended before the clip does (CORRUPT); or the complete video
            ends before the clip begins (GONE).
    """
    with open_video(media.path if file is None else file) as container:
        stated_number = stated_frames(picture_of(container))
        begin = max(0.0, (container.start_time or 0) / av.time_base)
        header = 0.0 if media.part else (container.duration or 0) / av.time_base - begin
        packets = demux(container)
    if not packets.times:
        raise FetchError(FailureKind.CORRUPT, "the video has no frames")
    count, end = packets.frames, max(packets.end, media.end or 0.0)
    stated = max(header, media.length or 0.0)
    # A header that counts frames (mp4) proves completeness exactly. Otherwise the stated durations decide.
    counted = count >= stated_number and stated - header <= _ROUNDING
    complete = counted if stated_number else stated - end <= _ROUNDING
    if not complete and end < media.start + duration:
        raise FetchError(FailureKind.CORRUPT, f"the download ended after {end:.1f} of {stated:.1f} s")
    if end <= TOLERANCE:
        raise FetchError(FailureKind.CORRUPT, f"the video lasts only {end:.1f} s")
    if media.start >= end - TOLERANCE:
        raise FetchError(
            FailureKind.GONE, f"the video ends after {end:.1f} s, before the clip begins at {media.start:.1f} s"
        )
    return Span(max(0.0, packets.begin - media.start), min(duration, end - media.start))


def decode_span(file: VideoFile) -> tuple[Span, float]:
    """Decode every frame of an mp4 file.

    Returns:
        The span of the pictures, and the time at which the last picture begins, both in seconds.

    Raises:
        FetchError: a frame does not decode, or there is none (CORRUPT).
    """
    begin, last, end = math.inf, 0.0, 0.0
    with open_video(file, formats=MP4) as container:
        stream = picture_of(container)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        for frame in container.decode(stream):
            if frame.pts is not None and frame.time_base is not None:
                begin = min(begin, float(frame.pts * frame.time_base))
                last = max(last, float(frame.pts * frame.time_base))
                end = max(end, float((frame.pts + (frame.duration or 0)) * frame.time_base))
    if begin == math.inf:
        raise FetchError(FailureKind.CORRUPT, "no frame of the clip decodes")
    return Span(begin, end), last
