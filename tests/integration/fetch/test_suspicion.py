"""Suspected sources: many verdicts in a row mark no clip until a control shows that the source serves this client."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch import fetcher as fetcher_module
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.fetch.pool import OnReceived, OnVerifiedClip, VerifiedFile
from kinetics_fs.fetch.prefetch import prefetch_clips
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.settings import WELL_KNOWN_VIDEOS
from kinetics_fs.store import ControlPermit, Store
from tests.support.fetching import TIMEOUT
from tests.support.youtube import FakeYouTube

GONE, TRANSIENT, BLOCKED = FailureKind.GONE, FailureKind.TRANSIENT, FailureKind.BLOCKED
DOUBTED = 10
"""Verdicts in a row after which a source is suspected."""


def clips(count: int, prefix: str = "video") -> list[Clip]:
    return [Clip(f"{prefix}{number:06}", 0, 2) for number in range(count)]


class Site:
    """A site as worker processes see it, with an answer per video: available, or unavailable.

    Attributes:
        available: the videos that it delivers, while it does not refuse this client.
        refuses: it calls every video unavailable.
        asked: how often each video was requested, controls included.
    """

    def __init__(self, video: Path) -> None:
        self.available: set[str] = set()
        self.refuses = False
        self.asked = Counter[str]()
        self.control_lasts = threading.Event()
        self.control_lasts.set()
        self._video = video
        self._lock = threading.Lock()

    def answer(self, youtube_id: str) -> None:
        with self._lock:
            self.asked[youtube_id] += 1
        if self.refuses or youtube_id not in self.available:
            raise FetchError(GONE, "Video unavailable", source="youtube")

    def worker(self, _: SourceSettings, __: Callable[[], Path]) -> Site:
        return self

    # The interface of `kinetics_fs.fetch.pool.Worker`

    confinement = None

    def fetch(
        self,
        clip: Clip,
        source: str,
        folder: Path,
        *,
        timeout: float,
        on_clip: OnVerifiedClip | None = None,
        on_received: OnReceived = lambda received: None,
    ) -> VerifiedFile | None:
        self.answer(clip.youtube_id)
        shutil.copy(self._video, folder / clip.name)
        return VerifiedFile(folder / clip.name, 2.0, cut=True)

    def check(self, youtube_id: str, source: str, *, timeout: float) -> None:
        self.control_lasts.wait(timeout)
        self.answer(youtube_id)

    def stop(self) -> None:
        pass


@pytest.fixture
def site(video: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(video)
    monkeypatch.setattr(fetcher_module, "Worker", site.worker)
    return site


FetcherMaker = Callable[..., Fetcher]


@pytest.fixture
def fetcher(store: Store, site: Site) -> Iterator[FetcherMaker]:
    with ExitStack() as stack:

        def make(workers: int = 4, into: Store = store, limit: int | None = None) -> Fetcher:
            made = Fetcher(into, FetchSettings(workers=workers, timeout=TIMEOUT, max_fetches_per_hour=limit))
            stack.callback(made.close)
            return made

        yield make


def end_pause(store: Store) -> None:
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE breaker SET blocked_until = ?", (time.time() - 1,))
        db.execute("UPDATE suspect SET failed_at = failed_at - 3600")
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE failure SET retry_at = 0 WHERE kind = 'transient'")


def outcomes(fetcher: Fetcher, wanted: list[Clip]) -> Counter[str]:
    futures = [fetcher.request(clip) for clip in wanted]
    errors = [future.exception(TIMEOUT) for future in futures]
    return Counter("available" if error is None else str(getattr(error, "kind", error)) for error in errors)


def test_a_site_that_calls_living_videos_unavailable_marks_none(
    fetcher: FetcherMaker, store: Store, site: Site
) -> None:
    living = clips(200)
    site.available |= {clip.youtube_id for clip in living}
    site.refuses = True
    one = fetcher()

    assert outcomes(one, living)[GONE] < DOUBTED

    assert list(store.failures.all([GONE, FailureKind.CREDENTIALS])) == []
    assert sum(site.asked.values()) < 30, "fetching pauses"
    [state] = store.throttle.states()
    assert state.blocked_until is not None and state.reason.startswith("suspected: 10 videos in a row")

    site.refuses = False
    end_pause(store)
    assert outcomes(one, living) == {"available": 200}
    assert list(store.failures.all()) == []


def test_verdicts_count_again_when_a_control_is_available(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    dead, [living] = clips(DOUBTED), clips(1, "alive")
    site.available.add(living.youtube_id)
    one = fetcher(workers=1)
    assert outcomes(one, [living]) == {"available": 1}

    assert outcomes(one, dead) == {GONE: DOUBTED}

    assert {failure.key for failure in store.failures.all([GONE])} == {clip.key for clip in dead}
    assert all(failure.retry_at - failure.last_at > 6 * 86_400 for failure in store.failures.all())
    assert site.asked[living.youtube_id] == 2, "once for the clip, once as a control"
    assert store.throttle.states()[0].blocked_until is None


def test_a_retry_of_many_dead_clips_finishes_and_marks_them(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    dead, living = clips(1000), clips(2, "alive")
    site.available |= {clip.youtube_id for clip in living}
    one = fetcher()
    assert outcomes(one, living) == {"available": 2}

    result = prefetch_clips(one, store, dead, len(dead), window=8)

    assert (result.problem, result.failures) == (None, {"gone": 1000})

    assert store.failures.counts() == {GONE: 1000}
    assert sum(site.asked.values()) <= 1000 + 1000 // DOUBTED + 10


def test_a_control_that_is_unavailable_proves_nothing(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    dead, (older, newer) = clips(DOUBTED), clips(2, "alive")
    site.available |= {older.youtube_id, newer.youtube_id}
    one = fetcher(workers=1)
    assert outcomes(one, [older]) + outcomes(one, [newer]) == {"available": 2}
    site.available.remove(newer.youtube_id)

    assert outcomes(one, dead) == {GONE: DOUBTED}

    assert store.failures.get(newer) is None
    assert site.asked[newer.youtube_id] == 2
    assert store.is_cached(newer)


def test_well_known_videos_are_controls_of_an_empty_cache(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    site.available.add(WELL_KNOWN_VIDEOS[1])

    assert outcomes(fetcher(workers=1), clips(DOUBTED)) == {GONE: DOUBTED}

    assert site.asked[WELL_KNOWN_VIDEOS[0]] == site.asked[WELL_KNOWN_VIDEOS[1]] == 1


def test_another_site_without_controls_is_believed(store: Store, site: Site) -> None:
    sources = SourceSettings(video_url="http://127.0.0.1/{id}")
    with closing(Fetcher(store, FetchSettings(workers=2, timeout=TIMEOUT, sources=sources))) as one:
        assert outcomes(one, clips(3 * DOUBTED)) == {GONE: 3 * DOUBTED}

    assert store.failures.counts() == {GONE: 3 * DOUBTED}


def test_fewer_verdicts_or_a_clip_in_between_raise_no_suspicion(
    fetcher: FetcherMaker, store: Store, site: Site
) -> None:
    dead, [living] = clips(2 * DOUBTED - 2), clips(1, "alive")
    site.available.add(living.youtube_id)
    one = fetcher(workers=1)

    assert outcomes(one, dead[: DOUBTED - 1]) == {GONE: DOUBTED - 1}
    assert outcomes(one, [living]) == {"available": 1}
    assert outcomes(one, dead[DOUBTED - 1 :]) == {GONE: DOUBTED - 1}

    assert sum(site.asked.values()) == 2 * DOUBTED - 1


def test_many_clips_of_one_dead_video_raise_no_suspicion(fetcher: FetcherMaker, site: Site) -> None:
    same = [Clip("one_dead_vi", start, start + 2) for start in range(2 * DOUBTED)]

    assert outcomes(fetcher(workers=1), same) == {GONE: 2 * DOUBTED}

    assert set(site.asked) == {"one_dead_vi"}


def test_a_clip_ends_the_suspicion_if_no_control_is_available(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    living = clips(DOUBTED + 2)
    site.refuses = True
    one = fetcher(workers=1)
    assert outcomes(one, living) == {GONE: DOUBTED - 1, BLOCKED: 3}

    end_pause(store)
    assert set(outcomes(one, living[:3])) == {BLOCKED}
    assert store.throttle.is_suspected("youtube")
    assert store.throttle.states()[0].blocked_until > time.time() + 100, "the pause doubles"  # type: ignore[operator]

    site.available |= {clip.youtube_id for clip in living}
    site.refuses = False
    end_pause(store)
    assert outcomes(one, living) == {"available": DOUBTED + 2}
    assert not store.throttle.is_suspected("youtube")


def test_clearing_blocks_tries_a_control_at_once(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    living = clips(DOUBTED)
    site.refuses = True
    one = fetcher(workers=1)
    outcomes(one, living)
    assert store.failures.counts() == {TRANSIENT: DOUBTED}
    assert store.throttle.reset_blocks() == 1
    site.refuses = False
    site.available |= {clip.youtube_id for clip in living}
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE failure SET retry_at = 0")

    assert outcomes(one, living) == {"available": DOUBTED}


def test_verdicts_of_an_outage_do_not_count_when_a_later_control_is_available(
    fetcher: FetcherMaker, store: Store, site: Site
) -> None:
    living, [control] = clips(DOUBTED), clips(1, "alive")
    site.available |= {clip.youtube_id for clip in [*living, control]}
    one = fetcher(workers=1)
    outcomes(one, [control])
    site.refuses = True
    outcomes(one, living)
    site.refuses = False
    end_pause(store)

    assert outcomes(one, clips(1, "other")) == {GONE: 1}

    assert {failure.kind for failure in store.failures.all() if failure.key.startswith("video")} == {TRANSIENT}


def test_two_processes_share_the_suspicion(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    dead, [living] = clips(40), clips(1, "alive")
    site.available.add(living.youtube_id)
    with Store(store.folder) as elsewhere:
        one, other = fetcher(workers=2), fetcher(workers=2, into=elsewhere)
        assert outcomes(one, [living]) == {"available": 1}
        with ThreadPoolExecutor() as pool:
            results = pool.map(outcomes, [one, other], [dead[:20], dead[20:]])
        assert sum(results, Counter()) == {GONE: 40}
    assert store.failures.counts() == {GONE: 40}
    assert site.asked[living.youtube_id] <= 1 + 40 // DOUBTED

    site.refuses = True
    with Store(store.folder) as elsewhere:
        other = fetcher(workers=2, into=elsewhere)
        outcomes(one, clips(DOUBTED // 2, "third"))
        outcomes(other, clips(DOUBTED // 2, "forth"))
        assert set(outcomes(other, clips(1, "fifth"))) == {BLOCKED}
        assert set(outcomes(one, clips(1, "sixth"))) == {BLOCKED}
    assert store.failures.counts() == {GONE: 40, TRANSIENT: DOUBTED}


def test_a_control_counts_against_the_hourly_limit(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    [living] = clips(1, "alive")
    site.available.add(living.youtube_id)
    one = fetcher(workers=1, limit=DOUBTED + 1)
    outcomes(one, [living])

    assert outcomes(one, clips(DOUBTED)) == {GONE: DOUBTED - 1, BLOCKED: 1}

    assert sum(site.asked.values()) == DOUBTED + 1
    assert store.failures.counts() == {TRANSIENT: DOUBTED}
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("DELETE FROM request")
    outcomes(one, clips(1, "other"))
    assert store.failures.counts() == {GONE: DOUBTED + 1}


def test_controls_of_later_rounds_differ(store: Store) -> None:
    permit = store.throttle.acquire("youtube", max_per_hour=None, urgent=True)

    def chosen(videos: list[str], well_known: list[str]) -> list[str | None]:
        return [ControlPermit(permit, number, videos).choose(well_known) for number in range(8)]

    assert chosen(["a", "b"], ["x", "y", "z"]) == ["a", "b", "b", "z", "a", "x", "b", "y"]
    assert chosen(["a"], ["x", "y", "z"]) == ["a", "y", "a", "z", "a", "x", "a", "y"]
    assert chosen([], ["x", "y", "z"]) == ["x", "y", "y", "z", "z", "x", "x", "y"]
    assert chosen(["a"], []) == ["a"] * 8
    assert chosen([], []) == [None] * 8


def test_a_process_that_dies_in_a_control_does_not_stop_the_others(
    fetcher: FetcherMaker, store: Store, site: Site
) -> None:
    outcomes(fetcher(workers=1), clips(DOUBTED - 1))
    store.failures.remember(Clip("the_last_11", 0, 2), FetchError(GONE, "Video unavailable", source="youtube"))
    assert store.throttle.acquire_control("youtube", max_per_hour=None) is not None
    assert store.throttle.acquire_control("youtube", max_per_hour=None) is None
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE suspect SET control_until = control_until - 121")

    assert store.throttle.acquire_control("youtube", max_per_hour=None) is not None


def test_closing_during_a_control_ends_at_once(fetcher: FetcherMaker, store: Store, site: Site) -> None:
    site.control_lasts.clear()
    one = fetcher(workers=2)
    futures = [one.request(clip, Priority.BACKGROUND) for clip in clips(DOUBTED)]
    while not store.throttle.is_suspected("youtube"):
        time.sleep(0.01)
    site.control_lasts.set()
    one.close()

    assert all(future.done() for future in futures)


@pytest.mark.timeout(300)
def test_the_real_extractor_marks_no_living_video(store: Store, video: Path) -> None:
    living = clips(DOUBTED + 4)
    with FakeYouTube() as yt:
        for clip in living:
            yt.add_video(clip.youtube_id, video, duration=2.0)
            yt.set_scenario(clip.youtube_id, "unavailable")
        sources = SourceSettings(ytdlp={**yt.ytdlp_options, "extractor_retries": 0})
        one = Fetcher(store, FetchSettings(workers=2, timeout=TIMEOUT, sources=sources))
        try:
            assert outcomes(one, living)[GONE] < DOUBTED
            assert list(store.failures.all([GONE])) == []
            assert any(yt.player_requests(video_id) for video_id in WELL_KNOWN_VIDEOS)
            for clip in living:
                yt.set_scenario(clip.youtube_id, "ok")
            end_pause(store)
            assert outcomes(one, living) == {"available": len(living)}
        finally:
            one.close()
