"""Prefetches: the order of the clips, the space in the cache, and problems that stop a prefetch or make it wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.control.status import PrefetchProgress, PrefetchState
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.access_cursor import AccessCursor
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.fetch.prefetch import Prefetch, prefetch_clips
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.fetching import NO_SLEEP, TIMEOUT
from tests.support.link import Link
from tests.support.mounts import short_clips, wait_until

CLIPS = sorted(short_clips(1))[:6]


@pytest.fixture
def sizes(site: VideoSite, tmp_path: Path) -> dict[Clip, int]:
    """The size of each clip. The store knows the sizes, but has none of the clips."""
    with Store(tmp_path / "cache") as store, Fetching(store, site) as fetcher:
        Prefetch(fetcher, store, CLIPS, len(CLIPS), window=4).run()
        known = store.sizes([clip.key for clip in CLIPS])
        for clip in CLIPS:
            store.remove(clip)
    return {clip: known[clip.key].size for clip in CLIPS}


class Fetching(Fetcher):
    """A fetcher of a site's videos, as a context."""

    def __init__(self, store: Store, site: VideoSite) -> None:
        sources = SourceSettings(video_url=site.url_template, ytdlp=NO_SLEEP)
        super().__init__(store, FetchSettings(workers=2, timeout=TIMEOUT, sources=sources))

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def small(sizes: dict[Clip, int], tmp_path: Path) -> Iterator[Store]:
    """A store with space for the first three clips."""
    with Store(tmp_path / "cache", limit=sum(sizes[clip] for clip in CLIPS[:3])) as store:
        yield store


def cached(store: Store) -> list[Clip]:
    return [clip for clip in CLIPS if store.is_cached(clip)]


def test_progress_begins_with_the_cached_clips_and_counts_bytes_within_a_clip(
    sizes: dict[Clip, int], site: VideoSite, tmp_path: Path
) -> None:
    port = urlsplit(site.url_template).port or 0
    clips = [CLIPS[0]._replace(end=CLIPS[0].start + 5), *CLIPS[1:]]  # several pieces are received for the first one
    seen: list[PrefetchProgress] = []
    with Store(tmp_path / "cache") as store, Fetching(store, site) as fetcher:
        Prefetch(fetcher, store, CLIPS[1:], 5, window=2).run()
    with Link(port, bandwidth=60_000) as link, Store(tmp_path / "cache") as store:
        sources = SourceSettings(video_url=f"{link.url}/watch/{{id}}", ytdlp=NO_SLEEP, max_bandwidth=20_000)
        settings = FetchSettings(workers=1, timeout=TIMEOUT, max_fetches_per_hour=300, sources=sources)
        with closing(Fetcher(store, settings)) as fetcher:
            result = prefetch_clips(fetcher, store, clips, 6, window=2, keep=clips, on_progress=seen.append)
    assert (result.fetched, result.already_cached, result.failed) == (1, 5, 0)
    assert all(one.already_cached == 5 for one in seen), "they are counted from the beginning"
    within = [one for one in seen if one.fetched == 0]
    sizes_seen = sorted({one.bytes for one in within})
    assert len(sizes_seen) >= 3, "the bytes follow the clock while the first clip is under way"
    assert [one.bytes for one in seen] == sorted(one.bytes for one in seen)
    assert result.bytes == seen[-1].bytes >= sizes_seen[-1] > 0
    assert 5_000 < max(one.bytes_per_second for one in within) < 60_000
    middle = within[-1]
    assert 0 < middle.in_progress < 1
    assert middle.seconds_left is not None and middle.seconds_left > 0
    assert "--max-bandwidth of 20.0 kB/s" in {one.limit for one in within}
    assert (seen[-1].seconds_left, seen[-1].limit, seen[-1].bytes_per_second) == (None, None, 0)


def test_the_hourly_limit_gives_the_time_that_is_left(sizes: dict[Clip, int], site: VideoSite, tmp_path: Path) -> None:
    sources = SourceSettings(video_url=site.url_template, ytdlp=NO_SLEEP)
    with (
        Store(tmp_path / "cache") as store,
        closing(Fetcher(store, FetchSettings(workers=1, max_fetches_per_hour=1, sources=sources))) as fetcher,
    ):
        prefetch = Prefetch(fetcher, store, CLIPS[:4], 4, window=2, patient=True)
        thread = threading.Thread(target=prefetch.run)
        thread.start()
        wait_until(lambda: prefetch.progress().limit is not None)
        progress = prefetch.progress()
        prefetch.cancel()
        thread.join()
    assert progress.limit == "1 fetch an hour"
    assert progress.seconds_left == pytest.approx(4 * 3600, abs=3600)


def test_the_first_clips_are_cached_if_not_all_fit(small: Store, site: VideoSite) -> None:
    with Fetching(small, site) as fetcher:
        first = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        first.run()
        assert (first.state, first.fetched, cached(small)) == (PrefetchState.STOPPED, 3, CLIPS[:3])
        assert first.problem is not None and first.problem.kind is FailureKind.LOCAL
        assert not list(small.failures.all()), "the failure says nothing about the clips"
        again = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        again.run()
        assert (again.fetched, again.already_cached, cached(small)) == (0, 3, CLIPS[:3])
        # Clips outside the prefetch are evicted for it.
        last = Prefetch(fetcher, small, CLIPS[4:], 2, window=1)
        last.run()
        assert last.state is PrefetchState.DONE
        assert set(cached(small)) >= set(CLIPS[4:])


def test_cached_clips_of_a_prefetch_are_not_evicted_for_those_before_them(small: Store, site: VideoSite) -> None:
    cached_before = CLIPS[4:]
    with Fetching(small, site) as fetcher:
        Prefetch(fetcher, small, cached_before, 2, window=2).run()
        prefetch = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=2, keep=CLIPS)
        prefetch.run()
    assert prefetch.state is PrefetchState.STOPPED
    assert set(cached(small)) >= set(cached_before)


def test_a_list_is_fetched_ahead_of_its_reader(small: Store, site: VideoSite) -> None:
    cursor = AccessCursor(small)
    with Fetching(small, site) as fetcher:
        order = [*CLIPS, CLIPS[0]]
        ahead = Prefetch(
            fetcher, small, order, len(order), window=2, priority=Priority.SOON, patient=True, cursor=cursor
        )
        thread = threading.Thread(target=ahead.run)
        thread.start()
        for number, clip in enumerate(order):
            wait_until(partial(small.is_cached, clip))
            assert set(cached(small)) <= set(order[max(0, number - 3) : number + 4])
            small.touch(clip)
            cursor.advance(clip)
        thread.join(TIMEOUT)
        assert (ahead.state, ahead.fetched) == (PrefetchState.DONE, len(order))


def test_a_waiting_prefetch_resumes_when_a_block_is_ended(small: Store, site: VideoSite) -> None:
    site.fail = {clip.youtube_id: 429 for clip in CLIPS}
    with Fetching(small, site) as fetcher:
        prefetch = Prefetch(fetcher, small, CLIPS[:2], 2, window=1, patient=True)
        thread = threading.Thread(target=prefetch.run)
        thread.start()
        wait_until(lambda: prefetch.state is PrefetchState.WAITING)
        site.fail = {}
        assert small.throttle.reset_blocks() == 1
        thread.join(40)  # the block would have lasted a minute
        ended = not thread.is_alive()
        prefetch.cancel()
        thread.join()
    assert ended
    assert (prefetch.state, prefetch.fetched) == (PrefetchState.DONE, 2)


def test_a_block_stops_a_prefetch_or_makes_a_patient_one_wait(small: Store, site: VideoSite) -> None:
    site.fail = {clip.youtube_id: 429 for clip in CLIPS}
    with Fetching(small, site) as fetcher:
        impatient = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        impatient.run()
        assert impatient.state is PrefetchState.STOPPED
        assert impatient.problem is not None and impatient.problem.kind is FailureKind.BLOCKED

        patient = Prefetch(fetcher, small, CLIPS[:2], 2, window=1, patient=True)
        thread = threading.Thread(target=patient.run)
        thread.start()
        wait_until(lambda: patient.state is PrefetchState.WAITING)
        assert "429" in str(patient.progress().reason)
        patient.cancel()
        thread.join(TIMEOUT)
        assert (patient.state, patient.fetched, patient.failed) == (PrefetchState.CANCELLED, 0, 0)


def test_a_prefetch_stops_after_ten_faults_in_a_row(tmp_path: Path) -> None:
    clips = sorted(short_clips(1))[:30]
    sources = SourceSettings(video_url="http://127.0.0.1:9/{id}", ytdlp={**NO_SLEEP, "extractor_retries": 0})
    with Store(tmp_path / "cache") as store:
        fetcher = Fetcher(store, FetchSettings(workers=2, timeout=TIMEOUT, sources=sources))
        cut_off = Prefetch(fetcher, store, clips, len(clips), window=2)
        cut_off.run()
        again = Prefetch(fetcher, store, clips[:10], 10, window=2)
        again.run()
        fetcher.close()

    assert cut_off.state is PrefetchState.STOPPED
    assert cut_off.problem is not None and "refused" in cut_off.problem.reason
    assert 10 <= cut_off.failed < 15
    assert (again.state, again.failed) == (PrefetchState.DONE, 10), "remembered failures say nothing about the network"


def test_the_cursor_counts_the_space_of_clips_ahead_of_the_reader(small: Store) -> None:
    cursor = AccessCursor(small)
    for clip in CLIPS[:3]:
        assert cursor.has_space_for(clip)
        cursor.append(clip)
    assert not cursor.has_space_for(CLIPS[3])
    assert cursor.has_space_for(CLIPS[1]), "a repeated clip needs no more space"
    cursor.append(CLIPS[1])
    moved = threading.Event()
    cursor.watch(moved.set)
    cursor.advance(CLIPS[5])
    assert not moved.is_set(), "the clip is not in the list"
    cursor.advance(CLIPS[1])
    assert moved.is_set()
    assert cursor.has_space_for(CLIPS[0]) and not cursor.has_space_for(CLIPS[4]), (
        "the second clip is in the list once more"
    )
    cursor.advance(CLIPS[2])
    cursor.advance(CLIPS[1])
    assert cursor.has_space_for(CLIPS[4])


def test_the_cursor_drops_clips_that_a_faster_reader_has_opened(small: Store) -> None:
    cursor = AccessCursor(small)
    for clip in CLIPS[3:]:
        cursor.advance(clip)
    for clip in CLIPS[3:]:
        assert cursor.has_space_for(clip)
        cursor.append(clip)
    for clip in CLIPS[:3]:
        assert cursor.has_space_for(clip), "no clip waits for a position that the reader has passed"
        cursor.append(clip)
    assert not cursor.has_space_for(CLIPS[3])
    cursor.advance(CLIPS[3])
    cursor.advance(CLIPS[0])
    cursor.append(CLIPS[0])
    assert not cursor.has_space_for(CLIPS[3]), "an open of another clip does not move the cursor"


def test_pinned_clips_leave_less_space_ahead_of_a_reader(sizes: dict[Clip, int], small: Store, site: VideoSite) -> None:
    with Fetching(small, site) as fetcher:
        Prefetch(fetcher, small, CLIPS[:1], 1, window=1).run()
    small.pins.add(CLIPS[:2])
    assert small.capacity() == sum(sizes[clip] for clip in CLIPS[1:3]), "only the first of the pinned clips is cached"
    cursor = AccessCursor(small)
    cursor.append(CLIPS[2])
    assert not cursor.has_space_for(CLIPS[3])
    assert cursor.has_space_for(CLIPS[0]), "its space is counted already"
    cursor.append(CLIPS[0])
    assert cursor.has_space_for(CLIPS[1]), "it is pinned, but its space is still free"
