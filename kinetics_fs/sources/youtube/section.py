"""A section of a remote video: only the bytes that are needed to decode it.

FFmpeg's demuxers (through PyAV) navigate the file: they read its index, then the packets from the last keyframe before
the section. If the index shows which bytes they will read, these are announced to the `RemoteFile` in advance.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.probe import CLOCK, find_picture
from kinetics_fs.sources.http_range import RemoteFile
from kinetics_fs.sources.youtube.segments import Segments

MAX_SECTION = 120
"""Longest section in seconds. A section is in memory until it is written."""

_LEAD_FRAMES = 6
"""Frames to seek before the section. Demuxers find keyframes by decoding time, which may be a few frames before the
display time: a keyframe that is decoded before the section may be shown after its first frames."""

_ROUNDING = 1.5
"""Seconds by which the duration that a site states may exceed the one in the header."""

_MAX_BYTES = 512 * 1024**2
"""Bytes of packets in memory."""

_MAX_BOXES = 16
"""Boxes of an mp4 to read in search of its index. In real files it is among the first three."""

_MAX_SPREAD = 1.5
"""Largest ratio of the range that contains a section to the section's own bytes for which the range is fetched at
once."""


class NoSection(Exception):
    """The file does not allow reading only a section of it."""


def fetch_section(
    files: Sequence[RemoteFile | Segments], start: float, end: float, length: float | None, path: Path
) -> Media:
    """Fetch the packets of a section and write them to a file without transcoding.

    Args:
        files: the media: one file, or one with the picture and one with the sound.
        start: start of the section, in seconds from the beginning of the media.
        end: end of the section, in seconds from the beginning of the media.
        length: duration of the complete media in seconds, as stated by the site; None if it is unknown.
        path: file to create, in the NUT format, which stores any codec and keeps times exactly.

    Raises:
        NoSection: a file does not allow it, or the section is too long.
        RangesIgnored: a server does not support ranges.
        FetchError: the files cannot be read, or end before the section begins (GONE).
    """
    if end - start > MAX_SECTION:
        raise NoSection(f"it is longer than {MAX_SECTION} s")
    packets: list[Packet[Stream]] = []
    begins: list[float] = []
    size, shown_until = 0, 0.0
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
                    if (picture := find_picture(container)) is not None:
                        length = _length(length, (container.duration or 0) / av.time_base, picture)
                containers.append(container)
                if length and start >= length:
                    raise FetchError(FailureKind.GONE, f"the video ends after {length:.1f} s, before the clip begins")
                video = find_picture(container)
                streams: list[Stream] = [*([video] if video is not None else []), *container.streams.audio[:1]]
                if len(files) > 1:
                    streams = streams[:1]
                copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
                section = _packets(container, streams, begin + end)
                if isinstance(file, RemoteFile):
                    _seek(container, file, streams, begin + start, begin + end)
                    section = _from_the_frame_on_screen(container, streams, begin + start, begin + end)
                for packet in section:
                    size += packet.size
                    if packet.stream is video and packet.pts is not None and packet.time_base is not None:
                        shown_until = max(shown_until, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if size > _MAX_BYTES:
                        raise NoSection("it is too large")
                    packet.stream = copies[packet.stream.index]
                    packets.append(packet)
                begins.append(begin)
            if not packets:
                raise NoSection("the file has no packets of the section")
            packets.sort(key=_time)
            # The time of the first packet is often negative, which the file does not allow. All times are shifted by
            # a whole number of seconds, which is a whole number of ticks.
            shift = -math.floor(_time(packets[0]))
            for packet in packets:
                _shift(packet, shift)
                target.mux(packet)
            packets.clear()
            for container in containers:
                container.close()
        with av.open(str(path)) as written:
            first = (written.start_time or 0) / av.time_base
    except av.FFmpegError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(
                FailureKind.LOCAL, f"cannot write the section: {error.strerror}", cause_errno=errno.ENOSPC
            ) from error
        raise NoSection(f"the demuxer failed: {error.strerror}") from error
    except (ValueError, LookupError, ArithmeticError, AttributeError) as error:  # PyAV's, for values out of range
        raise NoSection(f"the demuxer failed: {error}") from error
    zero = min(begins) + shift - first  # start of the complete media, on the clock of this file
    return Media(
        path,
        start=zero + start,
        length=zero + length if length else None,
        part=True,
        end=shown_until + shift - first,
    )


def _length(by_site: float | None, by_header: float, picture: Stream | None) -> float | None:
    """Return the duration of the pictures in seconds; None if it is unknown."""
    if by_site and by_site > by_header + _ROUNDING:
        return by_site  # the file is incomplete, or another one than the site describes
    if picture is not None and picture.duration and picture.time_base:
        return float(picture.duration * picture.time_base)  # sound may last longer
    return by_header or None


def _begin(container: InputContainer) -> float:
    """Return the time at which the media begin, on their own clock, in seconds."""
    begin = (container.start_time or 0) / av.time_base
    for sound in container.streams.audio[:1]:
        # The demuxer does not consider the sound on opening, and it may begin before the picture.
        if sound.index_entries and sound.time_base:
            begin = min(begin, float(sound.index_entries[0].timestamp * sound.time_base))
    return max(0.0, begin)


def _seek(container: InputContainer, file: RemoteFile, streams: list[Stream], start: float, end: float) -> None:
    """Seek to the keyframe before a section, and announce to the file what will be read."""
    if not streams:
        raise NoSection("the file has no media")
    rate = getattr(streams[0], "average_rate", None)
    start = max(0.0, start - (_LEAD_FRAMES / float(rate) if rate else 1.0))
    extent = _extent(streams, start, end)
    if extent is not None:
        file.expect(*extent)
    container.seek(round(start * av.time_base))
    if extent is None and container.duration:
        # The file has fragments, each with its own index, so the size of the section is estimated by the mean rate.
        first = next((packet for packet in container.demux(streams) if packet.dts is not None), None)
        now = _time(first) if first is not None else start
        remaining = max(0.0, end - now) * av.time_base / container.duration * file.size
        file.expect(file.received_to, file.tell() + int(remaining))
        container.seek(round(start * av.time_base))


def _from_the_frame_on_screen(
    container: InputContainer, streams: list[Stream], start: float, end: float
) -> Iterator[Packet[Stream]]:
    """Yield the packets of a section, from the keyframe of the frame that is on screen at its start.

    Where frames are seconds apart, a keyframe that is decoded before the start may be shown long after it. The section
    then begins with an earlier keyframe.
    """
    previous = math.inf
    while True:
        packets = _packets(container, streams, end)
        read: list[Packet[Stream]] = []
        for packet in packets:
            read.append(packet)
            if packet.stream is streams[0]:
                break
        else:
            return iter(read)
        first = read[-1]
        decoded = _time(first)
        shown = decoded if first.pts is None else float(first.pts * (first.time_base or 0))
        if shown <= start + CLOCK or decoded >= previous or first.stream.type != "video":
            return chain(read, packets)
        previous = decoded
        container.seek(math.floor((decoded - CLOCK) * av.time_base))


def _packets(container: InputContainer, streams: list[Stream], end: float) -> Iterator[Packet[Stream]]:
    """Yield the packets up to `end`."""
    unfinished = {stream.index for stream in streams}
    for packet in container.demux(streams):
        if packet.dts is None:
            if packet.size:
                raise NoSection("it has packets without a decoding time")
            continue  # the end of a stream
        if _time(packet) >= end:
            unfinished.discard(packet.stream.index)
            if not unfinished:
                return
        elif packet.stream.index in unfinished:
            yield packet


def _time(packet: Packet[Stream]) -> float:
    """Return the decoding time of a packet in seconds."""
    assert packet.dts is not None and packet.time_base is not None
    return float(packet.dts * packet.time_base)


def _shift(packet: Packet[Stream], seconds: int) -> None:
    assert packet.dts is not None and packet.time_base is not None
    ticks = round(seconds / packet.time_base)
    packet.dts += ticks
    if packet.pts is not None:
        packet.pts += ticks


def _extent(streams: list[Stream], start: float, end: float) -> tuple[int, int] | None:
    """Return the range of bytes of a section; None if the index does not list all its packets."""
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
                return None  # the index covers only the first fragments
        start = min(start, entries[first].timestamp * tick)  # demuxers read the sound from the picture's keyframe on
        section = [entries[index] for index in range(first, last + 1)]
        begins.append(min(entry.pos for entry in section))
        ends.append(max(entry.pos + entry.size for entry in section))
        size += sum(entry.size for entry in section)
    if max(ends) - min(begins) > _MAX_SPREAD * size:
        return None
    return min(begins), max(ends)


def _options(file: RemoteFile) -> dict[str, str]:
    """Return options for opening a file. The index of an mp4 describes its streams, so no packet is probed."""
    if not _expect_index(file):
        return {}
    return {"probesize": "32", "analyzeduration": "0"}


def _expect_index(file: RemoteFile) -> bool:
    """Find the index (`moov`) among the top-level boxes of an mp4, so that it is fetched in one request.

    ISO/IEC 14496-12, 4.2: each box begins with its length, 32 bits, and its type. A length of 1 means that a length of
    64 bits follows.

    Returns:
        Whether the file is an mp4 with an index.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        if at >= file.size:
            break
        file.seek(at)
        header = file.read(16)
        if len(header) < 16:
            break
        length, kind, large = struct.unpack(">I4sQ", header)
        if at == 0 and kind != b"ftyp":
            break
        length = large if length == 1 else length
        if kind == b"moov":
            file.expect(at, at + length + 32)  # demuxers read the headers of the next boxes too
            file.seek(0)
            return True
        if length < 8:
            break
        at += length
    file.seek(0)
    return False
