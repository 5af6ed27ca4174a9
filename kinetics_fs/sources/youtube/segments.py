"""Media in segments (HLS, DASH): the segments of a section, joined as one file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import accumulate, islice
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin

import av
import m3u8
from av.container import InputContainer
from yt_dlp import YoutubeDL

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.http_range import Pace, download

_MAX_PLAYLIST = 16 * 1024**2
"""Largest playlist in bytes. That of a ten-hour video has about one million."""
_MAX_SEGMENTS = 50_000
"""Most segments of a recording: a day of two seconds each. A list of more would fill the memory."""
_MAX_BYTES = 256 * 1024**2
"""Bytes of the segments of a section, which are in memory until they are demuxed."""
_START_BYTES = 64 * 1024
"""Bytes of the first segment that show the time at which the media begin."""
_MARGIN = 1.0
"""Seconds by which the sum of the durations in a playlist may be wrong."""


class NoSegments(Exception):
    """The list of segments does not have the information that is needed to read only some of them."""


class Segment(NamedTuple):
    """A part of the media.

    Attributes:
        url: address of a file.
        window: range of bytes of that file; None for the whole file.
        seconds: duration in seconds.
    """

    url: str
    window: range | None
    seconds: float


class Segments:
    """Media in segments.

    Args:
        segments: the segments, in order.
        header: segment that must precede any of them in a file; None if there is none.
        fetcher: fetches a segment.
    """

    def __init__(self, segments: list[Segment], header: Segment | None, fetcher: _SegmentFetcher) -> None:
        _check_number(len(segments))
        if not segments or any(not segment.seconds > 0 for segment in segments):
            raise NoSegments("the segments have no durations")
        self._segments = segments
        self._ends = list(accumulate(segment.seconds for segment in segments))
        self._header = header
        self._fetch = fetcher

    @classmethod
    def of_playlist(cls, ytdlp: YoutubeDL, url: str, headers: Mapping[str, str], pace: Pace) -> Self:
        """Fetch a media playlist of HLS (RFC 8216).

        Raises:
            NoSegments: the file is not a playlist, or the playlist is incomplete, encrypted, or joins several
                recordings.
            FetchError: the playlist cannot be fetched, or is too large (TRANSIENT).
        """
        fetcher = _SegmentFetcher(ytdlp, headers, pace)
        try:
            content = fetcher(Segment(url, None, 0.0), _MAX_PLAYLIST + 1, whole=False)
            if len(content) > _MAX_PLAYLIST:
                raise FetchError(FailureKind.TRANSIENT, f"the playlist is larger than {_MAX_PLAYLIST // 1024**2} MiB")
            text = content.decode()
            _check_number(text.count("#EXTINF"))
            playlist = m3u8.loads(text)
        except FetchError:
            raise
        except Exception as error:  # m3u8 passes unknown attributes on as arguments, for example
            raise NoSegments("the file is not a playlist") from error
        maps = {(one.uri, one.byterange) for one in playlist.segment_map if one}
        if (
            playlist.is_variant
            or not playlist.is_endlist
            or any(playlist.keys)
            or any(segment.discontinuity for segment in playlist.segments)
            or not all(playlist.segment_map)
            or len(maps) > 1
        ):
            raise NoSegments("the playlist is not a plain list of segments")
        segments: list[Segment] = []
        for segment in playlist.segments:
            previous = segments[-1] if segments else None
            address = urljoin(url, segment.uri or "")
            segments.append(Segment(address, _window(segment.byterange, address, previous), segment.duration or 0.0))
        header = next(
            (Segment(urljoin(url, uri or ""), _window(window, uri or "", None), 0.0) for uri, window in maps), None
        )
        return cls(segments, header, fetcher)

    @classmethod
    def of_fragments(cls, ytdlp: YoutubeDL, info: Mapping[str, Any], pace: Pace) -> Self:
        """Read the segments of a DASH manifest from yt-dlp's description of a format.

        Raises:
            NoSegments: the description does not give their durations.
            FetchError: there are too many segments (TRANSIENT).
        """
        base = str(info.get("fragment_base_url") or info.get("manifest_url") or "")
        segments = [
            Segment(
                urljoin(base, str(one.get("url") or one.get("path") or "")), None, float(one.get("duration") or 0.0)
            )
            for one in islice(info["fragments"], _MAX_SEGMENTS + 2)
        ]
        header = segments.pop(0) if segments and not segments[0].seconds else None
        return cls(segments, header, _SegmentFetcher(ytdlp, info.get("http_headers") or {}, pace))

    @property
    def seconds(self) -> float:
        """Duration of the media in seconds."""
        return self._ends[-1]

    def open(self, start: float, end: float) -> tuple[InputContainer, float]:
        """Fetch the segments of a section.

        Args:
            start: start of the section, in seconds from the beginning of the media.
            end: end of the section, in seconds from the beginning of the media.

        Returns:
            The segments as one file, whose packets have the times of the complete media, and the time at which the
            complete media begin.

        Raises:
            NoSegments: they are too large.
            FetchError: a segment cannot be fetched.
            av.FFmpegError: the segments are not media.
        """
        final = len(self._ends) - 1
        first = next((index for index, ends_at in enumerate(self._ends) if ends_at > start - _MARGIN), final)
        last = next((index for index, ends_at in enumerate(self._ends) if ends_at >= end + _MARGIN), final)
        head = b"" if self._header is None else self._fetch(self._header)
        media = io.BytesIO(head)
        media.seek(0, io.SEEK_END)
        for segment in self._segments[first : last + 1]:
            media.write(self._fetch(segment))
            if media.tell() > _MAX_BYTES:
                raise NoSegments("the segments of the section are too large")
        media.seek(0)
        container = av.open(media, "r")
        if first == 0:
            return container, _begin(container)
        with av.open(io.BytesIO(head + self._fetch(self._segments[0], _START_BYTES, whole=False)), "r") as origin:
            return container, _begin(origin)


class _SegmentFetcher:
    """Fetches segments."""

    def __init__(self, ytdlp: YoutubeDL, headers: Mapping[str, str], pace: Pace) -> None:
        self._ytdlp = ytdlp
        self._headers = headers
        self._pace = pace

    def __call__(self, segment: Segment, limit: int = 0, *, whole: bool = True) -> bytes:
        return download(
            self._ytdlp, segment.url, self._headers, self._pace, window=segment.window, limit=limit, whole=whole
        )


def _check_number(segments: int) -> None:
    if segments > _MAX_SEGMENTS:
        raise FetchError(FailureKind.TRANSIENT, f"the media are listed in more than {_MAX_SEGMENTS:,} segments")


def _window(text: str | None, url: str, previous: Segment | None) -> range | None:
    """Parse `length[@begin]`. Without a beginning, the range follows that of the previous segment."""
    if not text:
        return None
    length, _, begin = text.strip('"').partition("@")
    try:
        if begin:
            return range(int(begin), int(begin) + int(length))
        if previous is not None and previous.window is not None and previous.url == url:
            return range(previous.window.stop, previous.window.stop + int(length))
    except ValueError:
        pass
    raise NoSegments("the range of bytes of a segment is invalid")


def _begin(container: InputContainer) -> float:
    return max(0.0, (container.start_time or 0) / av.time_base)
