"""Media in segments (HLS, DASH): only those of a section, put together as a file of their own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin

import av
import m3u8
from av.container import InputContainer
from yt_dlp import YoutubeDL

from kinetics_fs.sources.http_range import Pace, download

_LARGEST_PLAYLIST = 16 * 1024**2
"""Bytes. That of a ten-hour video has about one million."""
_ENOUGH_TO_BEGIN = 64 * 1024
"""Bytes of the first segment that tell the time at which the media begin."""
_MARGIN = 1.0
"""Seconds by which the lengths in a playlist, added up, may be wrong."""


class NoSegments(Exception):
    """The list of segments does not say what is needed to take only some of them."""


class Segment(NamedTuple):
    """A piece of the media.

    Attributes:
        url: where it is.
        window: the bytes of that file; None for all.
        seconds: how long it lasts.
    """

    url: str
    window: range | None
    seconds: float


class Segments:
    """Media in segments.

    Args:
        segments: in their order.
        beginning: what has to stand before any of them; None for nothing.
        get: fetches one.
    """

    def __init__(self, segments: list[Segment], beginning: Segment | None, get: _Get) -> None:
        if not segments or any(not segment.seconds > 0 for segment in segments):
            raise NoSegments("the segments have no lengths")
        self._segments = segments
        self._ends = list(accumulate(segment.seconds for segment in segments))
        self._beginning = beginning
        self._get = get

    @classmethod
    def of_playlist(cls, ytdlp: YoutubeDL, url: str, headers: Mapping[str, str], pace: Pace) -> Self:
        """Those of a media playlist of HLS (RFC 8216).

        Raises:
            NoSegments: it is none, is still growing, is encrypted, or was put together of several recordings.
            FetchError: it cannot be had.
        """
        get = _Get(ytdlp, headers, pace)
        try:
            playlist = m3u8.loads(get(Segment(url, None, 0.0), _LARGEST_PLAYLIST).decode())
        except ValueError as error:
            raise NoSegments("not a playlist") from error
        maps = {(one.uri, one.byterange) for one in playlist.segment_map}
        if (
            playlist.is_variant
            or not playlist.is_endlist
            or any(playlist.keys)
            or any(segment.discontinuity for segment in playlist.segments)
            or len(maps) > 1
        ):
            raise NoSegments("the playlist is not a plain list of segments")
        segments: list[Segment] = []
        for segment in playlist.segments:
            before = segments[-1] if segments else None
            place = urljoin(url, segment.uri or "")
            segments.append(Segment(place, _window(segment.byterange, place, before), segment.duration or 0.0))
        beginning = next(
            (Segment(urljoin(url, uri or ""), _window(window, uri or "", None), 0.0) for uri, window in maps), None
        )
        return cls(segments, beginning, get)

    @classmethod
    def of_fragments(cls, ytdlp: YoutubeDL, info: Mapping[str, Any], pace: Pace) -> Self:
        """Those of a DASH manifest, as yt-dlp describes them in a format.

        Raises:
            NoSegments: it does not say how long they are.
        """
        base = str(info.get("fragment_base_url") or info.get("manifest_url") or "")
        segments = [
            Segment(
                urljoin(base, str(one.get("url") or one.get("path") or "")), None, float(one.get("duration") or 0.0)
            )
            for one in info["fragments"]
        ]
        beginning = segments.pop(0) if segments and not segments[0].seconds else None
        return cls(segments, beginning, _Get(ytdlp, info.get("http_headers") or {}, pace))

    @property
    def seconds(self) -> float:
        """How long the media last."""
        return self._ends[-1]

    def open(self, start: float, end: float) -> tuple[InputContainer, float]:
        """Fetches the segments of [start, end], both in seconds from the beginning of the media.

        Returns:
            They as one file, whose packets have the times of the whole media; and the time at which those begin.

        Raises:
            FetchError: one cannot be had.
            av.FFmpegError: they are no media.
        """
        first = next((place for place, until in enumerate(self._ends) if until > start - _MARGIN), len(self._ends) - 1)
        last = next((place for place, until in enumerate(self._ends) if until >= end + _MARGIN), len(self._ends) - 1)
        head = b"" if self._beginning is None else self._get(self._beginning)
        media = head + b"".join(self._get(segment) for segment in self._segments[first : last + 1])
        container = av.open(io.BytesIO(media), "r")
        if first == 0:
            return container, _begin(container)
        with av.open(io.BytesIO(head + self._get(self._segments[0], _ENOUGH_TO_BEGIN, whole=False)), "r") as origin:
            return container, _begin(origin)


class _Get:
    """Fetches segments."""

    def __init__(self, ytdlp: YoutubeDL, headers: Mapping[str, str], pace: Pace) -> None:
        self._ytdlp = ytdlp
        self._headers = headers
        self._pace = pace

    def __call__(self, segment: Segment, limit: int = 0, *, whole: bool = True) -> bytes:
        return download(
            self._ytdlp, segment.url, self._headers, self._pace, window=segment.window, limit=limit, whole=whole
        )


def _window(text: str | None, place: str, before: Segment | None) -> range | None:
    """`length[@begin]`: without a beginning it follows the piece before it."""
    if not text:
        return None
    length, _, begin = text.strip('"').partition("@")
    try:
        if begin:
            return range(int(begin), int(begin) + int(length))
        if before is not None and before.window is not None and before.url == place:
            return range(before.window.stop, before.window.stop + int(length))
    except ValueError:
        pass
    raise NoSegments("a segment's range of bytes makes no sense")


def _begin(container: InputContainer) -> float:
    return max(0.0, (container.start_time or 0) / av.time_base)
