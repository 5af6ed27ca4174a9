"""Errors of the real yt-dlp against a fake YouTube, and the kind of failure that each becomes."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.youtube.source import YouTubeSource
from tests.support.youtube import MEDIA_FAULTS, RETRY_AFTER, SCENARIOS, TRAILER, FakeYouTube, assert_clean_reason

pytestmark = pytest.mark.usefixtures("as_in_a_worker")

VIDEO = "-a_Video-01"
CLIP = Clip(VIDEO, 1, 2)

KINDS: dict[FailureKind, set[str]] = {
    FailureKind.GONE: {"nonexistent", "removed", "terminated", "terms", "harassment", "copyright", "unavailable"}
    | {"live-ended"},
    FailureKind.CREDENTIALS: {
        *("private", "age", "members", "members-level", "payment", "drm", "geo", "geo-plain", "geo-copyright"),
        *("music", "drm-experiment"),
    },
    FailureKind.BLOCKED: {"bot", "bot-ascii", "captcha", "rate-limit", "wrong-video", "http-429", "content", "sign-in"},
    FailureKind.TRANSIENT: {
        *("http-400", "http-403", "http-404", "http-500", "http-503", "html", "stall", "reset"),
        *("sabr", "reload", "app", "no-formats", "n-challenge", "upcoming", "premiere", "processing", "live"),
        "restricted-mode",
    },
}

MEDIA_KINDS = {
    "403": FailureKind.TRANSIENT,
    "404": FailureKind.TRANSIENT,  # the player has just said that the video is there
    "429": FailureKind.BLOCKED,
    "429-bare": FailureKind.BLOCKED,
    "500": FailureKind.TRANSIENT,
    "503": FailureKind.TRANSIENT,
    "truncate": FailureKind.TRANSIENT,
    "reset": FailureKind.TRANSIENT,
    "stall": FailureKind.TRANSIENT,
}

TROUBLES = {
    "http-403": FailureKind.TRANSIENT,
    "http-429": FailureKind.BLOCKED,
    "http-500": FailureKind.TRANSIENT,
    "http-503": FailureKind.TRANSIENT,
    "stall": FailureKind.TRANSIENT,
    "reset": FailureKind.TRANSIENT,
}
"""Messages about the client or the network, which must win over those of the same call about the video."""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "media.mp4"
    path.write_bytes(bytes(range(256)) * 400)
    return path


@pytest.fixture
def yt(yt: FakeYouTube, media: Path) -> FakeYouTube:
    yt.add_video(VIDEO, media, duration=10.0, adaptive=(media, media))
    return yt


def source(yt: FakeYouTube, youtube: dict[str, list[str]] | None = None, **params: Any) -> YouTubeSource:
    """Return the source as a worker makes it, with few tries; `youtube` are more arguments of the extractor."""
    options = copy.deepcopy(yt.ytdlp_options)
    options["extractor_args"]["youtube"].update(youtube or {})
    quick = {"socket_timeout": yt.socket_timeout, "extractor_retries": 1, "retries": 1, "fragment_retries": 1}
    settings = SourceSettings(ytdlp={**options, **quick, **params})
    # By way of JSON, as the settings reach a worker.
    return YouTubeSource(SourceSettings(**json.loads(json.dumps({"ytdlp": settings.ytdlp}))))


def failure(source: YouTubeSource, folder: Path, clip: Clip = CLIP) -> FetchError:
    with pytest.raises(FetchError) as caught:
        source.fetch(clip, folder)
    assert_clean_reason(caught.value.reason, VIDEO)
    assert caught.value.source == "youtube"
    return caught.value


def test_every_scenario_has_a_kind() -> None:
    assert set().union(*KINDS.values()) == SCENARIOS - {"ok", "preroll", "trailer"}
    assert MEDIA_KINDS.keys() <= MEDIA_FAULTS.keys()  # the others are for readers of media


@pytest.mark.parametrize(("kind", "scenario"), [(kind, name) for kind in KINDS for name in sorted(KINDS[kind])])
def test_scenario(yt: FakeYouTube, tmp_path: Path, kind: FailureKind, scenario: str) -> None:
    yt.set_scenario(VIDEO, scenario)

    error = failure(source(yt), tmp_path)

    assert error.kind == kind
    assert error.cause_errno == (errno.ETIMEDOUT if scenario == "stall" else None)
    assert yt.media_requests(VIDEO) == []


def test_drm_of_an_experiment_is_no_verdict_on_the_video(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "drm-experiment")

    assert failure(source(yt, {"player_client": ["tv"]}), tmp_path).kind is FailureKind.TRANSIENT


def test_trailer_is_not_taken_for_the_video(yt: FakeYouTube, tmp_path: Path, media: Path) -> None:
    yt.add_video(TRAILER, media, duration=10.0)
    yt.set_scenario(VIDEO, "trailer")

    error = failure(source(yt), tmp_path)

    assert (error.kind, error.reason) == (FailureKind.CREDENTIALS, f"YouTube shows another video instead: {TRAILER}")
    assert yt.media_requests(TRAILER) == []


@pytest.mark.parametrize("scenario", ["live", "upcoming", "premiere", "processing"])
def test_live_stream_is_tried_again_after_hours(yt: FakeYouTube, tmp_path: Path, scenario: str) -> None:
    yt.set_scenario(VIDEO, scenario)

    assert (failure(source(yt), tmp_path).retry_after or 0) > 3600


@pytest.mark.parametrize("fault", sorted(MEDIA_KINDS))
def test_media_fault(yt: FakeYouTube, tmp_path: Path, fault: str) -> None:
    yt.media_fault[VIDEO] = fault

    error = failure(source(yt), tmp_path)

    assert error.kind == MEDIA_KINDS[fault]
    assert error.retry_after == (RETRY_AFTER if fault == "429" else None)
    assert error.cause_errno == (errno.ETIMEDOUT if fault == "stall" else None)


def test_page_in_place_of_media_is_no_verdict_on_the_video(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.media_fault[VIDEO] = "html"

    assert failure(source(yt), tmp_path).kind is FailureKind.TRANSIENT


@pytest.mark.parametrize("verdict", ["nonexistent", "removed", "private"])
@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_verdict_beside_trouble_does_not_count(yt: FakeYouTube, tmp_path: Path, trouble: str, verdict: str) -> None:
    # Two clients ask in turn: the first gets a temporary error, the second that the video is gone.
    yt.set_scenario(VIDEO, trouble, trouble, verdict)

    error = failure(source(yt, {"player_client": ["visionos", "tv_samsung"]}, extractor_retries=1), tmp_path)

    assert len(set(yt.player_clients(VIDEO))) == 2
    assert error.kind == TROUBLES[trouble]


def test_warnings_of_one_clip_say_nothing_of_the_next(yt: FakeYouTube, tmp_path: Path) -> None:
    reused = source(yt)
    yt.set_scenario(VIDEO, "http-429")
    assert failure(reused, tmp_path).kind is FailureKind.BLOCKED

    yt.set_scenario(VIDEO, "removed")

    assert failure(reused, tmp_path).kind is FailureKind.GONE


def test_untrusted_certificate(yt: FakeYouTube, tmp_path: Path) -> None:
    error = failure(source(yt, nocheckcertificate=False), tmp_path)

    assert error.kind is FailureKind.CONFIG
    assert yt.player_requests(VIDEO) == 0


@pytest.mark.server
def test_nobody_listens(media: Path, tmp_path: Path) -> None:
    with FakeYouTube() as yt:
        pass

    assert failure(source(yt), tmp_path).kind is FailureKind.TRANSIENT


def test_challenge_that_javascript_could_not_solve(yt: FakeYouTube, tmp_path: Path) -> None:
    yt.set_scenario(VIDEO, "n-challenge")
    client = {
        "player_client": ["tv_samsung"],
        "player_js_version": ["20000@deadbeef"],
        "player_skip": ["webpage", "configs", "initial_data"],
    }

    assert failure(source(yt, client), tmp_path).kind is FailureKind.CONFIG


def test_merge_without_ffmpeg(yt: FakeYouTube, tmp_path: Path) -> None:
    error = failure(source(yt, format="134+140", ffmpeg_location=os.devnull + "/none"), tmp_path)

    assert error.kind is FailureKind.CONFIG
    assert "ffmpeg" in error.reason


def test_no_ffmpeg_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "")
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", _no_ffmpeg)

    with pytest.raises(FetchError) as caught:
        YouTubeSource(SourceSettings())

    assert caught.value.kind is FailureKind.CONFIG


def _no_ffmpeg() -> str:
    raise RuntimeError("No ffmpeg exe could be found.")


def test_other_site_is_refused(yt: FakeYouTube, tmp_path: Path) -> None:
    elsewhere = source(yt, allowed_extractors=["^vimeo$"])

    assert failure(elsewhere, tmp_path).kind is FailureKind.CONFIG


def test_filter_of_the_user_is_no_crash(yt: FakeYouTube, tmp_path: Path) -> None:
    assert failure(source(yt, max_filesize=10), tmp_path).kind is FailureKind.CORRUPT


def test_full_disk_under_ytdlp(yt: FakeYouTube, tmp_path: Path) -> None:
    # The one file that is always full.
    (tmp_path / "source.mp4.part").symlink_to("/dev/full")

    error = failure(source(yt), tmp_path)

    assert (error.kind, error.errno) == (FailureKind.LOCAL, errno.ENOSPC)
