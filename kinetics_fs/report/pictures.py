"""Thumbnails of some cached clips, spread evenly over the classes."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from typing import IO, NamedTuple

import av

from kinetics_fs.catalog import Catalog, Clip, Directory
from kinetics_fs.errors import FetchError
from kinetics_fs.media.probe import find_picture
from kinetics_fs.store import Store, class_pages

_WIDTH = 208
_TALLEST = 2 * _WIDTH
_QUALITY = "6"  # of JPEG, from 2 (best) to 31
_MOST_PIXELS = str(64 * 10**6)
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Container formats that are decoded. Other formats can make FFmpeg open further files, or the network."""


class Picture(NamedTuple):
    """A thumbnail of a clip."""

    split: str
    label: str
    clip: Clip
    size: int
    source: str
    jpeg: bytes
    """Empty if the clip cannot be decoded."""
    fault: str
    """Why it cannot be decoded; empty if it can."""

    @property
    def address(self) -> str:
        """The thumbnail as a `data:` URL."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def pictures(catalog: Catalog, store: Store, cached: Mapping[tuple[str, str], int], count: int) -> Iterator[Picture]:
    """Yield thumbnails of cached clips, without updating the access times of the clips.

    Args:
        catalog: the selection.
        store: the cache.
        cached: number of cached clips for each pair of split and label.
        count: maximum number of thumbnails.
    """
    directories = [
        (directory, cached[split.split, directory.label or ""])
        for split in catalog.splits()
        for directory in catalog.classes(split)
        if cached.get((split.split, directory.label or ""))
    ]
    for directory, wanted in _evenly(directories, count).items():
        for clip in islice(_cached_clips(catalog, store, directory), wanted):
            if (picture := _thumbnail(store, directory, clip)) is not None:
                yield picture


def _evenly(directories: Sequence[tuple[Directory, int]], count: int) -> Counter[Directory]:
    """Distribute `count` thumbnails over the directories, none more than it has clips; in the order given."""
    if len(directories) > count:
        directories = [directories[turn * len(directories) // count] for turn in range(count)]
    turns = (directory for turn in range(count) for directory, most in directories if turn < most)
    shares = Counter(islice(turns, count))
    return Counter({directory: shares[directory] for directory, _ in directories if shares[directory]})


def _cached_clips(catalog: Catalog, store: Store, directory: Directory) -> Iterator[Clip]:
    for page in class_pages(catalog, store, directory):
        yield from (entry.clip for entry in page.entries if page.is_cached(entry))


def _thumbnail(store: Store, directory: Directory, clip: Clip) -> Picture | None:
    jpeg, fault = b"", ""
    size, source = 0, ""
    try:
        found = store.peek(clip)
        if found is None:  # evicted in the meantime
            return None
        size, source = found.size, found.record.source
        with os.fdopen(found.fd, "rb") as file:
            jpeg = _jpeg(file)
    except FileNotFoundError:
        fault = "the file is missing"
    except (FetchError, OSError, ValueError) as error:  # the errors of PyAV are an OSError or a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        fault = f"cannot decode the file: {reason}"
    return Picture(directory.split, directory.label or "", clip, size, source, jpeg, fault)


def _jpeg(file: IO[bytes]) -> bytes:
    """Return a frame from the middle of a video, or its first frame, as a small JPEG.

    Raises:
        OSError: no frame can be decoded.
        ValueError: no frame can be decoded, or the file has no video stream.
    """
    frame = None
    with av.open(file, "r", options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
        stream = find_picture(container)
        if stream is None:
            raise ValueError("no video stream")
        stream.codec_context.options = {"max_pixels": _MOST_PIXELS}
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
    height = max(2, min(round(_WIDTH * frame.height / frame.width), _TALLEST) // 2 * 2)
    small = frame.reformat(_WIDTH, height, "yuvj420p")
    small.pts = 0
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = small.width, small.height, "yuvj420p"
    encoder.time_base = Fraction(1)
    encoder.options = {"qmin": _QUALITY, "qmax": _QUALITY}
    return b"".join(bytes(packet) for packet in [*encoder.encode(small), *encoder.encode(None)])
