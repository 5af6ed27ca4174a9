"""Many clips: in their order, within the room that there is, and what stops it or makes it wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch import Fetcher, FetchSettings, Priority
from kinetics_fs.fetch.access_cursor import AccessCursor
from kinetics_fs.fetch.prefetch import Prefetch, State
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.integration.fetch.test_fetcher import NO_SLEEP, PATIENCE, until
from tests.support.mounts import short_clips

CLIPS = sorted(short_clips(1))[:6]


@pytest.fixture
def sizes(site: VideoSite, tmp_path: Path) -> dict[Clip, int]:
    """What each clip will have; known to the store, and none of them in it."""
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
        super().__init__(store, FetchSettings(workers=2, timeout=PATIENCE, sources=sources))

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def small(sizes: dict[Clip, int], tmp_path: Path) -> Iterator[Store]:
    """A store with room for the first three."""
    with Store(tmp_path / "cache", limit=sum(sizes[clip] for clip in CLIPS[:3])) as store:
        yield store


def cached(store: Store) -> list[Clip]:
    return [clip for clip in CLIPS if store.is_cached(clip)]


def test_the_first_part_of_what_does_not_fit(small: Store, site: VideoSite) -> None:
    with Fetching(small, site) as fetcher:
        first = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        first.run()
        assert (first.state, first.fetched, cached(small)) == (State.STOPPED, 3, CLIPS[:3])
        assert first.problem is not None and first.problem.kind is FailureKind.LOCAL
        assert not list(small.failures.all()), "it says nothing of the clips"
        again = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        again.run()
        assert (again.fetched, again.already_cached, cached(small)) == (0, 3, CLIPS[:3])
        # But what is no part of it makes room.
        last = Prefetch(fetcher, small, CLIPS[4:], 2, window=1)
        last.run()
        assert last.state is State.DONE
        assert set(cached(small)) >= set(CLIPS[4:])


def test_ahead_of_a_reader(small: Store, site: VideoSite) -> None:
    reader = AccessCursor(small)
    with Fetching(small, site) as fetcher:
        order = [*CLIPS, CLIPS[0]]
        ahead = Prefetch(
            fetcher, small, order, len(order), window=2, priority=Priority.SOON, patient=True, cursor=reader
        )
        thread = threading.Thread(target=ahead.run)
        thread.start()
        for number, clip in enumerate(order):
            until(lambda clip=clip: small.is_cached(clip), "it comes before it is read")  # type: ignore[misc]
            assert set(cached(small)) <= set(order[max(0, number - 3) : number + 4])
            small.touch(clip)
            reader.advance(clip)
        thread.join(PATIENCE)
        assert (ahead.state, ahead.fetched) == (State.DONE, len(order))


def test_a_source_that_blocks(small: Store, site: VideoSite) -> None:
    site.fail = {clip.youtube_id: 429 for clip in CLIPS}
    with Fetching(small, site) as fetcher:
        impatient = Prefetch(fetcher, small, CLIPS, len(CLIPS), window=1)
        impatient.run()
        assert impatient.state is State.STOPPED
        assert impatient.problem is not None and impatient.problem.kind is FailureKind.BLOCKED

        patient = Prefetch(fetcher, small, CLIPS[:2], 2, window=1, patient=True)
        thread = threading.Thread(target=patient.run)
        thread.start()
        until(lambda: patient.state is State.WAITING, "it waits")
        assert "429" in str(patient.progress().reason)
        patient.cancel()
        thread.join(PATIENCE)
        assert (patient.state, patient.fetched, patient.failed) == (State.CANCELLED, 0, 0)


def test_no_network(tmp_path: Path) -> None:
    clips = sorted(short_clips(1))[:30]
    sources = SourceSettings(video_url="http://127.0.0.1:9/{id}", ytdlp={**NO_SLEEP, "extractor_retries": 0})
    with Store(tmp_path / "cache") as store:
        fetcher = Fetcher(store, FetchSettings(workers=2, timeout=PATIENCE, sources=sources))
        cut_off = Prefetch(fetcher, store, clips, len(clips), window=2)
        cut_off.run()
        again = Prefetch(fetcher, store, clips[:10], 10, window=2)
        again.run()
        fetcher.close()

    assert cut_off.state is State.STOPPED
    assert cut_off.problem is not None and "refused" in cut_off.problem.reason
    assert 10 <= cut_off.failed < 15
    assert (again.state, again.failed) == (State.DONE, 10), "what is remembered says nothing of the network"


def test_reader_and_room(small: Store) -> None:
    reader = AccessCursor(small)
    for clip in CLIPS[:3]:
        assert reader.has_space_for(clip)
        reader.append(clip)
    assert not reader.has_space_for(CLIPS[3])
    assert reader.has_space_for(CLIPS[1]), "again, and no more room for that"
    reader.append(CLIPS[1])
    moved = threading.Event()
    reader.watch(moved.set)
    reader.advance(CLIPS[5])
    assert not moved.is_set(), "nothing that was expected"
    reader.advance(CLIPS[1])
    assert moved.is_set()
    assert reader.has_space_for(CLIPS[0]) and not reader.has_space_for(CLIPS[4]), "the second still comes once more"
    reader.advance(CLIPS[2])
    reader.advance(CLIPS[1])
    assert reader.has_space_for(CLIPS[4])


def test_a_reader_who_is_quicker(small: Store) -> None:
    reader = AccessCursor(small)
    for clip in CLIPS[3:]:
        reader.advance(clip)
    for clip in CLIPS[3:]:
        assert reader.has_space_for(clip)
        reader.append(clip)
    for clip in CLIPS[:3]:
        assert reader.has_space_for(clip), "nothing waits for a place that he has left behind"
        reader.append(clip)
    assert not reader.has_space_for(CLIPS[3])
    reader.advance(CLIPS[3])
    reader.advance(CLIPS[0])
    reader.append(CLIPS[0])
    assert not reader.has_space_for(CLIPS[3]), "a look at another clip says nothing of where he is"


def test_a_reader_has_no_room_where_clips_are_pinned(sizes: dict[Clip, int], small: Store, site: VideoSite) -> None:
    with Fetching(small, site) as fetcher:
        Prefetch(fetcher, small, CLIPS[:1], 1, window=1).run()
    small.pins.add(CLIPS[:2])
    assert small.capacity() == sum(sizes[clip] for clip in CLIPS[1:3]), "of those pinned only the first is here"
    reader = AccessCursor(small)
    reader.append(CLIPS[2])
    assert not reader.has_space_for(CLIPS[3])
    assert reader.has_space_for(CLIPS[0]), "has its room already"
    reader.append(CLIPS[0])
    assert reader.has_space_for(CLIPS[1]), "pinned, but its room is still to be had"
