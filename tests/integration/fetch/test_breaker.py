"""The circuit breaker and the hourly limit of a source, which all fetchers on a cache share."""

from __future__ import annotations

import errno
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch import fetcher as fetcher_module
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from kinetics_fs.vfs import errno_of
from tests.support.command_line import run_command
from tests.support.fetching import CLIP, FOURTH, NO_SLEEP, OTHER, THIRD, TIMEOUT, FetcherFactory, error_of
from tests.support.mounts import wait_until
from tests.support.youtube import RETRY_AFTER, FakeYouTube


def test_a_block_fails_all_waiting_requests_and_stops_further_ones(
    fetcher: FetcherFactory, store: Store, site: VideoSite
) -> None:
    for clip in (CLIP, OTHER, THIRD, FOURTH):
        site.fail[clip.youtube_id] = 429
    one = fetcher(workers=1)

    errors = [error_of(future) for future in [one.request(clip) for clip in (CLIP, OTHER, THIRD)]]

    assert {error.kind for error in errors} == {FailureKind.BLOCKED}
    assert [errno_of(error) for error in errors] == [errno.EAGAIN] * 3
    assert [site.video_fetches(clip.youtube_id) for clip in (CLIP, OTHER, THIRD)] == [1, 0, 0]
    assert list(store.failures.all()) == [], "it says nothing of the clips"
    with Store(store.folder) as elsewhere:
        assert error_of(fetcher(into=elsewhere).request(FOURTH)).kind is FailureKind.BLOCKED
    assert site.video_fetches(FOURTH.youtube_id) == 0


def test_one_successful_probe_ends_the_block(fetcher: FetcherFactory, store: Store, site: VideoSite) -> None:
    site.fail[CLIP.youtube_id] = 429
    one = fetcher(workers=2)
    assert error_of(one.request(CLIP)).kind is FailureKind.BLOCKED
    del site.fail[CLIP.youtube_id]
    assert error_of(one.request(CLIP)).kind is FailureKind.BLOCKED

    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE breaker SET blocked_until = ?", (time.time() - 1,))

    assert one.request(CLIP).result(TIMEOUT) is None
    assert [one.request(clip).result(TIMEOUT) for clip in (OTHER, THIRD)] == [None, None]


def test_retry_after_of_the_player_api_is_honoured(store: Store, tmp_path: Path, fetcher: FetcherFactory) -> None:
    with FakeYouTube() as yt:
        yt.set_scenario(CLIP.youtube_id, "bot")
        yt.set_scenario(OTHER.youtube_id, "http-429")
        sources = SourceSettings(ytdlp={**yt.ytdlp_options, "extractor_retries": 0})
        one = Fetcher(store, FetchSettings(workers=1, timeout=TIMEOUT, sources=sources))
        try:
            error_of(one.request(OTHER))
            [state] = store.throttle.states()
            assert (state.blocked_until or 0) - time.time() < 70  # of a warning only the sentence is known, no header
            store.throttle.reset_blocks()
            told = error_of(one.request(CLIP)).reason
        finally:
            one.close()
    assert "--cookies" in told
    [state] = store.throttle.states()
    assert (state.blocked_until or 0) - time.time() > 2 * 3600
    assert RETRY_AFTER < 70


def test_status_shows_the_block_and_reset_ends_it(fetcher: FetcherFactory, store: Store, site: VideoSite) -> None:
    site.fail[CLIP.youtube_id] = 429
    error_of(fetcher().request(CLIP))

    said = run_command("status", "--cache-dir", store.folder).stdout
    assert "youtube: blocked, next try in" in said
    report = json.loads(run_command("status", "--json", "--cache-dir", store.folder).stdout)
    assert 0 < report["sources"]["youtube"]["blocked_for"] <= 60

    run_command("failures", "clear", "--kind", "blocked", "--cache-dir", store.folder)
    assert store.throttle.states()[0].blocked_until is None


@pytest.fixture
def frugal(store: Store, site: VideoSite) -> FetchSettings:
    sources = SourceSettings(video_url=site.url_template, ytdlp=NO_SLEEP)
    return FetchSettings(workers=2, timeout=TIMEOUT, max_fetches_per_hour=2, sources=sources)


def test_the_hourly_limit_keeps_a_reserve_for_opens(
    frugal: FetchSettings, store: Store, site: VideoSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "_BUDGET_POLL_INTERVAL", 1.0)
    one = Fetcher(store, frugal)
    try:
        first = one.request(CLIP, Priority.BACKGROUND)
        assert first.result(TIMEOUT) is None
        waiting = one.request(OTHER, Priority.BACKGROUND)
        urgent = one.request(THIRD)
        assert urgent.result(TIMEOUT) is None, "the reserve is for opens"
        too_much = error_of(one.request(FOURTH))
        assert too_much.kind is FailureKind.BLOCKED
        assert "limit of 2 clips per hour" in too_much.reason
        assert not waiting.done()
        assert site.video_fetches(OTHER.youtube_id) == 0

        with closing(sqlite3.connect(store.layout.state_database)) as db, db:
            db.execute("DELETE FROM request")
        wait_until(waiting.done)
        assert waiting.result() is None
        assert store.throttle.states()[0].blocked_until is None, "a budget is no block"
    finally:
        one.close()
