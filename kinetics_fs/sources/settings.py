"""What the sources need to know, as plain values: it crosses to the worker processes as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PUBLIC_ARCHIVES = "https://s3.amazonaws.com/kinetics"
"""The public bucket of the Common Visual Data Foundation."""

SOURCES = ("archive", "folder", "youtube", "whole-archive")
"""All there are. First the archives, where that is cheap: one request to a server without limits, for the very clip
that everybody has. A gigabyte for one clip, with all others of its class, comes last."""

ARCHIVES = frozenset({"archive", "whole-archive"})
"""Those that ask the archives: of what these never had, others may know."""

YOUTUBE_URL = "https://www.youtube.com/watch?v={id}"


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Settings of the sources.

    Args:
        order: names of the sources, in the order in which they are to be asked.
        video_url: address of a video's page; `{id}` stands for the YouTube id.
        max_height: most lines of picture to ask for.
        max_bandwidth: bytes that one worker may receive per second; None for no limit.
        cookies: path of a Netscape cookie file; empty for none.
        proxy: URL; empty for none.
        source_address: local address to ask from; empty for the system's choice.
        exact: cut to the frame, by encoding anew; else copy, from a keyframe on.
        ytdlp: parameters for `yt_dlp.YoutubeDL`, over our own.
        ytdlp_cache: folder for what yt-dlp keeps between runs.
        archive_url: where the archives are: an http(s) or s3 address, or a folder.
        archive_index: file of the indexes of archives that are here; empty if no archive is to be asked.
        archive_stream_limit: bytes up to which the archive of a class is read whole by the source `archive`.
        folders: folders of clips; none if no folder is to be asked.
        catalog: file of the catalog, which tells split and class of a clip; empty if none is at hand.
    """

    order: tuple[str, ...] = ("youtube",)
    video_url: str = YOUTUBE_URL
    max_height: int = 360
    max_bandwidth: float | None = None
    cookies: str = ""
    proxy: str = ""
    source_address: str = ""
    exact: bool = True
    ytdlp: dict[str, Any] = field(default_factory=dict)
    ytdlp_cache: str = ""
    archive_url: str = PUBLIC_ARCHIVES
    archive_index: str = ""
    archive_stream_limit: int = 0
    folders: tuple[str, ...] = ()
    catalog: str = ""
