"""YouTube as a source of clips. yt-dlp finds the media, and kinetics-fs fetches the bytes of the clip.

If a server or a format does not allow that, yt-dlp downloads the whole video. The address of a video is a template: any
other site with one page per video is read by the same code, through yt-dlp's generic extractor.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources.http_range import Pace, RangesIgnored, RemoteFile, StaleAddress
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.sources.settings import SourceSettings, is_youtube
from kinetics_fs.sources.youtube.bounded import BoundedYoutubeDL
from kinetics_fs.sources.youtube.errors import LATER, classify
from kinetics_fs.sources.youtube.section import NoSection, fetch_section
from kinetics_fs.sources.youtube.segments import NoSegments, Segments
from kinetics_fs.util.confined import MAX_FILE_SIZE

_log = logging.getLogger(__name__)

_MAX_REFUSALS = 3
"""Videos in a row whose media are refused at fresh addresses. After so many, the client is blocked, not the videos."""
_REFUSAL_PAUSE = 300.0
"""Seconds for which YouTube is not asked after that."""

_MAX_FORMATS = 3
"""Selections of formats that are tried for one clip."""
_FAULTS_OF_A_FORMAT = {FailureKind.TRANSIENT, FailureKind.CORRUPT}
"""Kinds of failure after which another format is tried. A timeout is none: it took too long already."""
_ANY_FORMATS = {"has_merged_format": True, "incomplete_formats": False}
"""What yt-dlp tells a function that selects formats, besides the formats."""

_LIVE = {
    "is_live": "has not ended",
    "is_upcoming": "has not begun",
    "post_live": "is still processed",
}
"""`live_status` of yt-dlp while the recording of a live stream is incomplete."""

_MAX_WAIT = 60.0
"""Longest wait in seconds for media that become available later."""


class YouTubeSource:
    """YouTube, through one `YoutubeDL` object.

    The object is reused. A new one takes three times the CPU time for each video, and is a new guest to YouTube.

    Args:
        settings: settings of the sources.
        read_cookies: returns the content of a Netscape cookie file; empty for none.
    """

    name = "youtube"

    def __init__(self, settings: SourceSettings, read_cookies: Callable[[], str] = str) -> None:
        self._url = settings.video_url
        self._on_youtube = is_youtube(self._url)
        self._log = _Messages()
        self._settings = settings
        self._read_cookies = read_cookies
        self._cookies = ""
        self._connect()
        self._any_language = "format" in settings.ytdlp
        self._refused_formats: set[str] = set()
        """Ids of the formats of the current video that failed."""
        self._refused: set[str] = set()
        """Ids of the last videos, if the media of all of them were refused."""
        self._pace = Pace(settings.max_bandwidth)

    def _connect(self) -> None:
        """Read the cookies, and create a `YoutubeDL` object with them.

        Raises:
            FetchError: the cookie file cannot be used (CONFIG).
        """
        self._cookies = self._read_cookies()
        parameters = _parameters(self._settings, self._cookies, self._log)
        self._ytdlp = BoundedYoutubeDL(parameters | {"format": self._select})
        self._select_by_spec = self._ytdlp.build_format_selector(parameters["format"])

    def _begin(self) -> None:
        """Prepare for the next video: the cookie file may be another one by now."""
        if self._read_cookies() != self._cookies:
            self._connect()
        self._log.clear()

    def fetch(self, clip: Clip, folder: Path) -> Media:
        self._begin()
        self._refused_formats.clear()
        # yt-dlp expands `%`, `$` and `~` in the path of an output template, so the template is a literal.
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.chdir(folder)
        try:
            media = self._fetch_any(clip, folder, self._extract(clip.youtube_id))
            self._refused.clear()
            return media
        except StaleAddress as error:
            self._refused.add(clip.youtube_id)
            if len(self._refused) >= _MAX_REFUSALS:
                raise FetchError(
                    FailureKind.BLOCKED,
                    f"YouTube refused the media of {len(self._refused)} videos in a row: {error.reason}",
                    source=self.name,
                    retry_after=_REFUSAL_PAUSE,
                ) from error
            error.source = self.name
            raise
        except FetchError as error:
            error.source = self.name
            raise
        except Exception as error:  # yt-dlp lets nearly anything through
            raise classify(error, self._log.warnings, self.name) from error
        finally:
            os.fchdir(before)
            os.close(before)

    def check(self, youtube_id: str) -> None:
        """Check that a video is available, without downloading it.

        Raises:
            FetchError: it is not.
        """
        self._begin()
        try:
            self._extract(youtube_id)
        except FetchError as error:
            error.source = self.name
            raise
        except Exception as error:
            raise classify(error, self._log.warnings, self.name) from error

    def _extract(self, youtube_id: str) -> dict[str, Any]:
        """Return yt-dlp's description of a video, with the selected formats."""
        url = self._url.replace("{id}", youtube_id)
        info: dict[str, Any] | None = self._ytdlp.extract_info(url, download=False)
        if info is None:
            raise FetchError(FailureKind.CONFIG, "a filter in [youtube.ytdlp] of the configuration skips this video")
        if self._on_youtube and info.get("id") not in (youtube_id, None):
            # A film that is for sale shows its trailer.
            raise FetchError(FailureKind.CREDENTIALS, f"YouTube shows another video instead: {info['id']}")
        if (state := _LIVE.get(str(info.get("live_status")))) is not None:
            raise FetchError(FailureKind.TRANSIENT, f"the video is a live stream that {state}", retry_after=LATER)
        return info

    def _select(self, context: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Select formats for yt-dlp: none that failed, and none with a dub if there is one with the original sound."""
        formats = [one for one in context["formats"] if one.get("format_id") not in self._refused_formats]
        if not self._any_language:
            formats = _without_dubs(formats)
        selected: Iterator[dict[str, Any]] = self._select_by_spec(context | {"formats": formats})
        return selected

    def _fetch_any(self, clip: Clip, folder: Path, info: dict[str, Any]) -> Media:
        """Fetch the selected formats, or the next ones if the server refuses them or they are no media."""
        chosen, is_fresh = info, False
        failures: list[FetchError] = []
        while True:
            earlier = set(self._refused_formats)
            try:
                try:
                    return self._fetch(clip, folder, info, chosen)
                except StaleAddress as error:
                    if is_fresh:
                        raise
                    _log.info("%s: %s; asking for a new address", clip.key, error.reason)
                    self._refused_formats, is_fresh = earlier, True
                    info = chosen = self._extract(clip.youtube_id)
                    return self._fetch(clip, folder, info, chosen)
            except FetchError as error:
                failed = error
            except Exception as error:  # yt-dlp lets nearly anything through
                failed = classify(error, self._log.warnings, self.name)
            if failed.kind not in _FAULTS_OF_A_FORMAT or failed.errno == errno.ETIMEDOUT:
                raise failed
            failures.append(failed)
            following = next(iter(self._select({"formats": info.get("formats") or [], **_ANY_FORMATS})), None)
            if following is None or len(failures) == _MAX_FORMATS:
                raise failures[0]
            chosen = following
            _log.info("%s: %s; trying format %s", clip.key, failed.reason, chosen.get("format_id"))

    def _fetch(self, clip: Clip, folder: Path, info: dict[str, Any], chosen: dict[str, Any]) -> Media:
        """Fetch one selection of formats: those that yt-dlp has selected for `info`, or others of that video."""
        length = float(info["duration"]) if info.get("duration") else None
        formats = chosen.get("requested_formats") or [chosen]
        files: list[RemoteFile | Segments] = []
        try:
            _wait_for(formats)
            try:
                files += (self._remote(one) for one in formats)
                return fetch_section(files, clip.start, clip.end, length, folder / "section.nut")
            except (NoSection, NoSegments, RangesIgnored) as error:
                reason = error or "the server does not support ranges"
                _log.info("%s: fetching the whole video: %s", clip.key, reason)
            return Media(self._download(folder, info), start=clip.start, length=length)
        except Exception:
            # If the server refused one file of a pair, the other one can still be a part of the next pair.
            refused = [
                one
                for file, one in zip(files, formats, strict=False)
                if isinstance(file, RemoteFile) and not file.received_to
            ]
            self._refused_formats |= {str(one.get("format_id")) for one in refused[:1] or formats}
            raise

    def _remote(self, info: dict[str, Any]) -> RemoteFile | Segments:
        """Return the media of a format."""
        url, headers, protocol = info.get("url"), info.get("http_headers") or {}, info.get("protocol")
        if info.get("fragments"):
            return Segments.of_fragments(self._ytdlp, info, self._pace)
        if url and protocol in ("http", "https"):
            return RemoteFile(self._ytdlp, url, headers, self._pace)
        if url and protocol in ("m3u8", "m3u8_native"):
            return Segments.of_playlist(self._ytdlp, url, headers, self._pace)
        raise NoSection(f"its protocol is {protocol}")

    def _download(self, folder: Path, info: dict[str, Any]) -> Path:
        """Download the whole video with yt-dlp."""
        done = self._ytdlp.process_ie_result(info, download=True)
        downloads = (done or {}).get("requested_downloads") or []
        name = downloads[0].get("filepath") if downloads else None
        path = folder / Path(name).name if name else None
        if path is None or not path.is_file():
            # yt-dlp skips a video by its own rules, such as the maximum size, without an exception.
            raise FetchError(FailureKind.CORRUPT, "yt-dlp downloaded no file")
        return path


def _without_dubs(formats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the formats whose sound is in the original language, in an unknown one, or absent.

    yt-dlp's `language_preference` is highest for the original, and lower for dubs and audio descriptions.
    """

    def preference(one: dict[str, Any]) -> float | None:
        has_sound = one.get("acodec") != "none" and one.get("language")
        return float(one.get("language_preference") or 0) if has_sound else None

    best = max((rank for one in formats if (rank := preference(one)) is not None), default=None)
    return [one for one in formats if preference(one) in (None, best)]


def _wait_for(formats: list[dict[str, Any]]) -> None:
    """Wait until YouTube serves the media: it delays them for the length of an advertisement that was not watched."""
    wait = max(float(one.get("available_at") or 0) for one in formats) - time.time()
    if wait > _MAX_WAIT:
        raise FetchError(FailureKind.TRANSIENT, f"YouTube serves the media only in {wait:.0f} s", retry_after=wait)
    time.sleep(max(0.0, wait))


def _parameters(settings: SourceSettings, cookies: str, log: _Messages) -> dict[str, Any]:
    """Return the parameters of `YoutubeDL`, which its class docstring documents."""
    height = settings.max_height
    on_youtube = is_youtube(settings.video_url)
    return {
        "quiet": True,
        "noprogress": True,
        "progress_hooks": [_DownloadCounter().update],
        "logger": log,  # `no_warnings` would hide the HTTP statuses that distinguish a block from a removed video
        # 18 is the last progressive format, and the only one that is not throttled and needs no token. yt-dlp appends a
        # number if there is one for each language.
        # `<=?` also accepts formats of unknown height.
        "format": (
            f"{'b[format_id^=18]/' if height >= 360 else ''}"
            f"bv*[height<={height}][vcodec^=avc1][ext=mp4][protocol^=http]+ba[ext=m4a][protocol^=http]"
            f"/b[height<=?{height}]/bv*[height<=?{height}]+ba/wv*+ba/w"
        ),
        "outtmpl": {"default": "source.%(ext)s"},
        # Folders above the working folder may belong to another user, so its path is of no use.
        "paths": {"home": "/proc/self/cwd"} if sys.platform == "linux" else {},
        "merge_output_format": "mp4/mkv",
        "noplaylist": True,
        "allowed_extractors": ["^youtube$"] if on_youtube else ["^generic$", "^html5$"],
        "max_filesize": MAX_FILE_SIZE,
        "socket_timeout": 15,
        # As a library, yt-dlp does not retry and ignores missing fragments by default.
        "retries": 3,
        "fragment_retries": 3,
        "extractor_retries": 2,
        "skip_unavailable_fragments": False,
        "sleep_interval_requests": 0.75 if on_youtube else 0,
        "cachedir": settings.ytdlp_cache or False,
        "geo_bypass": False,
        "overwrites": True,
        "fixup": "detect_or_warn",  # HLS is MPEG-TS, which is not seekable, so it is remuxed to mp4
        "updatetime": False,
        "ratelimit": settings.max_bandwidth,
        "cookiefile": io.StringIO(cookies) if cookies else None,  # it writes to a file that it is given
        "proxy": settings.proxy or None,
        "source_address": settings.source_address or None,
        "ffmpeg_location": find_ffmpeg(),
        **settings.ytdlp,
    }


class _DownloadCounter:
    """Counts the bytes of the files that yt-dlp downloads."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}

    def update(self, progress: dict[str, Any]) -> None:
        """Count the bytes that arrived since the last call for the same file."""
        file, size = str(progress.get("filename")), int(progress.get("downloaded_bytes") or 0)
        RECEIVED.add(max(0, size - self._counted.get(file, 0)))
        self._counted[file] = size
        if progress.get("status") == "finished":
            del self._counted[file]


class _Messages:
    """The logger of yt-dlp. It keeps the warnings of one call, because only they may have the HTTP status."""

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
        """Ignore the message: the exception has it too."""
