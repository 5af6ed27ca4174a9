"""Thumbnails of video files."""

from __future__ import annotations

from fractions import Fraction
from typing import IO

import av

from kinetics_fs.media.probe import THREADS, corrupt_if_unreadable, find_picture

_QUALITY = "6"  # of JPEG, from 2 (best) to 31
_MOST_PIXELS = str(64 * 10**6)
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Container formats that are decoded. Other formats can make FFmpeg open further files, or the network."""


def thumbnail(file: IO[bytes], width: int) -> bytes:
    """Return a frame from the middle of a video, or its first frame, as a small JPEG.

    Raises:
        FetchError: no frame can be decoded, or the file has no video stream (CORRUPT).
    """
    with corrupt_if_unreadable():
        return _encode(_middle_frame(file), width)


def _middle_frame(file: IO[bytes]) -> av.VideoFrame:
    frame = None
    with av.open(file, "r", options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
        stream = find_picture(container)
        if stream is None:
            raise ValueError("no video stream")
        stream.codec_context.options = {"max_pixels": _MOST_PIXELS}
        stream.codec_context.thread_count = THREADS
        for offset in ((container.duration or 0) // 2, 0):
            try:
                container.seek((container.start_time or 0) + offset)
                frame = next(container.decode(stream), None)
            except (OSError, ValueError):
                if not offset:
                    raise
            if frame is not None:
                break
    if frame is None:
        raise ValueError("no frames")
    return frame


def _encode(frame: av.VideoFrame, width: int) -> bytes:
    height = max(2, min(round(width * frame.height / frame.width), 2 * width) // 2 * 2)
    small = frame.reformat(width, height, "yuvj420p")
    small.pts = 0
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = small.width, small.height, "yuvj420p"
    encoder.time_base = Fraction(1)
    encoder.options = {"qmin": _QUALITY, "qmax": _QUALITY}
    return b"".join(bytes(packet) for packet in [*encoder.encode(small), *encoder.encode(None)])
