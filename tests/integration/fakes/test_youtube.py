"""The fake YouTube, seen through the real yt-dlp: the texts that a classifier of failures has to go by.

When an update of yt-dlp changes one of them, it fails here first, and names the rule that needs a look.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from yt_dlp import YoutubeDL
from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError

from tests.support.youtube import (
    AD_SECONDS,
    ELSEWHERE,
    MAX_RANGE,
    MEDIA_FAULTS,
    PAGE,
    RETRY_AFTER,
    SCENARIOS,
    SLOW_RATE,
    THROTTLED_AFTER,
    THROTTLED_RATE,
    FakeYouTube,
)

VIDEO = "-a_Video-01"  # real ids begin with a hyphen, too, and must not be taken for options
NO_RUNTIME = "No supported JavaScript runtime could be found"

# … means: and so on.
LOG_IN = "Use --cookies-from-browser or --cookies for the authentication…"
NO_RESPONSE = "Failed to extract any player response; please report…"
NO_FORMATS = "No video formats found!; please report…"

REFUSALS: dict[str, tuple[str, list[str]]] = {
    # Gone.
    "nonexistent": ("Video unavailable", []),
    "removed": ("Video unavailable. This video has been removed by the uploader", []),
    "terminated": (
        "Video unavailable. This video is no longer available because the YouTube account associated with this video "
        "has been terminated.",
        [],
    ),
    "terms": ("This video has been removed for violating YouTube's Terms of Service", []),
    "harassment": ("This video has been removed for violating YouTube's policy on harassment and bullying", []),
    "copyright": (
        "Video unavailable. This video contains content from SME, who has blocked it on copyright grounds",
        [],
    ),
    "unavailable": ("Video unavailable. This video is not available", []),
    # There, but not for everyone.
    "private": (f"Private video. Sign in if you've been granted access to this video. {LOG_IN}", []),
    "age": (f"Sign in to confirm your age. This video may be inappropriate for some users. {LOG_IN}", []),
    "members": (
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        [],
    ),
    "members-level": ("This video is available to this channel's members on level: Gold…", []),
    "payment": ("This video requires payment to watch.", []),
    "drm": ("This video is DRM protected", []),
    "drm-experiment": (
        "This video is DRM protected",
        ["Some visionos client https formats have been skipped as they are DRM protected. "],
    ),
    "geo": (
        "The uploader has not made this video available in your country\n"
        "This video is available in United States, Germany.\n"
        "You might want to use a VPN or a proxy server (with --proxy) to workaround.",
        [],
    ),
    "geo-plain": ("Video unavailable. This video is not available in your country", []),
    "geo-copyright": (
        "Video unavailable. This video contains content from SME, who has blocked it in your country "
        "on copyright grounds",
        [],
    ),
    # Not now.
    "upcoming": ("This live event will begin in 3 hours.", []),
    "premiere": ("Premieres in 3 hours", []),
    "processing": ("We're processing this video. Check back later.", []),
    "live-ended": ("This live stream recording is not available.", []),
    # Not for this account.
    "content": ("Video unavailable. This content isn’t available.", []),
    "sign-in": (f"Please sign in. {LOG_IN}", []),
    "music": ("This video is only available to Music Premium members", []),
    "restricted-mode": ("Video unavailable. This video is unavailable with Restricted Mode enabled…", []),
    # Not for this address.
    "bot": (f"Sign in to confirm you’re not a bot. {LOG_IN}", []),
    "bot-ascii": (f"Sign in to confirm you're not a bot. {LOG_IN}", []),
    "captcha": ("Video unavailable. YouTube is requiring a captcha challenge before playback", []),
    "rate-limit": (
        "Video unavailable. This content isn't available, try again later. The current session has been rate-limited "
        "by YouTube for up to an hour. It is recommended to use `-t sleep`…",
        [],
    ),
    "wrong-video": (
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
        [
            "Skipping player responses from visionos clients "
            f'(got player responses for video "aQvGIIdgFDM" instead of "{VIDEO}")',
        ],
    ),
    # Not for this client.
    "reload": ("The page needs to be reloaded.", []),
    "app": ("The following content is not available on this app.. Watch on the latest version of YouTube.", []),
    "sabr": (NO_FORMATS, ["YouTube may have enabled the SABR-only streaming experiment for the current session"]),
    "n-challenge": (NO_FORMATS, []),
    "no-formats": (NO_FORMATS, []),
    # The player API itself: the cause is only ever in the warnings.
    "http-400": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - Request contains an invalid argument.",
            "HTTP Error 400: Bad Request. Retrying (1/1)...",
            "YouTube said: ERROR - Request contains an invalid argument.",
            "Unable to download API page: HTTP Error 400: Bad Request (caused by <HTTPError 400: Bad Request>)",
        ],
    ),
    "http-403": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - The caller does not have permission",
            "Unable to download API page: HTTP Error 403: Forbidden (caused by <HTTPError 403: Forbidden>)",
        ],
    ),
    "http-404": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - Requested entity was not found.",
            "HTTP Error 404: Not Found. Retrying (1/1)...",
            "YouTube said: ERROR - Requested entity was not found.",
            "Unable to download API page: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
        ],
    ),
    "http-429": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - Resource has been exhausted (e.g. check quota).",
            "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429",
        ],
    ),
    "http-500": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - Internal error encountered.",
            "HTTP Error 500: Internal Server Error. Retrying (1/1)...",
            "YouTube said: ERROR - Internal error encountered.",
            "Unable to download API page: HTTP Error 500: Internal Server Error (caused by <HTTPError 500",
        ],
    ),
    "http-503": (
        NO_RESPONSE,
        [
            "YouTube said: ERROR - The service is currently unavailable.",
            "HTTP Error 503: Service Unavailable. Retrying (1/1)...",
            "YouTube said: ERROR - The service is currently unavailable.",
            "Unable to download API page: HTTP Error 503: Service Unavailable (caused by <HTTPError 503",
        ],
    ),
    "html": (NO_RESPONSE, ["Failed to parse JSON (caused by JSONDecodeError("]),
    "stall": (NO_RESPONSE, ["timed out. (read timeout=1.0). Retrying (1/1)...", "(caused by TransportError("]),
    "reset": (NO_RESPONSE, ["Retrying (1/1)...", "Unable to download API page: ('Connection aborted.'"]),
}
"""Per scenario: the error after its prefix, and what each warning contains, in their order."""

MEDIA_ERRORS: dict[str, tuple[str, int]] = {
    "403": ("unable to download video data: HTTP Error 403: Forbidden", 1),
    "404": ("unable to download video data: HTTP Error 404: Not Found", 1),
    "429": ("unable to download video data: HTTP Error 429: Too Many Requests", 1),
    "429-bare": ("unable to download video data: HTTP Error 429: Too Many Requests", 1),
    "500": ("\r[download] Got error: HTTP Error 500: Internal Server Error. Giving up after 1 retries", 2),
    "503": ("\r[download] Got error: HTTP Error 503: Service Unavailable. Giving up after 1 retries", 2),
    "truncate": ("more expected. Giving up after 1 retries", 2),
    "reset": ("Connection reset by peer", 2),
    "stall": ("timed out", 2),
}
"""Fault → text of the error, and number of requests."""

_strangers: list[str] = []
_watching = False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Note whatever would leave this machine, and refuse it before it does."""
    if not _watching or event not in ("socket.getaddrinfo", "socket.connect"):
        return
    address = args[0] if event == "socket.getaddrinfo" else args[1]
    host = address[0] if isinstance(address, tuple) else address
    if not str(host).startswith("127."):
        _strangers.append(str(host))
        raise ConnectionRefusedError(f"not on loopback: {host}")


@pytest.fixture(scope="module")
def watchman() -> None:
    # An audit hook cannot be removed, so all tests share one that can be switched off.
    sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def loopback_only(watchman: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global _watching
    _strangers.clear()
    _watching = True
    yield
    _watching = False
    assert not _strangers


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "media.mp4"
    path.write_bytes(random.Random(18).randbytes(300_000))
    return path


@pytest.fixture
def yt(yt: FakeYouTube, media: Path) -> FakeYouTube:
    yt.add_video(VIDEO, media, duration=10.0)
    return yt


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def debug(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def error(self, message: str) -> None:
        pass


@dataclass
class Outcome:
    info: dict[str, Any] | None
    error: DownloadError | None
    warnings: list[str]
    """Without the one on the JavaScript runtime, which every extraction gives, whatever its outcome."""

    @property
    def text(self) -> str:
        return str(self.error).removeprefix("ERROR: ")

    @property
    def cause(self) -> BaseException | None:
        assert self.error is not None
        cause: BaseException | None = self.error.exc_info[1]
        return cause


def drive(
    yt: FakeYouTube, folder: Path, *, video: str = VIDEO, youtube: dict[str, list[str]] | None = None, **params: Any
) -> Outcome:
    """Extract, and download into `folder`, as an embedder does; `youtube` are more extractor arguments."""
    log = Log()
    options = yt.ytdlp_options
    options["extractor_args"]["youtube"].update(youtube or {})
    base = {
        "quiet": True,
        "noprogress": True,
        "logger": log,
        "cachedir": False,
        "allowed_extractors": ["^youtube$"],
        "format": "18",
        "socket_timeout": yt.socket_timeout,
        "extractor_retries": 1,
        "retries": 1,
        "outtmpl": str(folder / "download.%(ext)s"),
    }
    info: dict[str, Any] | None = None
    error: DownloadError | None = None
    with YoutubeDL({**base, **options, **params}) as ytdlp:
        try:
            info = ytdlp.extract_info(f"https://www.youtube.com/watch?v={video}")
        except DownloadError as raised:
            error = raised
    return Outcome(info, error, [warning for warning in log.warnings if NO_RUNTIME not in warning])


@contextmanager
def connected(url: str) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """Connect to the server of a URL; yield the connection and the path to request."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=5)) as connection:
        connection.connect()
        yield connection, f"{parts.path}?{parts.query}"


def media_url(yt: FakeYouTube, folder: Path, **params: Any) -> str:
    """Where a fresh extraction finds the media."""
    info = drive(yt, folder, simulate=True, **params).info
    assert info is not None
    url: str = info["url"]
    return url


def reads(text: str, expected: str) -> bool:
    return text.startswith(expected[:-1]) if expected.endswith("…") else text == expected


def test_every_scenario_and_fault_is_described() -> None:
    assert {*REFUSALS, "ok", "preroll", "live", "trailer"} == SCENARIOS
    assert {
        *MEDIA_ERRORS,
        *ANSWERS,
        *REDIRECTS,
        "expired",
        "changed",
        "slow",
        "throttle",
        "empty",
    } == MEDIA_FAULTS.keys()


@pytest.mark.parametrize("scenario", REFUSALS)
def test_refusal(yt: FakeYouTube, tmp_path: Path, scenario: str) -> None:
    expected, warnings = REFUSALS[scenario]
    yt.set_scenario(VIDEO, scenario)

    outcome = drive(yt, tmp_path)

    assert reads(outcome.text, f"[youtube] {VIDEO}: {expected}")
    assert len(outcome.warnings) == len(warnings)
    for warning, part in zip(outcome.warnings, warnings, strict=True):
        assert part in warning
    assert isinstance(outcome.cause, ExtractorError)
    # yt-dlp asks for a report of errors that it does not expect.
    assert outcome.cause.expected == ("please report" not in expected)
    assert isinstance(outcome.cause, GeoRestrictedError) == (scenario == "geo")
    assert yt.media_requests(VIDEO) == []


def test_download(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    outcome = drive(yt, tmp_path)

    assert outcome.error is None
    assert outcome.warnings == []
    assert outcome.info is not None
    assert (outcome.info["id"], outcome.info["duration"], outcome.info["height"]) == (VIDEO, 10, 360)
    assert (tmp_path / "download.mp4").read_bytes() == media.read_bytes()
    assert yt.player_clients(VIDEO) == ["VISIONOS"]
    [(requested, status, sent)] = yt.media_requests(VIDEO, itag=18)
    assert requested is not None
    assert requested.startswith("bytes=0-")
    assert (status, sent) == (206, 300_000)


def test_id_with_hyphens_is_no_option(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    yt.add_video("--HHKLZPagg", media, duration=10.0)

    assert drive(yt, tmp_path, video="--HHKLZPagg").error is None
    assert yt.player_requests("--HHKLZPagg") == 1
    assert yt.player_requests(VIDEO) == 0


def test_adaptive_formats(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    picture, sound = tmp_path / "134", tmp_path / "140"
    picture.write_bytes(b"picture")
    sound.write_bytes(b"sound, sound")
    yt.add_video(VIDEO, media, duration=10.0, adaptive=(picture, sound))

    picked = drive(yt, tmp_path, format="bv[vcodec^=avc1]", outtmpl=str(tmp_path / "picture"))
    assert picked.info is not None
    assert (picked.info["format_id"], picked.info["filesize"]) == ("134", 7)
    assert (tmp_path / "picture").read_bytes() == b"picture"

    drive(yt, tmp_path, format="ba[ext=m4a]", outtmpl=str(tmp_path / "sound"))
    assert (tmp_path / "sound").read_bytes() == b"sound, sound"
    assert [sent for _, _, sent in yt.media_requests(VIDEO, itag=134)] == [7]
    assert [sent for _, _, sent in yt.media_requests(VIDEO)] == [7, 12]


def test_missing_format(yt: FakeYouTube, tmp_path: Path) -> None:
    outcome = drive(yt, tmp_path, format="137")

    assert reads(outcome.text, f"[youtube] {VIDEO}: Requested format is not available. Use --list-formats…")


def test_scenarios_follow_each_other(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "http-500", "ok")

    outcome = drive(yt, tmp_path)

    assert outcome.error is None
    assert "HTTP Error 500: Internal Server Error. Retrying (1/1)..." in outcome.warnings[1]
    assert yt.player_requests(VIDEO) == 2


def test_age_gate_is_tried_once_more_as_an_embedded_player(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "age", "ok")

    assert drive(yt, tmp_path).error is None
    assert yt.player_clients(VIDEO) == ["VISIONOS", "WEB_EMBEDDED_PLAYER"]


@pytest.mark.parametrize("scenarios", [("http-429", "nonexistent"), ("nonexistent", "http-429")])
def test_block_can_hide_behind_a_plain_video_unavailable(
    yt: FakeYouTube, tmp_path: Path, scenarios: tuple[str, str]
) -> None:
    yt.set_scenario(VIDEO, *scenarios)

    outcome = drive(yt, tmp_path, youtube={"player_client": ["visionos", "tv_samsung"]})

    assert outcome.text == f"[youtube] {VIDEO}: Video unavailable"
    assert "HTTP Error 429: Too Many Requests" in outcome.warnings[-1]


def test_unsolved_challenge_is_told_in_a_warning(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "n-challenge")
    # A client that needs the player's JavaScript, of a given version: so its address is known without a request.
    client = {"player_client": ["tv_samsung"], "player_js_version": ["20000@deadbeef"]}

    outcome = drive(yt, tmp_path, youtube={**client, "player_skip": ["webpage", "configs", "initial_data"]})

    assert reads(outcome.text, f"[youtube] {VIDEO}: {NO_FORMATS}")
    assert any("n challenge solving failed: Some formats may be missing" in warning for warning in outcome.warnings)


def test_missing_runtime_is_told_every_time_even_in_success(yt: FakeYouTube) -> None:
    log = Log()
    with YoutubeDL({"quiet": True, "logger": log, "cachedir": False, **yt.ytdlp_options}) as ytdlp:
        for _ in range(2):
            ytdlp.extract_info(f"https://www.youtube.com/watch?v={VIDEO}", download=False)

    assert [NO_RUNTIME in warning for warning in log.warnings] == [True, True]


def test_untrusted_certificate(yt: FakeYouTube, tmp_path: Path) -> None:
    outcome = drive(yt, tmp_path, nocheckcertificate=False)

    assert reads(outcome.text, f"[youtube] {VIDEO}: {NO_RESPONSE}")
    assert "CertificateVerifyError('[SSL: CERTIFICATE_VERIFY_FAILED]" in outcome.warnings[-1]
    assert yt.player_requests(VIDEO) == 0


@pytest.mark.server
def test_nobody_listens(media: Path, tmp_path: Path) -> None:
    with FakeYouTube() as yt:
        pass

    outcome = drive(yt, tmp_path)

    assert reads(outcome.text, f"[youtube] {VIDEO}: {NO_RESPONSE}")
    assert "Connection refused" in outcome.warnings[-1]


@pytest.mark.parametrize("fault", MEDIA_ERRORS)
def test_media_fault(yt: FakeYouTube, tmp_path: Path, fault: str) -> None:
    expected, requests = MEDIA_ERRORS[fault]
    yt.media_fault[VIDEO] = fault

    outcome = drive(yt, tmp_path)

    assert expected in outcome.text
    assert outcome.warnings == []
    assert not (tmp_path / "download.mp4").exists()
    assert len(yt.media_requests(VIDEO)) == requests
    if requests == 1:
        assert isinstance(outcome.cause, HTTPError)
        assert outcome.cause.status == int(fault.removesuffix("-bare"))
    else:  # given up after retries: nothing but the text is left
        assert outcome.cause is None


def test_media_429_tells_when_to_come_back(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "429"

    cause = drive(yt, tmp_path).cause

    assert isinstance(cause, HTTPError)
    assert cause.response.headers["Retry-After"] == str(RETRY_AFTER)

    yt.media_fault[VIDEO] = "429-bare"
    cause = drive(yt, tmp_path).cause
    assert isinstance(cause, HTTPError)
    assert "Retry-After" not in cause.response.headers


def test_media_fault_of_one_request(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = ["truncate"]

    assert drive(yt, tmp_path).error is None
    assert (tmp_path / "download.mp4").read_bytes() == media.read_bytes()
    assert [status for _, status, _ in yt.media_requests(VIDEO)] == [206, 206]


def test_page_in_place_of_media_is_success_to_ytdlp(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "html"

    assert drive(yt, tmp_path).error is None
    assert (tmp_path / "download.mp4").read_bytes().startswith(b"<!DOCTYPE html>")


def test_media_are_refused_during_the_advertisement(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "preroll")
    before = time.time()

    outcome = drive(yt, tmp_path, simulate=True)

    assert outcome.info is not None
    [chosen] = outcome.info["requested_downloads"]
    assert chosen["available_at"] - before >= AD_SECONDS
    with connected(chosen["url"]) as (connection, path):
        connection.request("GET", path)
        assert connection.getresponse().status == 403

    assert drive(yt, tmp_path).error is None  # it waits
    assert (tmp_path / "download.mp4").read_bytes() == media.read_bytes()


def test_ranges_over_one_connection(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    outcome = drive(yt, tmp_path, simulate=True)
    assert outcome.info is not None
    data = media.read_bytes()

    with connected(outcome.info["url"]) as (connection, path):
        first = connection.sock
        for requested, status, content_range, body in (
            (None, 200, None, data),
            ("bytes=0-0", 206, "bytes 0-0/300000", data[:1]),
            ("bytes=100-70099", 206, "bytes 100-70099/300000", data[100:70100]),
            ("bytes=299990-", 206, "bytes 299990-299999/300000", data[-10:]),
            ("bytes=299990-999999", 206, "bytes 299990-299999/300000", data[-10:]),
            ("bytes=-5", 206, "bytes 299995-299999/300000", data[-5:]),
            ("bytes=300000-", 416, "bytes */300000", b""),
        ):
            connection.request("GET", path, headers={"Range": requested} if requested else {})
            response = connection.getresponse()
            answer = (response.status, response.headers["Content-Range"], response.read())
            assert answer == (status, content_range, body)
            assert yt.media_requests(VIDEO)[-1] == (requested, status, len(body))
            assert connection.sock is first


SIZE = 300_000
ASKED = "bytes=1000-2999"


@dataclass(frozen=True)
class Answer:
    """The answer on the wire to a request for `ASKED`, with the relevant headers."""

    status: int
    media_type: str
    length: int
    content_range: str | None
    body: bytes
    closed: bool = False


def of_media(start: int, stop: int) -> bytes:
    return random.Random(18).randbytes(SIZE)[start:stop]


HONEST = "bytes 1000-2999/300000"
ANSWERS = {
    "html": Answer(200, "text/html", len(PAGE), None, PAGE),
    "html-as-mp4": Answer(200, "video/mp4", len(PAGE), None, PAGE),
    "html-206": Answer(206, "text/html", 2000, HONEST, PAGE.ljust(2000)),
    "html-206-as-mp4": Answer(206, "video/mp4", 2000, HONEST, PAGE.ljust(2000)),
    "no-ranges": Answer(200, "video/mp4", SIZE, None, of_media(0, SIZE)),
    "wrong-window": Answer(206, "video/mp4", 2000, "bytes 1001-3000/300000", of_media(1001, 3001)),
    "long-length": Answer(206, "video/mp4", 3000, HONEST, of_media(1000, 3000), closed=True),
    "short-length": Answer(206, "video/mp4", 1000, HONEST, of_media(1000, 3000)),
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_wrong_answer_on_the_wire(yt: FakeYouTube, tmp_path: Path, fault: str) -> None:
    yt.media_fault[VIDEO] = [fault]
    expected = ANSWERS[fault]

    with connected(media_url(yt, tmp_path)) as (connection, path):
        # Read by hand, because a library hides bytes beyond the stated length, and their absence.
        connection.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: {ASKED}\r\n\r\n".encode())
        wire = connection.sock.makefile("rb")
        status = int(wire.readline().split()[1])
        headers = http.client.parse_headers(wire)
        body = wire.read(len(expected.body))
        found = Answer(status, headers["Content-Type"], int(headers["Content-Length"]), headers["Content-Range"], body)
        assert replace(found, closed=expected.closed) == expected
        assert yt.media_requests(VIDEO) == [(ASKED, expected.status, len(expected.body))]
        if expected.closed:
            assert wire.read() == b""
        else:  # that was all, for the right answer to the next request comes right behind
            connection.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=5-6\r\n\r\n".encode())
            assert wire.readline() == b"HTTP/1.1 206 Partial Content\r\n"
            assert http.client.parse_headers(wire)["Content-Range"] == "bytes 5-6/300000"


def ask(connection: http.client.HTTPConnection, path: str, wanted: str | None = ASKED) -> http.client.HTTPResponse:
    connection.request("GET", path, headers={"Range": wanted} if wanted else {})
    return connection.getresponse()


REDIRECTS = {
    "redirect": (f"http://{ELSEWHERE}:", True),
    "redirect-closed": ("http://127.0.0.1:", False),
    "redirect-file": ("file:///etc/passwd", False),
    "redirect-loop": ("http://127.0.0.1:", True),
}
"""Per fault: where to, and whether somebody is there."""


@pytest.mark.parametrize("fault", REDIRECTS)
def test_redirect(yt: FakeYouTube, tmp_path: Path, fault: str) -> None:
    beginning, served = REDIRECTS[fault]
    yt.media_fault[VIDEO] = fault
    url = media_url(yt, tmp_path)
    with connected(url) as (connection, path):
        answer = ask(connection, path)
        assert (answer.status, answer.read()) == (302, b"")
        location = answer.headers["Location"]

    assert location.startswith(beginning)
    assert (location == url) == (fault == "redirect-loop")
    if served:
        with connected(location) as (connection, path):
            answer = ask(connection, path)
            if fault == "redirect-loop":
                assert (answer.status, answer.headers["Location"]) == (302, url)
            else:
                assert (answer.status, answer.read()) == (206, of_media(1000, 3000))
    elif fault == "redirect-closed":
        with pytest.raises(ConnectionRefusedError), connected(location):
            pass
    sent = [(ASKED, 302, 0), *{"redirect": [(ASKED, 206, 2000)], "redirect-loop": [(ASKED, 302, 0)]}.get(fault, [])]
    assert yt.media_requests(VIDEO) == sent


def test_redirect_is_followed_by_ytdlp(yt: FakeYouTube, media: Path, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "redirect"

    assert drive(yt, tmp_path).error is None
    assert (tmp_path / "download.mp4").read_bytes() == media.read_bytes()


def test_url_expires_and_a_new_extraction_has_another(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "expired"
    yt.url_uses = 2
    for _ in range(2):
        with connected(media_url(yt, tmp_path)) as (connection, path):
            statuses = []
            for _ in range(4):
                answer = ask(connection, path)
                answer.read()
                statuses.append(answer.status)
        assert statuses == [206, 206, 403, 403]


def test_file_changes_after_the_first_answer(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "changed"
    with connected(media_url(yt, tmp_path)) as (connection, path):
        ranges = []
        for _ in range(3):
            answer = ask(connection, path)
            assert answer.read() == of_media(1000, 3000)
            ranges.append(answer.headers["Content-Range"])

    assert ranges == ["bytes 1000-2999/300000", "bytes 1000-2999/300001", "bytes 1000-2999/300001"]


def test_slow_body_comes_byte_by_byte(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "slow"
    with connected(media_url(yt, tmp_path)) as (connection, path):
        began = time.monotonic()
        answer = ask(connection, path)
        assert (answer.status, answer.headers["Content-Length"]) == (206, "2000")
        assert answer.read(5) == of_media(1000, 1005)

        assert time.monotonic() - began >= 5 / SLOW_RATE
        [(_, _, sent)] = yt.media_requests(VIDEO)
        assert sent < 2000


@pytest.mark.parametrize(
    ("wanted", "throttled"),
    [
        (f"bytes=0-{MAX_RANGE - 1}", False),
        (f"bytes=0-{MAX_RANGE}", True),
        (f"bytes={MAX_RANGE}-", True),
        (None, True),
    ],
)
def test_throttle(yt: FakeYouTube, tmp_path: Path, wanted: str | None, throttled: bool) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(MAX_RANGE + 2 * THROTTLED_AFTER))
    yt.add_video(VIDEO, large, duration=10.0)
    yt.media_fault[VIDEO] = "throttle"
    with connected(media_url(yt, tmp_path)) as (connection, path):
        answer = ask(connection, path, wanted)
        answer.read(THROTTLED_AFTER)
        began = time.monotonic()
        if throttled:
            answer.read(THROTTLED_RATE // 2)
            assert time.monotonic() - began >= 0.3
            [(_, _, sent)] = yt.media_requests(VIDEO)
            assert sent < 2 * THROTTLED_AFTER
        else:  # at the throttled rate, this would outlast the test
            assert len(answer.read()) == MAX_RANGE - THROTTLED_AFTER


@pytest.mark.parametrize("itag", [18, 134])
def test_claimed_size(yt: FakeYouTube, media: Path, tmp_path: Path, itag: int) -> None:
    yt.add_video(VIDEO, media, duration=10.0, adaptive=(media, media), claimed_size=12_345)

    outcome = drive(yt, tmp_path, simulate=True, format=str(itag))

    assert outcome.info is not None
    assert outcome.info["filesize"] == 12_345
    with connected(outcome.info["url"]) as (connection, path):
        assert ask(connection, path).headers["Content-Range"] == HONEST


@pytest.fixture
def hls(tmp_path: Path) -> Path:
    """Three segments with any content, and their list."""
    folder = tmp_path / "hls"
    folder.mkdir()
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:5"]
    for number in range(3):
        name = f"segment{number}.ts"
        (folder / name).write_bytes(random.Random(number).randbytes(50_000 + number))
        lines += ["#EXTINF:5.000000,", name]
    (folder / "index.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    return folder / "index.m3u8"


def test_hls_alone(yt: FakeYouTube, hls: Path, tmp_path: Path) -> None:
    yt.add_video(VIDEO, duration=15.0, hls=hls)

    outcome = drive(yt, tmp_path, format="b", hls_prefer_native=True)

    assert outcome.info is not None
    assert [(one["format_id"], one["protocol"], one["height"]) for one in outcome.info["formats"]] == [
        ("93", "m3u8_native", 360)
    ]
    segments = [(hls.parent / f"segment{number}.ts").read_bytes() for number in range(3)]
    assert (tmp_path / "download.mp4").read_bytes() == b"".join(segments)
    requests = yt.media_requests(VIDEO, itag=93)
    assert requests == yt.media_requests(VIDEO)
    assert [status for _, status, _ in requests] == [200] * 5
    assert [sent for _, _, sent in requests][2:] == [50_000, 50_001, 50_002]


def test_hls_segments_have_faults_and_playlists_none(yt: FakeYouTube, hls: Path, tmp_path: Path) -> None:
    yt.add_video(VIDEO, duration=15.0, hls=hls)
    yt.media_fault[VIDEO] = ["ok", "404"]

    outcome = drive(yt, tmp_path, format="b", hls_prefer_native=True, skip_unavailable_fragments=False)

    assert "HTTP Error 404" in str(outcome.error)
    assert [status for _, status, _ in yt.media_requests(VIDEO)] == [200, 200, 200, 404]


def test_hls_beside_files(yt: FakeYouTube, media: Path, hls: Path, tmp_path: Path) -> None:
    yt.add_video(VIDEO, media, duration=15.0, hls=hls)

    outcome = drive(yt, tmp_path, simulate=True)

    assert outcome.info is not None
    assert {one["format_id"] for one in outcome.info["formats"]} == {"18", "93"}


def test_only_segments_are_served(yt: FakeYouTube, hls: Path, tmp_path: Path) -> None:
    yt.add_video(VIDEO, duration=15.0, hls=hls)
    with connected(yt.media_url_base) as (connection, _):
        for name, status in (("segment0.ts", 200), ("nothing.ts", 404), ("", 404), ("..", 404)):
            answer = ask(connection, f"/videoplayback/id/{VIDEO}/itag/93/file/{name}", None)
            answer.read()
            assert answer.status == status


def test_options_survive_json(yt: FakeYouTube) -> None:
    assert json.loads(json.dumps(yt.ytdlp_options)) == yt.ytdlp_options


def test_misspelt_scenario_is_refused(yt: FakeYouTube) -> None:
    with pytest.raises(ValueError, match="privat"):
        yt.set_scenario(VIDEO, "privat")


def test_watchman_sees_strangers() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("www.youtube.com", 443), timeout=1)
    assert _strangers == ["www.youtube.com"]
    _strangers.clear()
