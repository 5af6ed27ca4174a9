"""Whatever a media server does: the exact clip or the right failure, and never a clip that is short or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.fetching import cached_frames
from tests.support.videos import RATE, Videos
from tests.support.youtube import MEDIA_FAULTS, FakeYouTube

VIDEO = "-a_Video-01"
CLIP = Clip(VIDEO, 22, 32)  # two seconds after a keyframe

QUICK = {"extractor_retries": 1, "retries": 1, "fragment_retries": 1}
"""For yt-dlp, as settings of a user are."""

CLIP_CAME = "clip"
TRANSIENT, CORRUPT, BLOCKED = FailureKind.TRANSIENT, FailureKind.CORRUPT, FailureKind.BLOCKED

Outcome = FailureKind | str

FOREVER: dict[str, set[Outcome]] = {
    "403": {TRANSIENT},
    "empty": {TRANSIENT, CORRUPT},
    "404": {TRANSIENT},  # the player has just said that the video is there
    "429": {BLOCKED},
    "429-bare": {BLOCKED},
    "500": {TRANSIENT},
    "503": {TRANSIENT},
    "expired": {CLIP_CAME, TRANSIENT},
    "truncate": {CLIP_CAME, TRANSIENT},  # half of what is left, again and again, is an end as well
    "reset": {CLIP_CAME, TRANSIENT},
    "stall": {CLIP_CAME, TRANSIENT},
    "html": {TRANSIENT, CORRUPT},
    "html-as-mp4": {TRANSIENT, CORRUPT},
    "html-206": {TRANSIENT, CORRUPT},
    "html-206-as-mp4": {TRANSIENT, CORRUPT},
    "no-ranges": {CLIP_CAME},
    "wrong-window": {CLIP_CAME, TRANSIENT, CORRUPT},  # a request for the whole file has no other part
    "changed": {CLIP_CAME, TRANSIENT, CORRUPT},
    "long-length": {CLIP_CAME, TRANSIENT},  # all bytes that were asked for did come
    "short-length": {CLIP_CAME, TRANSIENT, CORRUPT},
    "slow": {TRANSIENT},
    "throttle": {CLIP_CAME},
    "redirect": {CLIP_CAME},
    "redirect-closed": {TRANSIENT},
    "redirect-file": {TRANSIENT, CORRUPT},
    "redirect-loop": {TRANSIENT},
}
"""The allowed outcomes of each fault that every answer has."""

PASSING = ("500", "503", "truncate", "reset", "stall", "long-length", "redirect")
"""Faults of a single answer that a second try gets over."""

DECEPTIVE = ("403", "html-206-as-mp4", "no-ranges", "wrong-window", "changed", "short-length")
"""Faults of a single answer after which a second try would do, but giving up is right as well."""

PARTIAL = ("expired", "truncate", "throttle")
"""Faults after which a part of the file is usable."""


Fetch = Callable[..., Outcome]


@pytest.fixture
def fetch(yt: FakeYouTube, tmp_path: Path) -> Iterator[Fetch]:
    """Fetches `CLIP` by a worker process; the kind of the failure, or `CLIP_CAME` if every frame is right."""
    with ExitStack() as stack:
        store = stack.enter_context(Store(tmp_path / "cache"))

        def run(timeout: float = 60) -> Outcome:
            sources = SourceSettings(ytdlp={**yt.ytdlp_options, **QUICK, "socket_timeout": yt.socket_timeout})
            fetcher = Fetcher(store, FetchSettings(workers=1, timeout=timeout, sources=sources))
            stack.callback(fetcher.close)
            try:
                fetcher.request(CLIP).result(100)
            except FetchError as error:
                assert store.open(CLIP) is None
                assert list(store.layout.incoming.iterdir()) == []
                return error.kind
            assert cached_frames(store, CLIP, tmp_path) == list(range(CLIP.start * RATE, CLIP.end * RATE))
            return CLIP_CAME

        yield run


def publish(yt: FakeYouTube, videos: Videos, shape: str) -> None:
    yt.add_video(VIDEO, duration=videos.seconds, **videos.formats(shape))


def test_every_fault_has_an_outcome() -> None:
    assert FOREVER.keys() == MEDIA_FAULTS.keys()


@pytest.mark.parametrize("shape", ["progressive", "index_last", "adaptive", "hls"])
def test_a_server_without_faults_delivers_the_clip(
    yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch, shape: str
) -> None:
    publish(yt, youtube_videos, shape)

    assert fetch() == CLIP_CAME


@pytest.mark.parametrize(
    ("fault", "shape"),
    [*((fault, "progressive") for fault in FOREVER), *((fault, "adaptive") for fault in (*DECEPTIVE, *PARTIAL))],
)
def test_a_permanent_fault_ends_in_a_good_clip_or_an_expected_failure(
    yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch, fault: str, shape: str
) -> None:
    publish(yt, youtube_videos, shape)
    yt.media_fault[VIDEO] = fault

    assert fetch(timeout=6 if fault == "slow" else 60) in FOREVER[fault]


@pytest.mark.parametrize(
    ("fault", "shape"),
    [*((fault, "progressive") for fault in PASSING), ("503", "adaptive"), ("503", "hls"), ("truncate", "hls")],
)
def test_a_passing_fault_still_delivers_the_clip(
    yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch, fault: str, shape: str
) -> None:
    publish(yt, youtube_videos, shape)
    yt.media_fault[VIDEO] = ["ok", fault]

    assert fetch() == CLIP_CAME


@pytest.mark.parametrize(
    ("fault", "shape"),
    [*((fault, "progressive") for fault in DECEPTIVE), ("short-length", "hls"), ("html-206-as-mp4", "hls")],
)
def test_a_deceptive_answer_never_delivers_a_wrong_clip(
    yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch, fault: str, shape: str
) -> None:
    publish(yt, youtube_videos, shape)
    yt.media_fault[VIDEO] = ["ok", fault]

    assert fetch() in {CLIP_CAME, *FOREVER[fault]}


@pytest.mark.parametrize("claimed", [1_000, 100_000_000])
@pytest.mark.parametrize("shape", ["progressive", "adaptive"])
def test_a_wrong_content_length_is_detected(
    yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch, shape: str, claimed: int
) -> None:
    path, pair = youtube_videos.progressive, (youtube_videos.picture, youtube_videos.sound)
    if shape == "progressive":
        yt.add_video(VIDEO, path, duration=youtube_videos.seconds, claimed_size=claimed)
    else:
        yt.add_video(VIDEO, duration=youtube_videos.seconds, adaptive=pair, claimed_size=claimed)

    assert fetch() == CLIP_CAME


def test_a_clip_transfers_little_more_than_its_own_bytes(yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch) -> None:
    publish(yt, youtube_videos, "adaptive")

    assert fetch() == CLIP_CAME
    sent = sum(sent for _, _, sent in yt.media_requests(VIDEO))
    assert sent < youtube_videos.picture.stat().st_size / 2
    assert all(asked is not None and not asked.endswith("-") for asked, _, _ in yt.media_requests(VIDEO))


def test_an_expired_url_is_requested_again(yt: FakeYouTube, youtube_videos: Videos, fetch: Fetch) -> None:
    publish(yt, youtube_videos, "progressive")
    yt.media_fault[VIDEO] = ["403"]

    assert fetch() == CLIP_CAME
    assert yt.player_requests(VIDEO) == 2
