"""Short clips of archives and folders: with `replace_short`, YouTube is asked once for a longer one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip, compile_catalog, find_release
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.fetching import NO_SLEEP, TIMEOUT
from tests.support.mounts import wait_until
from tests.support.short_clips import (
    FULL,
    ONE_FRAME,
    SECONDS,
    SHORT,
    annotate,
    make_files,
    write_archive,
    write_folder,
)
from tests.support.store import read_clip

CLIPS = (FULL, SHORT, ONE_FRAME)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Clip, bytes]:
    made = make_files(tmp_path_factory.mktemp("made"))
    return {clip: made[clip] for clip in CLIPS}


@pytest.fixture
def videos(tmp_path: Path, files: dict[Clip, bytes]) -> Iterator[VideoSite]:
    """A site with a video of 10 s for `SHORT`."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / f"{SHORT.youtube_id}.mp4").write_bytes(files[FULL])
    with VideoSite(folder) as site:
        yield site


Make = Callable[..., Fetcher]


@pytest.fixture
def fetcher(store: Store, videos: VideoSite, files: dict[Clip, bytes], tmp_path: Path) -> Iterator[Make]:
    """Make fetchers with the clips in a folder and in an archive without an index."""
    folder, archives = write_folder(tmp_path / "clips", files), write_archive(tmp_path / "archives", files)
    annotations = annotate(tmp_path / "annotations.csv")
    catalog = compile_catalog([annotations], find_release("600"), tmp_path)
    with ExitStack() as stack:

        def make(*order: str, replace: bool = True, into: Store = store, limit: int | None = None) -> Fetcher:
            sources = SourceSettings(
                order=order or ("folder", "youtube"),
                video_url=videos.url_template,
                ytdlp=NO_SLEEP,
                folders=(str(folder),),
                archive_url=str(archives),
                archive_index=str(tmp_path / "archives.sqlite"),
                archive_lock=str(tmp_path / "archives.sqlite.reading"),
                catalog=str(catalog),
            )
            settings = FetchSettings(
                workers=2, timeout=TIMEOUT, sources=sources, replace_short=replace, max_fetches_per_hour=limit
            )
            made = Fetcher(into, settings)
            stack.callback(made.close)
            return made

        yield make


def fetch(fetcher: Fetcher, clip: Clip, priority: Priority = Priority.FOREGROUND) -> None:
    assert fetcher.request(clip, priority).result(TIMEOUT) is None


def told(store: Store, clip: Clip) -> tuple[str, float | None]:
    """Return the source and the duration of a cached clip."""
    record = store.record(clip)
    assert record is not None and record.cached
    return record.source, record.duration


def put(store: Store, clip: Clip, content: bytes, seconds: float) -> None:
    """Store a clip, as a fill does."""
    claim = store.claim(clip)
    assert claim is not None
    with claim:
        path = claim.folder / clip.name
        path.write_bytes(content)
        claim.publish(path, "archive", duration=seconds)


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_a_short_clip_is_replaced_by_a_longer_one(fetcher: Make, store: Store, videos: VideoSite, source: str) -> None:
    fetch(fetcher(source, "youtube"), SHORT)

    assert told(store, SHORT) == ("youtube", 10.0)
    assert videos.video_fetches(SHORT.youtube_id) == 1
    assert list(store.layout.incoming.iterdir()) == []


def test_a_short_clip_is_accepted_by_default(fetcher: Make, store: Store, videos: VideoSite) -> None:
    fetch(fetcher(replace=False), SHORT)
    fetch(fetcher("folder"), SHORT)

    assert told(store, SHORT) == ("folder", 4.0)
    assert videos.requests == []


def test_a_clip_that_is_not_short_is_not_requested_from_youtube(fetcher: Make, store: Store, videos: VideoSite) -> None:
    fetch(fetcher(), FULL)

    assert told(store, FULL) == ("folder", SECONDS[FULL])
    assert videos.requests == []


@pytest.mark.parametrize("status", [403, 500])
def test_a_short_clip_is_used_if_youtube_fails(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes], status: int
) -> None:
    videos.fail[SHORT.youtube_id] = status
    fetch(fetcher(), SHORT)

    assert read_clip(store, SHORT) == files[SHORT]
    assert store.failures.get(SHORT) is None


@pytest.mark.parametrize("status", [404, 429])
def test_youtube_is_not_asked_again_before_its_failure_expires(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes], status: int
) -> None:
    videos.fail[SHORT.youtube_id] = status
    first = fetcher()
    fetch(first, SHORT)
    asked = videos.video_fetches(SHORT.youtube_id)

    assert read_clip(store, SHORT) == files[SHORT]
    assert asked >= 1
    assert store.failures.get(SHORT) is None
    assert not first.wants_longer(SHORT)
    # Neither the next open nor another process asks again, nor after an eviction.
    store.remove(SHORT)
    again = fetcher()
    fetch(again, SHORT)
    assert not again.wants_longer(SHORT)
    assert read_clip(store, SHORT) == files[SHORT]
    assert videos.video_fetches(SHORT.youtube_id) == asked


def test_a_video_that_is_not_longer_is_not_taken(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes]
) -> None:
    (videos.directory / f"{SHORT.youtube_id}.mp4").write_bytes(files[SHORT])
    fetch(fetcher(), SHORT)

    assert read_clip(store, SHORT) == files[SHORT]
    assert not fetcher().wants_longer(SHORT)
    assert videos.video_fetches(SHORT.youtube_id) == 1


def test_a_clip_of_youtube_that_is_short_is_not_requested_again(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes]
) -> None:
    (videos.directory / f"{ONE_FRAME.youtube_id}.mp4").write_bytes(files[FULL])
    made = fetcher()
    fetch(made, ONE_FRAME)  # from 3 s on, and the video has 10 s

    source, seconds = told(store, ONE_FRAME)
    assert (source, seconds) == ("youtube", 7.0)
    assert store.short_clips.count([ONE_FRAME.key]) == 1
    assert not made.wants_longer(ONE_FRAME)


def test_a_cached_short_clip_is_replaced_when_it_is_requested(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes]
) -> None:
    put(store, SHORT, files[SHORT], 4.0)
    made = fetcher("archive", "youtube")
    assert made.wants_longer(SHORT)

    fetch(made, SHORT)

    assert told(store, SHORT) == ("youtube", 10.0)
    assert videos.video_fetches(SHORT.youtube_id) == 1


def test_two_processes_ask_for_a_cached_short_clip_once(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes]
) -> None:
    put(store, SHORT, files[SHORT], 4.0)
    videos.delay[SHORT.youtube_id] = 0.5
    with Store(store.folder) as other:
        for future in [fetcher(into=each).request(SHORT) for each in (store, other)]:
            assert future.result(TIMEOUT) is None

        assert told(other, SHORT) == ("youtube", 10.0)
    assert videos.video_fetches(SHORT.youtube_id) == 1


def test_youtube_is_not_asked_twice_if_it_comes_first(fetcher: Make, store: Store, videos: VideoSite) -> None:
    videos.fail[SHORT.youtube_id] = 404
    made = fetcher("youtube", "folder")
    fetch(made, SHORT)

    assert told(store, SHORT) == ("folder", 4.0)
    assert not made.wants_longer(SHORT)
    assert videos.video_fetches(SHORT.youtube_id) == 1


def test_a_remembered_failure_of_youtube_holds_for_a_clip_that_is_stored_later(
    fetcher: Make, store: Store, files: dict[Clip, bytes]
) -> None:
    for clip, source in ((SHORT, "imported youtube"), (ONE_FRAME, "archive")):
        store.failures.remember(clip, FetchError(FailureKind.GONE, "Video unavailable", source=source))
        put(store, clip, files[clip], SECONDS[clip])

    made = fetcher()
    assert not made.wants_longer(SHORT)
    assert made.wants_longer(ONE_FRAME)


def test_a_retry_time_from_a_wrong_clock_does_not_count(fetcher: Make, store: Store, files: dict[Clip, bytes]) -> None:
    put(store, SHORT, files[SHORT], 4.0)
    store.short_clips.remember(SHORT, FetchError(FailureKind.GONE, "Video unavailable"))
    made = fetcher()
    assert not made.wants_longer(SHORT)

    for retry_at in (time.time() + 365 * 86_400, time.time() - 1, "soon"):
        with closing(sqlite3.connect(store.layout.state_database)) as db, db:
            db.execute("UPDATE asked_for_longer SET retry_at = ?", (retry_at,))
        assert made.wants_longer(SHORT)


def test_an_open_does_not_wait_for_the_hourly_limit_and_a_prefetch_does(
    fetcher: Make, store: Store, videos: VideoSite, files: dict[Clip, bytes]
) -> None:
    put(store, SHORT, files[SHORT], 4.0)
    store.throttle.acquire("youtube", max_per_hour=None, urgent=True)  # the only request of this hour
    made = fetcher(limit=1)
    prefetch = made.request(SHORT, Priority.BACKGROUND)
    wait_until(lambda: made.status().queue["background"] == 1 and not made.status().in_flight)
    assert not prefetch.done()

    fetch(made, SHORT)

    assert read_clip(store, SHORT) == files[SHORT]
    assert prefetch.result(TIMEOUT) is None
    assert videos.requests == []


def test_siblings_of_an_archive_are_replaced_when_they_are_requested(
    fetcher: Make, store: Store, videos: VideoSite
) -> None:
    made = fetcher("archive", "youtube")
    futures = [made.request(clip) for clip in (FULL, SHORT, ONE_FRAME)]
    assert [future.result(TIMEOUT) for future in futures] == [None] * 3

    assert told(store, FULL)[0] == "archive"
    assert told(store, SHORT) == ("youtube", 10.0)
    assert told(store, ONE_FRAME) == ("archive", SECONDS[ONE_FRAME])  # the site does not have it
    assert videos.video_fetches(SHORT.youtube_id) == videos.video_fetches(ONE_FRAME.youtube_id) == 1


def test_a_short_clip_stays_if_there_is_no_space_for_the_longer_one(
    fetcher: Make, store: Store, files: dict[Clip, bytes]
) -> None:
    put(store, SHORT, files[SHORT], 4.0)
    with Store(store.folder, limit=len(files[SHORT]) + 1000) as small:
        fetch(fetcher(into=small), SHORT)

        assert read_clip(small, SHORT) == files[SHORT]
