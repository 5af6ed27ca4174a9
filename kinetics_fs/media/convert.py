"""Conversion of clips that are videos, but no mp4 files, although their names say so."""

from __future__ import annotations

from pathlib import Path

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.boxes import FIRST_BOXES
from kinetics_fs.media.cut import DECODE, ENCODE_PICTURE, ENCODE_SOUND, raise_failure, run_ffmpeg, run_variable_rate
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import VIDEO_FORMATS, VideoFile, demux, open_video, picture_of, read_at

_HEAD = 512
"""Bytes of a file that are read to recognise its format."""

_PICTURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
"""First bytes of pictures."""

_OTHER_CONTAINERS = (b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"0&\xb2u\x8ef\xcf\x11", b"\0\0\1\xba")
"""First bytes of Matroska and WebM, FLV, Ogg, ASF and MPEG program streams."""
_TS_SYNC = 0x47
_TS_PACKETS = ((0, 188), (4, 192))
"""Position of the first sync byte and size of a packet: MPEG-2 transport streams (ISO/IEC 13818-1), and of cameras."""

_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script", b"<!--")

_COPIED_PICTURES = {"h264", "hevc", "vp9", "av1"}
"""Codecs of pictures that common decoders read from mp4 files."""
_COPIED_SOUND = {"aac", "mp3"}


def is_served_as_it_is(file: VideoFile, *, accept_unknown: bool = False) -> bool:
    """Return whether a clip is an mp4 file; otherwise it is a video in another container, which `convert` converts.

    Args:
        file: the clip.
        accept_unknown: also return True for a file whose first bytes are those of no known kind of file.

    Raises:
        FetchError: the file is not a video, or is damaged (CORRUPT).
    """
    head = read_at(file, 0, _HEAD)
    if head[4:8] in FIRST_BOXES:
        return True
    if fault := _no_video(head):
        raise FetchError(FailureKind.CORRUPT, fault)
    if accept_unknown and not _is_other_container(head):
        return True
    with open_video(file, formats=VIDEO_FORMATS) as container:
        return bool(container.format.name.startswith("mov,"))


def convert(path: Path, target: Path) -> None:
    """Create an mp4 file from a clip in another container of video.

    The streams are copied where mp4 files have such streams, otherwise re-encoded.

    Args:
        path: the clip.
        target: file to create.

    Raises:
        FetchError: the clip is damaged (CORRUPT), or the file cannot be written (LOCAL).
    """
    with open_video(path, formats=VIDEO_FORMATS) as container:
        stream = picture_of(container)
        index, name = stream.index, container.format.long_name
        # AVI files do not have the times at which frames are shown.
        copy_picture = stream.codec_context.name in _COPIED_PICTURES and container.format.name != "avi"
        copy_sound = all(sound.codec_context.name in _COPIED_SOUND for sound in container.streams.audio[:1])
        frames = len(demux(container).times)
    if not frames:
        raise FetchError(FailureKind.CORRUPT, f"the clip has no frames ({name})")
    ffmpeg = find_ffmpeg()
    sound = ("-c:a", "copy") if copy_sound else ENCODE_SOUND
    if copy_picture:
        done = run_ffmpeg(_command(ffmpeg, path, target, index, ("-c:v", "copy"), sound))
        # Some streams have faults that only a decoder tolerates.
        if done.returncode == 0 and not done.stderr and _frames(target) >= frames:
            return
    encode = (*ENCODE_PICTURE, "-vf", "scale='trunc(iw/2)*2':'trunc(ih/2)*2'")
    done = run_variable_rate(
        lambda option: _command(ffmpeg, path, target, index, (*encode, option, "vfr"), ENCODE_SOUND)
    )
    if done.returncode:
        raise_failure(done, f"convert the clip ({name})")


def _no_video(head: bytes) -> str:
    """Return why the beginning of a file is not that of a video; empty if it may be."""
    for magic, name in _PICTURES.items():
        if head.startswith(magic):
            return f"the file is a picture ({name}), not a video"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "the file is a picture (WebP), not a video"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "the file is a web page (HTML), not a video"
    return ""


def _is_other_container(head: bytes) -> bool:
    """Return True if a file begins as a common container of video does, other than mp4."""
    if head.startswith(_OTHER_CONTAINERS) or (head.startswith(b"RIFF") and head[8:12] == b"AVI "):
        return True
    return any(
        len(head) > first + size and head[first] == head[first + size] == _TS_SYNC for first, size in _TS_PACKETS
    )


def _frames(path: Path) -> int:
    try:
        with open_video(path) as container:
            return len(demux(container).times)
    except FetchError:
        return 0


def _command(
    ffmpeg: str, path: Path, target: Path, index: int, picture: tuple[str, ...], sound: tuple[str, ...]
) -> list[str]:
    return [
        ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-y",
        *DECODE, "-format_whitelist", VIDEO_FORMATS, "-i", f"file:{path}",
        "-map", f"0:{index}", "-map", "0:a:0?", "-map_metadata", "-1", "-map_chapters", "-1",
        *picture, *sound, "-movflags", "+faststart", "-f", "mp4", f"file:{target}",
    ]  # fmt: skip
