"""A section of remote media: only the bytes that are needed to decode it.

FFmpeg's demuxers (by PyAV) find the way through the file: they read its index, and the packets from the last keyframe
before the section on. What they are going to ask for is told to the `RemoteFile` before, where it can be known.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.http_range import RemoteFile
from kinetics_fs.sources.youtube.segments import Segments

LONGEST_SECTION = 120
"""Seconds up to which a section is worth it: it is held in memory before it is written."""

_LEAD_FRAMES = 6
"""How many frames to seek before the section. Demuxers look for keyframes by the time of decoding, which may be a few
frames before that of showing: one that is decoded before the section may be shown after its first frames."""

_ROUNDING = 1.5
"""Seconds by which the length that a site tells may be more than that in the header."""

_MOST_BYTES = 512 * 1024**2
"""Of packets, held in memory."""

_MOST_BOXES = 16
"""To look at in search of the index of an mp4; real ones have it among the first three."""

_LARGEST_SPREAD = 1.5
"""How many times its own bytes a section may be spread over, to be fetched in one go."""


class NoSection(Exception):
    """The file does not allow to take only a part of it."""


def fetch_section(
    files: Sequence[RemoteFile | Segments], start: float, end: float, length: float | None, path: Path
) -> Media:
    """Fetches what is needed of [start, end] and writes it, not transcoded, as a file.

    Args:
        files: the media: one file, or one with the picture and one with the sound.
        start: seconds from the beginning of the media.
        end: the same.
        length: seconds that the whole media last, by what the site says.
        path: file to make. It is in the NUT format, which holds any codec and keeps times exactly.

    Raises:
        NoSection: a file does not allow it, or the section is too long.
        RangesIgnored: a server does not.
        FetchError: the files could not be read, or end before the section begins (GONE).
    """
    if end - start > LONGEST_SECTION:
        raise NoSection("too long")
    packets: list[Packet[Stream]] = []
    begins: list[float] = []
    size = 0
    try:
        with av.open(str(path), "w", format="nut") as target:
            containers: list[InputContainer] = []
            for file in files:
                if isinstance(file, Segments):
                    length = _length(length, file.seconds, None)
                    container, begin = file.open(start, end)
                else:
                    container = av.open(file, "r", options=_options(file))
                    begin = _begin(container)
                    for picture in container.streams.video[:1]:
                        length = _length(length, (container.duration or 0) / av.time_base, picture)
                containers.append(container)
                if length and start >= length:
                    raise FetchError(FailureKind.GONE, f"the video ends after {length:.1f} s, before the clip begins")
                streams: list[Stream] = [*container.streams.video[:1], *container.streams.audio[:1]]
                if len(files) > 1:
                    streams = streams[:1]
                copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
                if isinstance(file, RemoteFile):
                    _seek(container, file, streams, begin + start, begin + end)
                for packet in _packets(container, streams, begin + end):
                    size += packet.size
                    if size > _MOST_BYTES:
                        raise NoSection("too large")
                    packet.stream = copies[packet.stream.index]
                    packets.append(packet)
                begins.append(begin)
            if not packets:
                raise NoSection("nothing of the section is in it")
            packets.sort(key=_time)
            # No time may be negative in the file, as that of a first packet often is; a whole number of seconds is a
            # whole number of ticks.
            shift = -math.floor(_time(packets[0]))
            for packet in packets:
                _shift(packet, shift)
                target.mux(packet)
            packets.clear()
            for container in containers:
                container.close()
    except av.FFmpegError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(FailureKind.LOCAL, f"cannot write: {error.strerror}", errno=errno.ENOSPC) from error
        raise NoSection(f"the demuxer says: {error.strerror}") from error
    with av.open(str(path)) as written:
        first = (written.start_time or 0) / av.time_base
    zero = min(begins) + shift - first  # where the whole media begin, in seconds of this file
    return Media(path, start=zero + start, length=zero + length if length else None, part=True)


def _length(by_site: float | None, by_header: float, picture: Stream | None) -> float | None:
    """How many seconds there should be pictures for."""
    if by_site and by_site > by_header + _ROUNDING:
        return by_site  # not the file that the site speaks of, or not all of it
    if picture is not None and picture.duration and picture.time_base:
        return float(picture.duration * picture.time_base)  # sound may go on for longer
    return by_header or None


def _begin(container: InputContainer) -> float:
    """When the media begin, in their own time."""
    begin = (container.start_time or 0) / av.time_base
    for sound in container.streams.audio[:1]:
        # Which is not looked at on opening, and may begin before the picture.
        if sound.index_entries and sound.time_base:
            begin = min(begin, float(sound.index_entries[0].timestamp * sound.time_base))
    return max(0.0, begin)


def _seek(container: InputContainer, file: RemoteFile, streams: list[Stream], start: float, end: float) -> None:
    """Goes to the keyframe before a section, and tells the file what of it is going to be read."""
    if not streams:
        raise NoSection("no media in it")
    rate = getattr(streams[0], "average_rate", None)
    start = max(0.0, start - (_LEAD_FRAMES / float(rate) if rate else 1.0))
    extent = _extent(streams, start, end)
    if extent is not None:
        file.expect(*extent)
    container.seek(round(start * av.time_base))
    if extent is None and container.duration:
        # In fragments, each with its own index: how much is to come can only be estimated, by the mean rate.
        first = next((packet for packet in container.demux(streams) if packet.dts is not None), None)
        now = _time(first) if first is not None else start
        remaining = max(0.0, end - now) * av.time_base / container.duration * file.size
        file.expect(file.received_to, file.tell() + int(remaining))
        container.seek(round(start * av.time_base))


def _packets(container: InputContainer, streams: list[Stream], end: float) -> Iterator[Packet[Stream]]:
    """The packets up to `end`."""
    going_on = {stream.index for stream in streams}
    for packet in container.demux(streams):
        if packet.dts is None:
            if packet.size:
                raise NoSection("packets without a time of decoding")
            continue  # the end of a stream
        if _time(packet) >= end:
            going_on.discard(packet.stream.index)
            if not going_on:
                return
        elif packet.stream.index in going_on:
            yield packet


def _time(packet: Packet[Stream]) -> float:
    """When a packet is to be decoded, in seconds."""
    assert packet.dts is not None and packet.time_base is not None
    return float(packet.dts * packet.time_base)


def _shift(packet: Packet[Stream], seconds: int) -> None:
    assert packet.dts is not None and packet.time_base is not None
    ticks = round(seconds / packet.time_base)
    packet.dts += ticks
    if packet.pts is not None:
        packet.pts += ticks


def _extent(streams: list[Stream], start: float, end: float) -> tuple[int, int] | None:
    """Where in the file the packets of a section are, if the index says so for all of them."""
    begins, ends, size = [], [], 0
    for stream in streams:
        entries, tick = stream.index_entries, float(stream.time_base or 0)
        if not tick or not entries:
            return None
        first = max(0, entries.search_timestamp(round(start / tick), backward=True))
        last = entries.search_timestamp(round(end / tick), backward=False, any_frame=True)
        if last < 0:
            last = len(entries) - 1
            if entries[last].timestamp * tick + 1 < min(end, (stream.duration or 0) * tick):
                return None  # the index of the fragments so far, not of the file
        start = min(start, entries[first].timestamp * tick)  # the sound from the picture's keyframe on, as demuxers do
        section = [entries[number] for number in range(first, last + 1)]
        begins.append(min(entry.pos for entry in section))
        ends.append(max(entry.pos + entry.size for entry in section))
        size += sum(entry.size for entry in section)
    if max(ends) - min(begins) > _LARGEST_SPREAD * size:
        return None
    return min(begins), max(ends)


def _options(file: RemoteFile) -> dict[str, str]:
    """Options for opening an mp4, whose index says all: nothing need be decoded to know what is in it."""
    if not _expect_index(file):
        return {}
    return {"probesize": "32", "analyzeduration": "0"}


def _expect_index(file: RemoteFile) -> bool:
    """Looks for the index (`moov`) among the top-level boxes of an mp4, so that it comes in one request.

    ISO/IEC 14496-12, 4.2: each box begins with its length, 32 bits, and its type; a length of 1 says that 64 bits
    follow. Whether it is one.
    """
    place = 0
    for _ in range(_MOST_BOXES):
        if place >= file.size:
            break
        file.seek(place)
        header = file.read(16)
        if len(header) < 16:
            break
        length, kind, large = struct.unpack(">I4sQ", header)
        if place == 0 and kind != b"ftyp":
            break
        length = large if length == 1 else length
        if kind == b"moov":
            file.expect(place, place + length + 32)  # demuxers look at the headers of the next boxes, too
            file.seek(0)
            return True
        if length < 8:
            break
        place += length
    file.seek(0)
    return False
