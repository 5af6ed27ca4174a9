"""Settings of the sources, as plain values: they are sent to the worker processes as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PUBLIC_ARCHIVES = "https://s3.amazonaws.com/kinetics"
"""The public bucket of the Common Visual Data Foundation."""

SOURCES = ("archive", "folder", "youtube")
"""Names of all sources, in their default order. Archives are first because they are cheapest: one request to a server
without rate limits, for the same clip that all users have."""

MAX_ARCHIVE_DOWNLOAD = 200 * 10**6
"""Default of the bytes that one open may download from archives. All class archives of validation splits are
smaller."""

YOUTUBE_URL = "https://www.youtube.com/watch?v={id}"

WELL_KNOWN_VIDEOS = ("jNQXAC9IVRw", "aqz-KE-bpKQ", "eRsGyueVLvQ")
"""Videos of YouTube that show whether it serves this client. The first one is the first video of the site. The others
are films of the Blender Foundation under a Creative Commons license. None has music of a label or an age limit, so no
country lacks them."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Settings of the sources.

    Args:
        order: names of the sources, in the order in which they are tried.
        video_url: address of a video's page; `{id}` stands for the YouTube id.
        max_height: maximum height of the picture in lines.
        max_bandwidth: bytes that one worker may receive per second; None for no limit.
        cookies: path of a Netscape cookie file; empty for none.
        proxy: URL of the proxy for YouTube; empty for none.
        source_address: local address for connections to YouTube; empty for the system's choice.
        exact: cut to the exact frame by re-encoding; otherwise copy from a keyframe on.
        ytdlp: parameters of `yt_dlp.YoutubeDL` that override those of kinetics-fs.
        ytdlp_cache: folder of the files that yt-dlp keeps between runs.
        archive_url: location of the archives: an http(s) or s3 address, or a folder.
        archive_index: file of the archive index database.
        archive_lock: file that is locked by the process that reads an archive as a whole.
        max_archive_download: bytes that one open may download from archives.
        folders: folders of clips that the user already has.
        catalog: file of the catalog, which gives the split and class of a clip; empty if there is none.
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
    archive_lock: str = ""
    max_archive_download: int = MAX_ARCHIVE_DOWNLOAD
    folders: tuple[str, ...] = ()
    catalog: str = ""

    @property
    def well_known_videos(self) -> tuple[str, ...]:
        """Videos of the site that were available for many years."""
        return WELL_KNOWN_VIDEOS if self.video_url == YOUTUBE_URL else ()

    @property
    def archive_limit(self) -> int | None:
        """`max_archive_download`, or None for archives in a local folder: reading these downloads nothing."""
        return self.max_archive_download if is_remote(self.archive_url) else None


def is_youtube(video_url: str) -> bool:
    """Return whether the pages of videos are those of YouTube, and not of another site."""
    return video_url.startswith(YOUTUBE_URL.partition("{")[0])


def is_remote(archive_url: str) -> bool:
    """Return whether archives below this location are downloaded, and not read from a local folder."""
    return archive_url.startswith(("http://", "https://", "s3://"))
