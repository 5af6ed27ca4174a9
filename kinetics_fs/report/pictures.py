"""A look into some of the clips that are here: a small picture of each, evenly over the classes."""

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
from kinetics_fs.store import Store

_PAGE = 4096  # clips looked at together
_WIDTH = 208
_TALLEST = 2 * _WIDTH
_QUALITY = "6"  # of JPEG, from 2 (best) to 31
_MOST_PIXELS = str(64 * 10**6)
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""What a clip may be in. Others lead ffmpeg on to further files, or to the network."""


class Picture(NamedTuple):
    """A clip, and how it looks."""

    split: str
    label: str
    clip: Clip
    size: int
    source: str
    jpeg: bytes
    """Empty if it cannot be shown."""
    fault: str
    """Why not."""

    @property
    def address(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def pictures(catalog: Catalog, store: Store, held: Mapping[tuple[str, str], int], number: int) -> Iterator[Picture]:
    """Pictures of clips that are here. To look at them does not count as a use.

    Args:
        catalog: the selection.
        store: where clips are.
        held: how many clips are here of a split and label.
        number: of pictures; there may be fewer clips.
    """
    places = [
        (place, held[split.split, place.label or ""])
        for split in catalog.splits()
        for place in catalog.classes(split)
        if held.get((split.split, place.label or ""))
    ]
    for place, wanted in _evenly(places, number).items():
        for clip in islice(_held_in(catalog, store, place), wanted):
            if (picture := _look(store, place, clip)) is not None:
                yield picture


def _evenly(places: Sequence[tuple[Directory, int]], number: int) -> Counter[Directory]:
    """How many of `number` each place gets, none more than it has; in the order of the places."""
    if len(places) > number:
        places = [places[turn * len(places) // number] for turn in range(number)]
    turns = (place for turn in range(number) for place, most in places if turn < most)
    shares = Counter(islice(turns, number))
    return Counter({place: shares[place] for place, _ in places if shares[place]})


def _held_in(catalog: Catalog, store: Store, place: Directory) -> Iterator[Clip]:
    for offset in range(0, place.clips, _PAGE):
        clips = [entry.clip for entry in catalog.entries(place, offset, _PAGE)]
        known = store.sizes([clip.key for clip in clips])
        yield from (clip for clip in clips if clip.key in known and known[clip.key].cached)


def _look(store: Store, place: Directory, clip: Clip) -> Picture | None:
    jpeg, fault = b"", ""
    size, source = 0, ""
    try:
        found = store.peek(clip)
        if found is None:  # evicted meanwhile
            return None
        size, source = found.size, found.record.source
        with os.fdopen(found.fd, "rb") as file:
            jpeg = _jpeg(file)
    except FileNotFoundError:
        fault = "it has no file"
    except (FetchError, OSError, ValueError) as error:  # those of PyAV are one of the latter two
        fault = f"it cannot be shown ({error.strerror})" if isinstance(error, OSError) else str(error)
    return Picture(place.split, place.label or "", clip, size, source, jpeg, fault)


def _jpeg(file: IO[bytes]) -> bytes:
    """A small picture out of the middle of a video, or, where there is none, its first.

    Raises:
        OSError, ValueError: there is none that can be decoded.
    """
    frame = None
    with av.open(file, "r", options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
        if not container.streams.video:
            raise ValueError("it has no pictures")
        stream = container.streams.video[0]
        stream.codec_context.options = {"max_pixels": _MOST_PIXELS}
        for place in ((container.duration or 0) // 2, 0):
            try:
                container.seek((container.start_time or 0) + place)
                frame = next(container.decode(stream), None)
            except (OSError, ValueError):
                if not place:
                    raise
            if frame is not None:
                break
    if frame is None:
        raise ValueError("it has no pictures")
    height = max(2, min(round(_WIDTH * frame.height / frame.width), _TALLEST) // 2 * 2)
    small = frame.reformat(_WIDTH, height, "yuvj420p")
    small.pts = 0
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = small.width, small.height, "yuvj420p"
    encoder.time_base = Fraction(1)
    encoder.options = {"qmin": _QUALITY, "qmax": _QUALITY}
    return b"".join(bytes(packet) for packet in [*encoder.encode(small), *encoder.encode(None)])
