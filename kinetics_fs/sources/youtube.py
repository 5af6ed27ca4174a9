"""YouTube, by way of yt-dlp: the whole video in one file, from which the clip is cut afterwards.

The address is a template, so that any site with a page per video, a loopback server included, is read by the same
code with yt-dlp's generic extractor.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yt_dlp import YoutubeDL

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.ffmpeg import find_ffmpeg
from kinetics_fs.sources.base import Media
from kinetics_fs.sources.settings import YOUTUBE_URL, SourceSettings
from kinetics_fs.sources.youtube_errors import classify

_MOST_BYTES = 4 * 1024**3
"""A guard against endless media: the longest Kinetics source, 6.6 hours, stays well below at 360 lines."""


class YouTubeSource:
    """One `YoutubeDL`, reused: a fresh one costs three times the CPU per video, and is a new guest to YouTube."""

    name = "youtube"

    def __init__(self, settings: SourceSettings) -> None:
        self._url = settings.video_url
        self._log = _Messages()
        self._ytdlp = YoutubeDL(_parameters(settings, self._log))

    def fetch(self, clip: Clip, folder: Path) -> Media:
        url = self._url.replace("{id}", clip.youtube_id)
        self._log.clear()
        # yt-dlp's output templates would read `%`, `$` and `~` in a path; a relative literal has none.
        os.chdir(folder)
        try:
            info = self._ytdlp.extract_info(url, download=True)
        except Exception as error:  # yt-dlp lets nearly anything through
            raise classify(error, self._log.warnings, self.name) from error
        finally:
            os.chdir("/")
        downloads = (info or {}).get("requested_downloads") or []
        name = downloads[0].get("filepath") if downloads else None
        path = folder / Path(name).name if name else None
        if path is None or not path.is_file():
            # Without an exception: yt-dlp refused it by its own rules (the size guard, a filter of the user's).
            raise FetchError(FailureKind.CORRUPT, "yt-dlp brought no file", source=self.name)
        length = (info or {}).get("duration")
        return Media(path, start=clip.start, length=float(length) if length else None)


def _parameters(settings: SourceSettings, log: _Messages) -> dict[str, Any]:
    """Parameters of `YoutubeDL`; documented in its class docstring."""
    height = settings.max_height
    on_youtube = settings.video_url.startswith(YOUTUBE_URL.partition("{")[0])
    return {
        "quiet": True,
        "noprogress": True,
        "logger": log,  # `no_warnings` would hide the HTTP statuses that tell a block from a dead video
        # 18 is the one progressive format left, and the only one that is neither throttled nor needs a token.
        # `<=?` takes formats of unknown height, too.
        "format": (
            f"{'18/' if height >= 360 else ''}"
            f"bv*[height<={height}][vcodec^=avc1][ext=mp4][protocol^=http]+ba[ext=m4a][protocol^=http]"
            f"/b[height<=?{height}]/bv*[height<=?{height}]+ba/wv*+ba/w"
        ),
        "outtmpl": {"default": "source.%(ext)s"},
        "merge_output_format": "mp4/mkv",
        "noplaylist": True,
        "allowed_extractors": ["^youtube$"] if on_youtube else ["^generic$", "^html5$"],
        "max_filesize": _MOST_BYTES,
        "socket_timeout": 15,
        # As a library yt-dlp neither retries nor minds missing fragments unless told.
        "retries": 3,
        "fragment_retries": 3,
        "extractor_retries": 2,
        "skip_unavailable_fragments": False,
        "sleep_interval_requests": 0.75 if on_youtube else 0,
        "cachedir": settings.ytdlp_cache or False,
        "geo_bypass": False,
        "overwrites": True,
        "fixup": "never",
        "updatetime": False,
        "ffmpeg_location": find_ffmpeg(),
        **settings.ytdlp,
    }


class _Messages:
    """Collects what yt-dlp says during one call; an HTTP status often stands only in a warning."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def clear(self) -> None:
        self.warnings = []

    def debug(self, message: str) -> None:
        pass

    def info(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def error(self, message: str) -> None:
        """Comes back as the exception."""
