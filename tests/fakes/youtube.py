"""A YouTube on loopback: drives the real YouTube extractor of yt-dlp by configuration alone.

The extractor asks the player API (`POST /youtubei/v1/player`) for a video; `FakeYouTube` answers in its place,
either with formats on a media server of its own or with one of the refusals in `SCENARIOS`::

    with FakeYouTube() as yt:
        yt.add_video("dQw4w9WgXcQ", path, duration=30.0)
        yt.set_scenario("-private___", "private")
        YoutubeDL({**params, **yt.ytdlp_options}).extract_info("https://www.youtube.com/watch?v=dQw4w9WgXcQ")

The shapes of the answers are those that yt-dlp's extractor reads, the sentences those that YouTube is known for;
nothing was recorded there.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlencode, urlsplit

Json = dict[str, Any]

AD_SECONDS = 1
"""Length of the advertisement of the `preroll` scenario."""

RETRY_AFTER = 7
"""What every 429 asks for, in seconds."""

_CHUNK = 64 * 1024


class _Refusal(NamedTuple):
    """What the `playabilityStatus` of an answer without formats says."""

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
    # There, but not for everyone.
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
    # Not now.
    "upcoming": _Refusal("LIVE_STREAM_OFFLINE", "This live event will begin in 3 hours."),
    "premiere": _Refusal("LIVE_STREAM_OFFLINE", "Premieres in 3 hours"),
    "processing": _Refusal("UNPLAYABLE", "We're processing this video. Check back later."),
    # Not for this address.
    "bot": _Refusal("LOGIN_REQUIRED", "Sign in to confirm you’re not a bot"),
    "bot-ascii": _Refusal("LOGIN_REQUIRED", "Sign in to confirm you're not a bot"),
    "captcha": _Refusal("UNPLAYABLE", "Video unavailable"),
    "rate-limit": _Refusal("UNPLAYABLE", "Video unavailable", "This content isn't available, try again later."),
    # Not for this client.
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
            # All that matters is that it is there and not empty.
            "errorScreen": {"playerCaptchaViewModel": {"trackingParams": "CAAQ"}},
        }
    },
}
"""What a refusal has beyond, or in place of, its sentences."""

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
        "n-challenge",  # formats whose URL wants JavaScript
        "drm",
        "no-formats",
        "wrong-video",  # the answer is for another video: how a blocked address shows
        "html",  # the API answers 200 with a page
        "reset",
        "stall",
        *_REFUSALS,
        *_API_STATUSES,
    }
)

MEDIA_FAULTS = frozenset({"403", "404", "429", "500", "503", "truncate", "reset", "stall", "html"})


_PICTURE: Json = {"width": 640, "height": 360, "fps": 25, "quality": "medium", "qualityLabel": "360p"}
_SOUND: Json = {"audioQuality": "AUDIO_QUALITY_MEDIUM", "audioSampleRate": "44100", "audioChannels": 2}
_PROGRESSIVE = 18
_FORMATS: dict[int, Json] = {
    _PROGRESSIVE: {"mimeType": 'video/mp4; codecs="avc1.42001E, mp4a.40.2"', **_PICTURE, **_SOUND},
    134: {"mimeType": 'video/mp4; codecs="avc1.4d401e"', **_PICTURE},
    140: {"mimeType": 'audio/mp4; codecs="mp4a.40.2"', "quality": "tiny", **_SOUND},
}
"""Per itag, the description of the format."""


@dataclass(frozen=True)
class _Video:
    duration: float
    files: dict[int, Path]
    """Per itag."""


@dataclass
class _Sent:
    """A request for media: how it was answered and how much of the body has been handed to the network."""

    itag: int
    range: str | None
    status: int
    body: int = 0


class FakeYouTube:
    """A player API and a media server on loopback; see the module."""

    media_fault: dict[str, str | list[str]]
    """Per video: the fault (of `MEDIA_FAULTS`) of every request for media, or a list, one for each request to come."""

    def __init__(self) -> None:
        self.media_fault = {}
        self._videos: dict[str, _Video] = {}
        self._scenarios: dict[str, list[str]] = {}
        self._playable_at: dict[str, float] = {}
        self._clients: dict[str, list[str]] = {}
        self._sent: dict[str, list[_Sent]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._api = _Server(partial(_PlayerApi, self), _tls())
        self._media = _Server(partial(_Media, self))

    def __enter__(self) -> Self:
        for server in (self._api, self._media):
            # The default interval would make every exit wait half a second.
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for server in (self._api, self._media):
            server.shutdown()
            server.server_close()

    @property
    def ytdlp_options(self) -> Json:
        """Parameters of `YoutubeDL` that lead the YouTube extractor here. Plain values: they survive JSON and TOML."""
        return {
            "extractor_args": {
                "youtube": {
                    "innertube_host": [f"127.0.0.1:{self._api.port}"],
                    # All that would be fetched from www.youtube.com, whatever the innertube host.
                    "player_skip": ["webpage", "configs", "js", "initial_data"],
                }
            },
            "nocheckcertificate": True,
            # Nobody here minds being asked too often.
            "sleep_interval_requests": 0,
            # Loopback needs none, even where the environment names one.
            "proxy": "",
            # A JavaScript runtime would change the clients asked for: one that can never run makes every machine alike.
            "js_runtimes": {"deno": {"path": os.devnull}},
        }

    def add_video(
        self, video_id: str, path: Path, *, duration: float, adaptive: tuple[Path, Path] | None = None
    ) -> None:
        """Publish a file as format 18 (progressive, 360p) and, if given, a pair as 134 (video) and 140 (audio).

        The formats are always described as 640x360 H.264 and AAC, whatever the files hold.
        """
        files = {_PROGRESSIVE: path}
        if adaptive is not None:
            files[134], files[140] = adaptive
        self._videos[video_id] = _Video(duration, files)

    def set_scenario(self, video_id: str, *scenarios: str) -> None:
        """Decide how the player API answers for a video: one scenario a request, the last one for good.

        Without a scenario, a video that was added is `ok` and any other is `nonexistent`.
        """
        if unknown := set(scenarios) - SCENARIOS:
            raise ValueError(f"unknown scenarios: {', '.join(sorted(unknown))}")
        if not scenarios:
            raise ValueError("no scenario")
        with self._lock:
            self._scenarios[video_id] = list(scenarios)

    def player_requests(self, video_id: str) -> int:
        """How often the player API was asked for this video."""
        return len(self.player_clients(video_id))

    def player_clients(self, video_id: str) -> list[str]:
        """The name of the YouTube client that each of these requests was made as."""
        with self._lock:
            return list(self._clients.get(video_id, ()))

    def media_requests(self, video_id: str, itag: int | None = None) -> list[tuple[str | None, int, int]]:
        """(Range header, status, bytes of body sent) of each request for media, of one format or of all.

        Exact for bodies that were read to the end; of others, the sockets may have swallowed more than was read.
        """
        with self._lock:
            return [
                (sent.range, sent.status, sent.body)
                for sent in self._sent.get(video_id, ())
                if itag is None or sent.itag == itag
            ]

    # What the servers ask.

    def _next_scenario(self, video_id: str, client: str) -> str:
        with self._lock:
            self._clients.setdefault(video_id, []).append(client)
            queue = self._scenarios.get(video_id)
            if queue is None:
                return "ok" if video_id in self._videos else "nonexistent"
            return queue.pop(0) if len(queue) > 1 else queue[0]

    def _next_fault(self, video_id: str) -> str | None:
        with self._lock:
            fault = self.media_fault.get(video_id)
            if isinstance(fault, list):
                fault = fault.pop(0) if fault else None
        if fault is not None and fault not in MEDIA_FAULTS:
            raise ValueError(f"unknown media fault: {fault}")
        return fault

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
        if video is None:
            raise ValueError(f"scenario {scenario} needs a video: add {video_id} first")
        if scenario == "preroll":
            self._playable_at[video_id] = time.time() + AD_SECONDS
            response["adPlacements"] = [_advertisement()]
        formats = {itag: self._describe(video_id, itag, scenario) for itag in video.files}
        response["streamingData"] = {"formats": [formats.pop(_PROGRESSIVE)], "adaptiveFormats": [*formats.values()]}
        return response

    def _describe(self, video_id: str, itag: int, scenario: str) -> Json:
        video = self._videos[video_id]
        size = video.files[itag].stat().st_size
        described: Json = {
            "itag": itag,
            **_FORMATS[itag],
            "bitrate": round(size * 8 / video.duration),
            "approxDurationMs": str(round(video.duration * 1000)),
        }
        if itag != _PROGRESSIVE:  # the harder case: nobody is told the size of format 18 beforehand
            described["contentLength"] = str(size)
        if scenario != "sabr":
            query: Json = {"id": video_id, "itag": itag}
            if scenario == "n-challenge":
                query["n"] = "ZdZIqFPQK-Ty8wId"
            described["url"] = f"http://127.0.0.1:{self._media.port}/videoplayback?{urlencode(query)}"
        return described

    def _file(self, video_id: str, itag: int) -> Path | None:
        video = self._videos.get(video_id)
        return video.files.get(itag) if video else None

    def _too_early(self, video_id: str) -> bool:
        return time.time() < self._playable_at.get(video_id, 0)

    def _record(self, video_id: str, sent: _Sent) -> None:
        with self._lock:
            self._sent.setdefault(video_id, []).append(sent)


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


def _advertisement() -> Json:
    return {
        "adPlacementRenderer": {
            "config": {"adPlacementConfig": {"kind": "AD_PLACEMENT_KIND_START"}},
            "renderer": {"instreamVideoAdRenderer": {"playerVars": f"length_seconds={AD_SECONDS}"}},
        }
    }


@cache
def _tls() -> ssl.SSLContext:
    """A server context with a certificate made for this process, which nobody has a reason to trust."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    return context


class _Server(ThreadingHTTPServer):
    # An exit must not wait for clients that keep their connection open.
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.port: int = self.server_address[1]
        if tls is not None:
            # The handshake belongs to the connection's thread: here it would hold up everyone else's.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients hang up, and refuse the certificate, as part of the tests.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small body waits for the acknowledgement of its headers

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
        """Say nothing more, but hold the line until the fake is closed."""
        self.youtube._closing.wait()
        self.close_connection = True

    def reset(self) -> None:
        """Break the connection: with no time to linger, closing sends RST in place of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it shares the socket, which is closed only when nobody has it
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
        query = parse_qs(url.query)
        video_id, itag = query.get("id", [""])[0], int(query.get("itag", ["0"])[0])
        path = self.youtube._file(video_id, itag)
        if path is None or url.path != "/videoplayback":
            return self.answer(404, "text/plain", b"Not Found")

        fault = self.youtube._next_fault(video_id)
        if fault is None and self.youtube._too_early(video_id):
            fault = "403"
        size = path.stat().st_size
        requested = self.headers.get("Range")
        window = _window(requested, size)

        if fault is not None and fault.isdigit():
            self.youtube._record(video_id, _Sent(itag, requested, int(fault)))
            return self.answer(int(fault), "text/plain", b"")
        if fault == "html":
            page = b"<!DOCTYPE html><title>Sorry</title>"
            self.youtube._record(video_id, _Sent(itag, requested, 200, len(page)))
            return self.answer(200, "text/html", page)
        if window is None:
            self.youtube._record(video_id, _Sent(itag, requested, 416))
            return self.head(416, "text/plain", 0, Content_Range=f"bytes */{size}")

        sent = _Sent(itag, requested, 200 if requested is None else 206)
        self.youtube._record(video_id, sent)
        headers = {"Accept_Ranges": "bytes"}
        if sent.status == 206:
            headers["Content_Range"] = f"bytes {window.start}-{window.stop - 1}/{size}"
        self.head(sent.status, "video/mp4", len(window), **headers)
        stop = window.stop if fault is None else window.start + len(window) // 2
        self.send(path, range(window.start, stop), sent)
        if fault == "stall":
            self.stall()
        elif fault == "reset":
            self.reset()
        elif fault == "truncate":
            self.close_connection = True
        return None

    def send(self, path: Path, window: range, sent: _Sent) -> None:
        with path.open("rb") as file:
            file.seek(window.start)
            for position in range(window.start, window.stop, _CHUNK):
                block = file.read(min(_CHUNK, window.stop - position))
                sent.body += len(block)  # before the client can have it, so that it never reads an old number
                self.wfile.write(block)


def _window(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for: all without one, None if there are none (416)."""
    if header is None:
        return range(size)
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    return range(start, stop) if start < stop else None
