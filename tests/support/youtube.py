"""A YouTube on loopback: drives the real YouTube extractor of yt-dlp by configuration alone.

The extractor asks the player API (`POST /youtubei/v1/player`) for a video; `FakeYouTube` answers in its place,
either with formats on a media server of its own or with one of the refusals in `SCENARIOS`::

    with FakeYouTube() as yt:
        yt.add_video("dQw4w9WgXcQ", path, duration=30.0)
        yt.set_scenario("-private___", "private")
        YoutubeDL({**params, **yt.ytdlp_options}).extract_info("https://www.youtube.com/watch?v=dQw4w9WgXcQ")

The answers have the structure that yt-dlp's extractor reads, and the sentences that YouTube is known to send. None of
them was recorded from YouTube.

The media server can also fail in the ways of `MEDIA_FAULTS`.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.tls import self_signed

Json = dict[str, Any]

AD_SECONDS = 1
"""Length of the advertisement of the `preroll` scenario."""

RETRY_AFTER = 7
"""Value of the Retry-After header of a 429, in seconds."""

THROTTLED_AFTER = 256 * 1024
"""Bytes that are sent at full speed before throttling begins."""

THROTTLED_RATE = 32 * 1024
"""Rate of throttled bytes, in bytes per second."""

MAX_RANGE = 10 * 1024**2
"""Longest closed range that is not throttled, in bytes."""

SLOW_RATE = 10
"""Rate of the fault `slow`, in bytes per second, sent one by one."""

ELSEWHERE = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Host that a redirect leads to, also on loopback."""

PAGE = b"<!DOCTYPE html><title>Sorry</title>"
"""The page that a fault sends instead of media."""

TRAILER = "the_trailer"
"""Id of the video to which the scenario `trailer` refers."""

_CHUNK = 64 * 1024
_TICK = 0.1  # seconds between two portions of a throttled body


class _Refusal(NamedTuple):
    """The `playabilityStatus` of an answer without formats."""

    status: str
    reason: str
    subreason: str = ""


_REFUSALS = {
    # Gone.
    "nonexistent": _Refusal("ERROR", "Video unavailable"),
    "removed": _Refusal("ERROR", "Video unavailable", "This video has been removed by the uploader"),
    "terminated": _Refusal(
        "ERROR",
        "Video unavailable",
        "This video is no longer available because the YouTube account associated with this video has been terminated.",
    ),
    "terms": _Refusal("ERROR", "This video has been removed for violating YouTube's Terms of Service"),
    "harassment": _Refusal(
        "ERROR", "This video has been removed for violating YouTube's policy on harassment and bullying"
    ),
    "copyright": _Refusal(
        "UNPLAYABLE",
        "Video unavailable",
        "This video contains content from SME, who has blocked it on copyright grounds",
    ),
    "unavailable": _Refusal("UNPLAYABLE", "Video unavailable", "This video is not available"),
    # Restricted to some users.
    "private": _Refusal("LOGIN_REQUIRED", "Private video", "Sign in if you've been granted access to this video"),
    "age": _Refusal("LOGIN_REQUIRED", "Sign in to confirm your age", "This video may be inappropriate for some users."),
    "members": _Refusal(
        "UNPLAYABLE",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
    ),
    "members-level": _Refusal(
        "UNPLAYABLE",
        "This video is available to this channel's members on level: Gold (or any higher level). "
        "Join this channel to get access to members-only content and other exclusive perks.",
    ),
    "payment": _Refusal("UNPLAYABLE", "This video requires payment to watch."),
    "geo": _Refusal(
        "UNPLAYABLE", "Video unavailable", "The uploader has not made this video available in your country"
    ),
    "geo-plain": _Refusal("UNPLAYABLE", "Video unavailable", "This video is not available in your country"),
    "geo-copyright": _Refusal(
        "UNPLAYABLE",
        "Video unavailable",
        "This video contains content from SME, who has blocked it in your country on copyright grounds",
    ),
    # Temporary.
    "upcoming": _Refusal("LIVE_STREAM_OFFLINE", "This live event will begin in 3 hours."),
    "premiere": _Refusal("LIVE_STREAM_OFFLINE", "Premieres in 3 hours"),
    "processing": _Refusal("UNPLAYABLE", "We're processing this video. Check back later."),
    "live-ended": _Refusal("LIVE_STREAM_OFFLINE", "This live stream recording is not available."),
    # The account is refused.
    "content": _Refusal("UNPLAYABLE", "Video unavailable", "This content isn’t available."),
    "sign-in": _Refusal("LOGIN_REQUIRED", "Please sign in"),
    "music": _Refusal("UNPLAYABLE", "This video is only available to Music Premium members"),
    "restricted-mode": _Refusal(
        "UNPLAYABLE",
        "Video unavailable",
        "This video is unavailable with Restricted Mode enabled. To view this video, you will need to disable it.",
    ),
    # The address is blocked.
    "bot": _Refusal("LOGIN_REQUIRED", "Sign in to confirm you’re not a bot"),
    "bot-ascii": _Refusal("LOGIN_REQUIRED", "Sign in to confirm you're not a bot"),
    "captcha": _Refusal("UNPLAYABLE", "Video unavailable"),
    "rate-limit": _Refusal("UNPLAYABLE", "Video unavailable", "This content isn't available, try again later."),
    # The client is refused.
    "reload": _Refusal("UNPLAYABLE", "The page needs to be reloaded."),
    "app": _Refusal(
        "UNPLAYABLE",
        "The following content is not available on this app.",
        "Watch on the latest version of YouTube.",
    ),
}

_REFUSAL_EXTRAS: dict[str, Json] = {
    "geo": {"microformat": {"playerMicroformatRenderer": {"availableCountries": ["US", "DE"]}}},
    "captcha": {
        "playabilityStatus": {
            "status": "UNPLAYABLE",
            "reason": "Video unavailable",
            # It only has to be present and not empty.
            "errorScreen": {"playerCaptchaViewModel": {"trackingParams": "CAAQ"}},
        }
    },
}
"""Fields of a refusal that supplement or replace its sentences."""

_API_STATUSES = {
    "http-400": "Request contains an invalid argument.",
    "http-403": "The caller does not have permission",
    "http-404": "Requested entity was not found.",
    "http-429": "Resource has been exhausted (e.g. check quota).",
    "http-500": "Internal error encountered.",
    "http-503": "The service is currently unavailable.",
}
"""The player API itself fails, with the usual sentence of Google's APIs."""

SCENARIOS = frozenset(
    {
        "ok",
        "preroll",  # playable after an advertisement; the media answer 403 until then
        "sabr",  # formats without a URL
        "n-challenge",  # formats whose URL needs JavaScript
        "drm",
        "drm-experiment",  # formats with DRM for each video of a session
        "live",  # a live stream in progress, with formats
        "trailer",  # the answer refers to the trailer of a film that is for sale
        "no-formats",
        "wrong-video",  # the answer is for another video, as for a blocked address
        "html",  # the API answers 200 with a page
        "reset",
        "stall",
        *_REFUSALS,
        *_API_STATUSES,
    }
)

MEDIA_FAULTS = {
    # Refused, without a body.
    "403": "status 403",
    "404": "status 404",
    "429": "status 429 with Retry-After",
    "429-bare": "status 429 without Retry-After",
    "500": "status 500",
    "503": "status 503",
    "expired": "status 403 from URLs that have answered `url_uses` requests; those of another extraction are fresh",
    # Interrupted in the middle of the body.
    "truncate": "the end of the connection after half of the body",
    "reset": "RST after half of the body",
    "stall": "nothing more after half of the body, and the connection stays open",
    # Other content.
    "empty": "status 200 and no bytes",
    "html": "status 200 and a page",
    "html-as-mp4": "status 200 and a page with the type video/mp4",
    "html-206": "a page, filled up with blanks to the length of the range, with all headers but the type right",
    "html-206-as-mp4": "a page as in html-206, with the type video/mp4",
    "no-ranges": "status 200 and the whole file, for any requested range",
    "wrong-window": "status 206 and a range that begins one byte later than requested, with a correct Content-Range",
    "changed": "another length of the file in Content-Range, except in the first answer to a URL",
    "long-length": "a Content-Length 1,000 greater than the body, after which the connection ends",
    "short-length": "a Content-Length of half the body, and the whole body",
    # Throttled.
    "slow": "a body at SLOW_RATE",
    "throttle": "THROTTLED_RATE after THROTTLED_AFTER bytes, but for closed ranges of up to MAX_RANGE",
    # Redirected.
    "redirect": "status 302 to a server on ELSEWHERE that answers rightly",
    "redirect-closed": "status 302 to a port that nobody listens on",
    "redirect-file": "status 302 to file:///etc/passwd",
    "redirect-loop": "status 302 to the same URL",
}
"""Faults that replace the right answer to a request for media; the names are the values of `media_fault`."""

_FAULTY_STATUSES = {"403": 403, "404": 404, "429": 429, "429-bare": 429, "500": 500, "503": 503}


_PICTURE: Json = {"width": 640, "height": 360, "fps": 25, "quality": "medium", "qualityLabel": "360p"}
_SOUND: Json = {"audioQuality": "AUDIO_QUALITY_MEDIUM", "audioSampleRate": "44100", "audioChannels": 2}
_PROGRESSIVE = 18
_FORMATS: dict[int, Json] = {
    _PROGRESSIVE: {"mimeType": 'video/mp4; codecs="avc1.42001E, mp4a.40.2"', **_PICTURE, **_SOUND},
    134: {"mimeType": 'video/mp4; codecs="avc1.4d401e"', **_PICTURE},
    140: {"mimeType": 'audio/mp4; codecs="mp4a.40.2"', "quality": "tiny", **_SOUND},
}
"""Itag → description of the format."""

HLS = 93
"""The itag of the one HLS format, 360p."""

_PLAYLIST_TYPE = "application/vnd.apple.mpegurl"


@dataclass(frozen=True)
class _Video:
    duration: float
    files: dict[int, Path]
    """Itag → file."""
    hls: Path | None
    """The media playlist, beside its segments."""
    claimed_size: int | None
    languages: dict[int, list[str]]
    """Itag → the sound tracks of the formats with that itag; none for formats without a track."""


@dataclass
class _Sent:
    """A request for media: its answer, and the bytes of the body that were sent."""

    itag: int
    range: str | None
    status: int
    body: int = 0


class FakeYouTube:
    """A player API and a media server on loopback; see the module docstring."""

    media_fault: dict[str, str | list[str]]
    """Video id, or `ID/ITAG` for one format → the fault of all its requests for media, or a list of faults for its next
    requests, with `ok` for no fault. Faults affect the segments of playlists, not the playlists."""

    media_url_base: str
    """Prefix of the URLs of media: the media server, or the `url` of a `tests.support.link.Link` in front of it."""

    url_uses: int
    """Number of requests that succeed before the fault `expired`, for each extraction and format."""

    def __init__(self) -> None:
        self.media_fault = {}
        self.url_uses = 1
        self._videos: dict[str, _Video] = {}
        self._scenarios: dict[str, list[str]] = {}
        self._playable_at: dict[str, float] = {}
        self._clients: dict[str, list[str]] = {}
        self._sent: dict[str, list[_Sent]] = {}
        self._uses: Counter[tuple[str, int, str]] = Counter()
        self._extractions = itertools.count(1)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._api = _Server(partial(_PlayerApi, self), _tls())
        self._media = _Server(partial(_Media, self))
        self._elsewhere = _Server(partial(_Media, self), host=ELSEWHERE)
        self._servers = (self._api, self._media, self._elsewhere)
        self._nobody = socket.socket()  # bound to a port, but not listening
        self._nobody.bind(("127.0.0.1", 0))
        self.media_url_base = self._media.url

    def __enter__(self) -> Self:
        for server in self._servers:
            # The default interval would make every exit wait half a second.
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._nobody.close()

    @property
    def media_port(self) -> int:
        """Port of the media server on 127.0.0.1."""
        return self._media.port

    @property
    def ytdlp_options(self) -> Json:
        """Parameters of `YoutubeDL` that direct the YouTube extractor to this server, as plain values."""
        return {
            "extractor_args": {
                "youtube": {
                    "innertube_host": [f"127.0.0.1:{self._api.port}"],
                    # Skip everything that is fetched from www.youtube.com, whatever the innertube host.
                    "player_skip": ["webpage", "configs", "js", "initial_data"],
                }
            },
            "nocheckcertificate": True,
            # This server has no rate limit.
            "sleep_interval_requests": 0,
            # Loopback needs no proxy, also if the environment names one.
            "proxy": "",
            # A JavaScript runtime changes which clients are used. One that never runs makes all machines alike.
            "js_runtimes": {"deno": {"path": os.devnull}},
        }

    @property
    def config(self) -> str:
        """The parameters as the last table of a configuration file of kinetics-fs."""
        parameters = [f"{key} = {_toml(value)}" for key, value in self.ytdlp_options.items()]
        return "\n".join(["[youtube]", "programs = true", "[youtube.ytdlp]", *parameters])

    def add_video(
        self,
        video_id: str,
        path: Path | None = None,
        *,
        duration: float,
        adaptive: tuple[Path, Path] | None = None,
        hls: Path | None = None,
        claimed_size: int | None = None,
        languages: dict[int, list[str]] | None = None,
    ) -> None:
        """Publish a file as format 18 (progressive, 360p), a pair as 134 (video) and 140 (audio), HLS as 93.

        The formats are always described as 640x360 H.264 and AAC, whatever the files contain.

        Args:
            video_id: eleven characters.
            path: format 18.
            duration: duration in the player response, in seconds.
            adaptive: formats 134 and 140.
            hls: a media playlist, which names the segments beside it.
            claimed_size: size of every file in the player response, in bytes; by default the true one, and none for
                format 18.
            languages: itag → names of sound tracks, such as "English original" or "German": a format for each.
        """
        files = {} if path is None else {_PROGRESSIVE: path}
        if adaptive is not None:
            files[134], files[140] = adaptive
        self._videos[video_id] = _Video(duration, files, hls, claimed_size, languages or {})

    def set_scenario(self, video_id: str, *scenarios: str) -> None:
        """Set how the player API answers for a video: one scenario for each request, the last one for all others.

        Without a scenario, a video that was added is `ok` and any other is `nonexistent`.
        """
        if unknown := set(scenarios) - SCENARIOS:
            raise ValueError(f"unknown scenarios: {', '.join(sorted(unknown))}")
        if not scenarios:
            raise ValueError("no scenario")
        with self._lock:
            self._scenarios[video_id] = list(scenarios)

    @property
    def socket_timeout(self) -> float:
        """Timeout of a client in seconds: one second if any answer stalls, otherwise more than a busy machine needs."""
        plans = [*self._scenarios.values(), *self.media_fault.values()]
        return 1.0 if any("stall" in plan for plan in plans) else 20.0

    def player_requests(self, video_id: str) -> int:
        """Return the number of requests to the player API for a video."""
        return len(self.player_clients(video_id))

    def player_clients(self, video_id: str) -> list[str]:
        """Return the name of the YouTube client in each of these requests."""
        with self._lock:
            return list(self._clients.get(video_id, ()))

    def media_requests(self, video_id: str, itag: int | None = None) -> list[tuple[str | None, int, int]]:
        """Return (Range header, status, bytes of body sent) of each request for media, of one format or of all.

        Requests for playlists count too. The bytes are those that were sent. If a client does not read a body to its
        end, it has received fewer: the rest is in the socket buffers of both sides.
        """
        with self._lock:
            return [
                (sent.range, sent.status, sent.body)
                for sent in self._sent.get(video_id, ())
                if itag is None or sent.itag == itag
            ]

    # Called by the servers.

    def _next_scenario(self, video_id: str, client: str) -> str:
        with self._lock:
            self._clients.setdefault(video_id, []).append(client)
            queue = self._scenarios.get(video_id)
            if queue is None:
                return "ok" if video_id in self._videos else "nonexistent"
            return queue.pop(0) if len(queue) > 1 else queue[0]

    def _next_fault(self, video_id: str, itag: int) -> str | None:
        with self._lock:
            fault = self.media_fault.get(f"{video_id}/{itag}", self.media_fault.get(video_id))
            if isinstance(fault, list):
                fault = fault.pop(0) if fault else None
        if fault == "ok":
            return None
        if fault is not None and fault not in MEDIA_FAULTS:
            raise ValueError(f"unknown media fault: {fault}")
        return fault

    def _use(self, video_id: str, itag: int, extraction: str) -> int:
        """Return the ordinal of a request for a format, among those with URLs from one extraction."""
        with self._lock:
            self._uses[video_id, itag, extraction] += 1
            return self._uses[video_id, itag, extraction]

    def _player_response(self, video_id: str, scenario: str) -> Json:
        if scenario in _REFUSALS:
            return _refusal(scenario)
        if scenario == "wrong-video":
            return {"playabilityStatus": {"status": "OK"}, "videoDetails": {"videoId": "aQvGIIdgFDM"}}
        video = self._videos.get(video_id)
        response: Json = {
            "playabilityStatus": {"status": "OK"},
            "videoDetails": {
                "videoId": video_id,
                "title": f"Video {video_id}",
                "lengthSeconds": str(round(video.duration if video else 0)),
                "channelId": "UCaaaaaaaaaaaaaaaaaaaaaa",
                "isLiveContent": False,
            },
            "streamingData": {},
        }
        if scenario == "no-formats":
            return response
        if scenario == "drm":
            response["streamingData"] = {"licenseInfos": [{"drmFamily": "WIDEVINE"}]}
            return response
        if scenario == "trailer":
            trailer = {"playerLegacyDesktopYpcTrailerRenderer": {"trailerVideoId": TRAILER}}
            response["playabilityStatus"] = {"status": "UNPLAYABLE", "reason": "Pay to watch", "errorScreen": trailer}
            return response
        if scenario == "live":
            response["videoDetails"] |= {"isLive": True, "isLiveContent": True}
        if video is None:
            raise ValueError(f"scenario {scenario} needs a video: add {video_id} first")
        if scenario == "preroll":
            self._playable_at[video_id] = time.time() + AD_SECONDS
            response["adPlacements"] = [_advertisement()]
        extraction = next(self._extractions)
        formats = [
            self._describe(video_id, itag, scenario, extraction) | _sound_track(name)
            for itag in video.files
            for name in video.languages.get(itag, [""])
        ]
        response["streamingData"] = {
            "formats": [one for one in formats if one["itag"] == _PROGRESSIVE],
            "adaptiveFormats": [one for one in formats if one["itag"] != _PROGRESSIVE],
        }
        if video.hls is not None:
            manifest = f"{self.media_url_base}/manifest/hls_variant/id/{video_id}/ei/{extraction}/file/index.m3u8"
            response["streamingData"]["hlsManifestUrl"] = manifest
        return response

    def _describe(self, video_id: str, itag: int, scenario: str, extraction: int) -> Json:
        video = self._videos[video_id]
        size = video.files[itag].stat().st_size
        described: Json = {
            "itag": itag,
            **_FORMATS[itag],
            "bitrate": round(size * 8 / video.duration),
            "approxDurationMs": str(round(video.duration * 1000)),
        }
        if video.claimed_size is not None:
            described["contentLength"] = str(video.claimed_size)
        elif itag != _PROGRESSIVE:  # the harder case: the player response does not state the size of format 18
            described["contentLength"] = str(size)
        if scenario == "drm-experiment":
            described["drmFamilies"] = ["WIDEVINE"]
        if scenario != "sabr":
            query: Json = {"id": video_id, "itag": itag, "ei": extraction}
            if scenario == "n-challenge":
                query["n"] = "ZdZIqFPQK-Ty8wId"
            described["url"] = f"{self.media_url_base}/videoplayback?{urlencode(query)}"
        return described

    def _file(self, video_id: str, itag: int, segment: str) -> Path | None:
        video = self._videos.get(video_id)
        if video is None:
            return None
        if itag != HLS or video.hls is None:
            return video.files.get(itag)
        path = video.hls.parent / Path(segment).name
        return path if path.is_file() else None

    def _too_early(self, video_id: str) -> bool:
        return time.time() < self._playable_at.get(video_id, 0)

    def _record(self, video_id: str, sent: _Sent) -> None:
        with self._lock:
            self._sent.setdefault(video_id, []).append(sent)


def _toml(value: Any) -> str:
    """Return a value as one line of TOML, which is JSON except for the sign between name and value of a table."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"


def _refusal(scenario: str) -> Json:
    status, reason, subreason = _REFUSALS[scenario]
    screen = {"reason": {"simpleText": reason}}
    if subreason:
        screen["subreason"] = {"simpleText": subreason}
    return {
        "playabilityStatus": {
            "status": status,
            "reason": reason,
            "errorScreen": {"playerErrorMessageRenderer": screen},
        },
        **_REFUSAL_EXTRAS.get(scenario, {}),
    }


def _sound_track(name: str) -> Json:
    """Return the part of a format that describes its sound track, such as "English original"."""
    if not name:
        return {}
    return {"audioTrack": {"displayName": name, "id": f"{name[:2].lower()}.4", "audioIsDefault": False}}


def _advertisement() -> Json:
    return {
        "adPlacementRenderer": {
            "config": {"adPlacementConfig": {"kind": "AD_PLACEMENT_KIND_START"}},
            "renderer": {"instreamVideoAdRenderer": {"playerVars": f"length_seconds={AD_SECONDS}"}},
        }
    }


@cache
def _tls() -> ssl.SSLContext:
    """Return a server context with a self-signed certificate that was made for this process."""
    with tempfile.TemporaryDirectory() as folder:
        return self_signed(Path(folder), "127.0.0.1")


class _Server(ThreadingHTTPServer):
    # Closing must not wait for clients that keep their connection open.
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        handler: Callable[..., BaseHTTPRequestHandler],
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__((host, 0), handler)
        self.port: int = self.server_address[1]
        self.url = f"http://{host}:{self.port}"
        if tls is not None:
            # The handshake runs in the connection's thread; here it would block other connections.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Some tests make clients disconnect or refuse the certificate.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a small body waits for the acknowledgement of its headers

    def __init__(self, youtube: FakeYouTube, *args: Any) -> None:
        self.youtube = youtube  # first: the base class answers the requests before it returns
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def head(self, status: int, content_type: str, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        headers = {"Retry_After": str(RETRY_AFTER)} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
        self.head(status, content_type, len(body), **headers)
        self.wfile.write(body)

    def stall(self) -> None:
        """Send nothing more, but keep the connection open until the fake is closed."""
        self.youtube._closing.wait()
        self.close_connection = True

    def reset(self) -> None:
        """Reset the connection: without a linger time, closing sends RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it shares the socket, which closes only when all its users have closed it
        self.connection.close()
        self.close_connection = True


class _PlayerApi(_Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path != "/youtubei/v1/player":
            return self.answer(404, "text/plain", b"Not Found")
        request = json.loads(body)
        video_id: str = request["videoId"]
        scenario = self.youtube._next_scenario(video_id, request["context"]["client"]["clientName"])
        if scenario == "stall":
            return self.stall()
        if scenario == "reset":
            return self.reset()
        if scenario == "html":
            return self.answer(200, "text/html", b"<!DOCTYPE html><title>Before you continue</title>")
        if scenario in _API_STATUSES:
            status = int(scenario.removeprefix("http-"))
            return self.json(status, {"error": {"code": status, "message": _API_STATUSES[scenario]}})
        return self.json(200, self.youtube._player_response(video_id, scenario))

    def json(self, status: int, value: Json) -> None:
        self.answer(status, "application/json", json.dumps(value).encode())


class _Media(_Handler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        # /videoplayback?id=…&itag=… is a file; /manifest/hls_variant/id/…, /…/hls_playlist/id/… and
        # /videoplayback/id/…/file/NAME are the three levels of HLS.
        kind, *rest = url.path.removeprefix("/").removeprefix("manifest/").split("/")
        names = dict(zip(rest[::2], rest[1::2], strict=False)) or {
            name: values[0] for name, values in parse_qs(url.query).items()
        }
        video_id, itag = names.get("id", ""), int(names.get("itag", 0))
        if kind in ("hls_variant", "hls_playlist"):
            return self.playlist(kind, video_id, names.get("ei", ""))
        path = self.youtube._file(video_id, itag, names.get("file", "")) if kind == "videoplayback" else None
        if path is None:
            return self.answer(404, "text/plain", b"Not Found")

        requested = self.headers.get("Range")
        fault = None if "redirected" in names else self.youtube._next_fault(video_id, itag)
        use = self.youtube._use(video_id, itag, names.get("ei", ""))
        if use <= {"expired": self.youtube.url_uses, "changed": 1}.get(fault or "", 0):
            fault = None
        if fault == "expired" or (fault is None and self.youtube._too_early(video_id)):
            fault = "403"
        sent = _Sent(itag, requested, 0)
        if fault in _FAULTY_STATUSES:
            sent.status = _FAULTY_STATUSES[fault]
            asks = {"Retry_After": str(RETRY_AFTER)} if fault == "429" else {}
            self.youtube._record(video_id, sent)
            return self.head(sent.status, "text/plain", 0, **asks)
        if fault == "empty":
            sent.status = 200
            self.youtube._record(video_id, sent)
            return self.head(200, "video/mp4", 0)
        if fault is not None and fault.startswith("redirect"):
            sent.status = 302
            self.youtube._record(video_id, sent)
            return self.head(302, "text/plain", 0, Location=self.location(fault))
        if fault in ("html", "html-as-mp4"):
            sent.status = 200
            self.youtube._record(video_id, sent)
            self.head(200, "text/html" if fault == "html" else "video/mp4", len(PAGE))
            return self.send(io.BytesIO(PAGE), len(PAGE), sent)
        return self.media(path, fault, sent, video_id)

    def media(self, path: Path, fault: str | None, sent: _Sent, video_id: str) -> None:
        """Answer with bytes of the file, as a fault changes them."""
        size = path.stat().st_size
        window = _window(None if fault == "no-ranges" else sent.range, size)
        sent.status = 416 if window is None else 200 if sent.range is None or fault == "no-ranges" else 206
        self.youtube._record(video_id, sent)
        if window is None:
            return self.head(416, "text/plain", 0, Content_Range=f"bytes */{size}")
        if fault == "wrong-window":
            window = range(window.start + 1, min(window.stop + 1, size))
        headers = {} if fault == "no-ranges" else {"Accept_Ranges": "bytes"}
        if sent.status == 206:
            total = size + 1 if fault == "changed" else size
            headers["Content_Range"] = f"bytes {window.start}-{window.stop - 1}/{total}"
        length = {"long-length": len(window) + 1000, "short-length": len(window) // 2}.get(fault or "", len(window))
        is_page = fault in ("html-206", "html-206-as-mp4")
        media_type = "text/html" if fault == "html-206" else "video/mp2t" if path.suffix == ".ts" else "video/mp4"
        self.head(sent.status, media_type, length, **headers)

        body = io.BytesIO(PAGE[: len(window)].ljust(len(window))) if is_page else path.open("rb")
        with body:
            body.seek(0 if is_page else window.start)
            if fault == "slow":
                self.send(body, len(window), sent, rate=SLOW_RATE)
            elif fault == "throttle" and (_is_open(sent.range) or len(window) > MAX_RANGE):
                self.send(body, min(THROTTLED_AFTER, len(window)), sent)
                self.send(body, max(0, len(window) - THROTTLED_AFTER), sent, rate=THROTTLED_RATE)
            else:
                self.send(body, len(window) // 2 if fault in ("truncate", "reset", "stall") else len(window), sent)
        if fault == "stall":
            self.stall()
        elif fault == "reset":
            self.reset()
        elif fault in ("truncate", "long-length"):
            self.close_connection = True
        return None

    def playlist(self, kind: str, video_id: str, extraction: str) -> None:
        """Return the list of HLS formats, which has one, and the list of its segments, both with complete URLs."""
        video = self.youtube._videos.get(video_id)
        if video is None or video.hls is None:
            return self.answer(404, "text/plain", b"Not Found")
        of = f"id/{video_id}/itag/{HLS}/ei/{extraction}"
        if kind == "hls_variant":
            text = (
                "#EXTM3U\n#EXT-X-INDEPENDENT-SEGMENTS\n"
                '#EXT-X-STREAM-INF:BANDWIDTH=1000000,CODECS="mp4a.40.2,avc1.4D401E",RESOLUTION=640x360,FRAME-RATE=25\n'
                f"{self.youtube.media_url_base}/manifest/hls_playlist/{of}/file/index.m3u8\n"
            )
        else:
            lines = video.hls.read_text().splitlines()
            before = f"{self.youtube.media_url_base}/videoplayback/{of}/file/"
            text = "\n".join(line if line.startswith("#") else before + line for line in lines) + "\n"
        sent = _Sent(HLS, self.headers.get("Range"), 200)
        self.youtube._record(video_id, sent)
        self.head(200, _PLAYLIST_TYPE, len(text.encode()))
        return self.send(io.BytesIO(text.encode()), len(text.encode()), sent)

    def location(self, fault: str) -> str:
        if fault == "redirect-closed":
            return f"http://127.0.0.1:{self.youtube._nobody.getsockname()[1]}{self.path}"
        if fault == "redirect-file":
            return "file:///etc/passwd"
        if fault == "redirect-loop":
            return f"{self.youtube.media_url_base}{self.path}"
        mark = "&redirected=1" if "?" in self.path else "/redirected/1"
        return f"{self.youtube._elsewhere.url}{self.path}{mark}"

    def send(self, body: IO[bytes], length: int, sent: _Sent, rate: int | None = None) -> None:
        """Send the next bytes of a body, at most `rate` bytes per second."""
        portion = _CHUNK if rate is None else max(1, round(rate * _TICK))
        for left in range(length, 0, -portion):
            if rate is not None and self.youtube._closing.wait(_TICK):
                self.close_connection = True
                return
            block = memoryview(body.read(min(portion, left)))
            sent.body += len(block)  # before sending, so that a client that has the bytes never reads an old number
            try:
                while block:
                    block = block[self.connection.send(block) :]
            finally:
                sent.body -= len(block)  # a partial send means that the client has disconnected


def _is_open(header: str | None) -> bool:
    """Return whether a request has no end."""
    return header is None or header.endswith("-")


def _window(header: str | None, size: int) -> range | None:
    """Return the bytes that a Range header requests: all without one, None if there are none (416)."""
    if header is None:
        return range(size)
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    return range(start, stop) if start < stop else None


def assert_clean_reason(reason: str, video_id: str) -> None:
    """Check that a reason is one line for a log or an attribute, without the clutter of a command line."""
    assert reason.isprintable()
    assert reason.strip() == reason
    assert 5 < len(reason) <= 300
    for clutter in ("ERROR", "Use --cookies", "please report", "[youtube]", "[generic]", "[download]", "-t sleep"):
        assert clutter not in reason
    assert not reason.startswith(video_id)
