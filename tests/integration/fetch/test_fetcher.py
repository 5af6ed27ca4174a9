"""The fetcher with real worker processes, against a site on this machine."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE, expected_frames
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.fetcher import FetchState, Priority
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import Store
from tests.support.command_line import has_ended
from tests.support.fetching import CLIP, DEAD, FOURTH, OTHER, THIRD, TIMEOUT, FetcherFactory, cached_frames, error_of
from tests.support.mounts import command_line, descendants, wait_until
from tests.support.store import SmallDisk

HANGING = "sleep 311"
DISK_SIZE = 3 * 1024**2
"""Size of a disk with space for the databases of the cache and for short clips."""


def parent_and_group(pid: int) -> tuple[int, int] | None:
    """Return the parent and the group of a process; None if it is dead or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent, group = stat.rpartition(")")[2].split()[:3]
    return None if state == "Z" else (int(parent), int(group))


def processes() -> dict[int, tuple[int, int]]:
    found = {int(path.name): parent_and_group(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return {pid: known for pid, known in found.items() if known is not None}


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a process: each leads its own process group."""
    return [child for child, (parent, group) in processes().items() if parent == pid and group == child]


def runs(command: str, below: int) -> bool:
    """Return whether a descendant of a process runs a command."""
    return any(command in command_line(pid) for pid in descendants(below))


def leftovers(store: Store) -> list[Path]:
    """Return files of ended fetches; there must be none."""
    return [*store.layout.incoming.iterdir(), *filter(Path.is_file, store.layout.scratch.rglob("*"))]


@pytest.fixture
def hanging_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put an `ffmpeg` that never ends first in PATH; return the command that runs when it does."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "ffmpeg"
    # yt-dlp asks for the version, and for that alone it answers.
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *-nostdin*) ;; *) exec {find_ffmpeg()} "$@";; esac\n{HANGING} &\nwait\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return HANGING


def test_a_fetched_clip_is_in_the_store(fetcher: FetcherFactory, store: Store, tmp_path: Path) -> None:
    one = fetcher()
    future = one.request(CLIP)
    assert one.is_fetching(CLIP)
    assert one.status().pending == 1

    assert future.result(TIMEOUT) is None

    assert (one.is_fetching(CLIP), one.status().pending) == (False, 0)
    assert (one.stats.fetched, one.stats.failed) == (1, 0)
    assert cached_frames(store, CLIP, tmp_path) == expected_frames(CLIP)
    record = store.record(CLIP)
    assert record is not None
    assert record.source == "youtube"
    assert leftovers(store) == []


def test_many_threads_share_one_fetch(fetcher: FetcherFactory, store: Store, site: VideoSite) -> None:
    one = fetcher(workers=3)
    site.delay[CLIP.youtube_id] = 0.5
    futures: list[Future[None]] = []
    threads = [threading.Thread(target=lambda: futures.append(one.request(CLIP))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(wait(futures, TIMEOUT).done) == 30
    assert site.video_fetches(CLIP.youtube_id) == 1
    # And who comes later, even to another fetcher, finds it there.
    fetcher().request(CLIP).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1


_REQUEST_ONE = """
import sys
from pathlib import Path
from kinetics_fs.catalog import Clip
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store

cache, url, *clip = sys.argv[1:]
with Store(Path(cache)) as store:
    fetcher = Fetcher(store, FetchSettings(workers=1, timeout=60, sources=SourceSettings(video_url=url)))
    future = fetcher.request(Clip(clip[0], int(clip[1]), int(clip[2])))
    print("asked", flush=True)
    future.result()
    stored = store.open(Clip(clip[0], int(clip[1]), int(clip[2])))
    print("have", stored.size, flush=True)
    print("loaded", *sorted({"yt_dlp", "av", "numpy", "fuse"} & set(sys.modules)), flush=True)
    fetcher.close()
"""


def start_request(store: Store, site: VideoSite, clip: Clip) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-c", _REQUEST_ONE, store.folder, site.url_template),
            *map(str, clip),
        ],
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_many_processes_share_one_fetch(store: Store, site: VideoSite) -> None:
    site.delay[CLIP.youtube_id] = 1
    running = [start_request(store, site, CLIP) for _ in range(20)]
    said = [process.communicate(timeout=110)[0].splitlines() for process in running]

    assert [process.returncode for process in running] == [0] * 20
    assert len({tuple(lines) for lines in said}) == 1
    assert site.video_fetches(CLIP.youtube_id) == 1
    assert leftovers(store) == []
    # Nor has anyone but the workers loaded what is large.
    assert said[0][-1] == "loaded"


def test_foreground_requests_are_served_first(fetcher: FetcherFactory, site: VideoSite) -> None:
    one = fetcher()
    site.delay[CLIP.youtube_id] = 1.5
    ended: list[Clip] = []

    def ask(clip: Clip, priority: Priority) -> Future[None]:
        future = one.request(clip, priority)
        future.add_done_callback(lambda _: ended.append(clip))
        return future

    background = [Clip("demo_video4", start, start + 1) for start in range(3)]
    joined = background[-1]
    futures = [ask(CLIP, Priority.BACKGROUND)]
    wait_until(lambda: site.video_fetches(CLIP.youtube_id))
    futures += [ask(clip, Priority.BACKGROUND) for clip in background]
    futures += [ask(OTHER, Priority.FOREGROUND)]
    # Somebody opens a clip that is waiting in the background: it goes before the others there.
    futures.append(one.request(joined, Priority.FOREGROUND))
    # And asking in the background again takes nothing back.
    futures.append(one.request(joined, Priority.BACKGROUND))
    wait(futures, TIMEOUT)

    assert ended == [CLIP, OTHER, joined, *background[:-1]]
    assert all(future.exception() is None for future in futures)


def test_a_slow_clip_does_not_delay_another(fetcher: FetcherFactory, site: VideoSite) -> None:
    one = fetcher(workers=2)
    site.media_delay[CLIP.youtube_id] = 30
    slow = one.request(CLIP)

    one.request(OTHER).result(TIMEOUT)

    assert not slow.done()


def test_a_clip_that_another_process_fetches_does_not_block_the_queue(
    fetcher: FetcherFactory, store: Store, site: VideoSite
) -> None:
    one = fetcher()
    with Store(store.folder) as elsewhere:
        claim = elsewhere.claim(CLIP)
        assert claim is not None
        with claim:
            waiting = one.request(CLIP)
            one.request(OTHER).result(TIMEOUT)
            assert not waiting.done()
            assert site.video_fetches(CLIP.youtube_id) == 0
        waiting.result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1


def test_debug_logs_why_and_how_long_a_fetch_is_deferred(
    fetcher: FetcherFactory, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kinetics_fs")
    deferred = f"fetch {CLIP.key}: deferred for 0.1 s: another process is fetching it"
    with Store(store.folder) as elsewhere:
        claim = elsewhere.claim(CLIP)
        assert claim is not None
        with claim:
            future = fetcher().request(CLIP)
            wait_until(lambda: deferred in caplog.messages)
        future.result(TIMEOUT)

    steps = [message.rpartition(", ")[0] for message in caplog.messages if message.startswith(f"fetch {CLIP.key}")]
    expected = ["claim: ok", "permit for youtube: ok", "youtube: ok", "publish: ok"]
    assert steps[-4:] == [f"fetch {CLIP.key}: {step}" for step in expected]


def test_a_deferred_clip_without_waiters_is_dropped(fetcher: FetcherFactory, store: Store, site: VideoSite) -> None:
    one = fetcher()
    with Store(store.folder) as elsewhere:
        claim = elsewhere.claim(CLIP)
        assert claim is not None
        with claim:
            with closing(sqlite3.connect(store.layout.state_database)) as db, db:
                db.execute("BEGIN IMMEDIATE")
                waiter = one.request(CLIP)
                wait_until(lambda: one._fetches[CLIP].state is FetchState.RUNNING)
                waiter.cancel()
            wait_until(lambda: not one.is_fetching(CLIP))
    one.request(OTHER).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 0


def test_a_cancelled_waiter_does_not_cancel_the_others(fetcher: FetcherFactory, site: VideoSite) -> None:
    one = fetcher()
    site.delay[CLIP.youtube_id] = 0.5
    one.request(CLIP).cancel()  # whatever that may do to this clip

    one.request(OTHER).result(15)
    one.request(CLIP).result(15)


# Time, and death


@pytest.mark.serial
def test_the_timeout_ends_the_worker_and_its_ffmpeg(
    fetcher: FetcherFactory, store: Store, hanging_ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fetcher(timeout=6)
    future = one.request(CLIP)
    wait_until(lambda: runs(hanging_ffmpeg, os.getpid()))
    [worker] = workers_of(os.getpid())
    members = {worker, *descendants(worker)}
    assert len(members) >= 4  # the worker, its confined process, ffmpeg, and what that started

    error = error_of(future)

    assert (error.kind, error.errno) == (FailureKind.TRANSIENT, errno.ETIMEDOUT)
    assert all(has_ended(pid, within=10) for pid in members)
    assert leftovers(store) == []
    # The next job gets another worker.
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    one.request(OTHER).result(TIMEOUT)
    assert workers_of(os.getpid()) != [worker]


def test_a_killed_worker_is_a_transient_failure_and_is_replaced(
    fetcher: FetcherFactory, store: Store, site: VideoSite
) -> None:
    one = fetcher()
    site.media_delay[CLIP.youtube_id] = 30
    future = one.request(CLIP)
    wait_until(lambda: site.video_fetches(CLIP.youtube_id))
    [worker] = workers_of(os.getpid())
    os.kill(worker, signal.SIGKILL)

    assert error_of(future).kind is FailureKind.TRANSIENT

    assert leftovers(store) == []
    one.request(OTHER).result(TIMEOUT)
    [second] = workers_of(os.getpid())
    # One that dies between two jobs is not even noticed.
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: parent_and_group(second) is None)
    one.request(THIRD).result(TIMEOUT)
    assert one.stats.fetched == 2


def test_close_ends_all_fetches_and_processes(fetcher: FetcherFactory, store: Store, hanging_ffmpeg: str) -> None:
    one = fetcher(workers=2)
    futures = [one.request(clip) for clip in (CLIP, OTHER, THIRD, FOURTH)]
    wait_until(lambda: runs(hanging_ffmpeg, os.getpid()))
    workers = workers_of(os.getpid())
    assert len(workers) == 2
    members = descendants(os.getpid())

    one.close()

    for future in futures:
        assert future.done()
        assert error_of(future).kind is FailureKind.TRANSIENT
    assert all(has_ended(pid, within=60) for pid in members)
    assert leftovers(store) == []
    # It was nobody's fault: nothing of it is remembered.
    assert list(store.failures.all()) == []
    assert error_of(one.request(CLIP)).reason == "shutting down"
    one.close()


def test_workers_end_when_their_parent_is_killed(store: Store, site: VideoSite, hanging_ffmpeg: str) -> None:
    parent = start_request(store, site, CLIP)
    try:
        wait_until(lambda: runs(hanging_ffmpeg, parent.pid))
        members = descendants(parent.pid)
    finally:
        parent.kill()
        parent.communicate()

    assert all(has_ended(pid, within=10) for pid in members)
    # The next process that opens the store removes its files.
    with Store(store.folder) as later:
        assert leftovers(later) == []


# Failures


def failure_rows(store: Store) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(store.layout.state_database)) as db:
        return db.execute("SELECT key, retry_at FROM failure").fetchall()


def test_a_failure_is_remembered_until_it_expires(fetcher: FetcherFactory, store: Store, site: VideoSite) -> None:
    one = fetcher()
    first = error_of(one.request(DEAD))
    assert first.kind is FailureKind.GONE
    assert site.video_fetches(GONE) == 1

    again = one.request(DEAD)
    assert again.done()
    assert error_of(again).reason == first.reason
    assert error_of(again).source == "youtube"
    # A fetcher elsewhere knows as much.
    with Store(store.folder) as elsewhere:
        assert error_of(fetcher(into=elsewhere).request(DEAD)).kind is FailureKind.GONE
    assert site.video_fetches(GONE) == 1

    [(key, retry_at)] = failure_rows(store)
    assert key == DEAD.key
    assert retry_at > time.time() + 86400
    with closing(sqlite3.connect(store.layout.state_database)) as db, db:
        db.execute("UPDATE failure SET retry_at = ?", (time.time() - 1,))
    assert error_of(one.request(DEAD)).kind is FailureKind.GONE
    assert site.video_fetches(GONE) == 2
    assert next(store.failures.all()).attempts == 2


def test_a_failure_is_forgotten_when_the_clip_is_fetched(
    fetcher: FetcherFactory, store: Store, site: VideoSite
) -> None:
    one = fetcher()
    site.fail[CLIP.youtube_id] = 503
    assert error_of(one.request(CLIP)).kind is FailureKind.TRANSIENT
    assert store.failures.get(CLIP) is not None
    del site.fail[CLIP.youtube_id]
    store.failures.forget([CLIP])

    one.request(CLIP).result(TIMEOUT)

    assert store.failures.get(CLIP) is None


def test_a_refused_connection_is_a_transient_failure(fetcher: FetcherFactory, store: Store) -> None:
    error = error_of(fetcher(url="http://127.0.0.1:9/{id}").request(CLIP))

    assert (error.kind, error.source) == (FailureKind.TRANSIENT, "youtube")
    failure = store.failures.get(CLIP)
    assert failure is not None
    assert failure.retry_at - failure.last_at <= 3600


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Sorry</title>", b""])
def test_a_page_instead_of_media_is_corrupt(
    store: Store, fetcher: FetcherFactory, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / f"{CLIP.youtube_id}.mp4").write_bytes(content)
    with VideoSite(folder) as site:
        error = error_of(fetcher(url=site.url_template).request(CLIP))

    assert error.kind in (FailureKind.CORRUPT, FailureKind.TRANSIENT)
    assert not store.is_cached(CLIP)
    assert leftovers(store) == []


def test_min_free_is_kept(fetcher: FetcherFactory, site: VideoSite, tmp_path: Path) -> None:
    with Store(tmp_path / "cache", min_free=10**16) as store:
        one = fetcher(into=store)

        error = error_of(one.request(CLIP))

        assert (error.kind, error.errno) == (FailureKind.LOCAL, errno.ENOSPC)
        assert site.requests == []
        assert leftovers(store) == []
        one.close()


def test_a_clip_larger_than_the_cache_fails_with_enospc(
    fetcher: FetcherFactory, site: VideoSite, tmp_path: Path
) -> None:
    with Store(tmp_path / "cache", limit=10_000) as store:
        one = fetcher(into=store)
        # A failure of this machine never prevents a retry.
        for tries in (1, 2):
            error = error_of(one.request(CLIP))
            assert (error.kind, error.errno) == (FailureKind.LOCAL, errno.ENOSPC)
            assert site.video_fetches(CLIP.youtube_id) == tries
        assert list(store.layout.clips.glob("*/*.mp4")) == []
        assert leftovers(store) == []
        one.close()


def test_a_disk_that_was_full_is_used_again(fetcher: FetcherFactory, small_disk: SmallDisk) -> None:
    disk = small_disk(DISK_SIZE)
    with Store(disk / "cache") as store:
        one = fetcher(into=store)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(store.usage().disk_free - 100_000))
        assert error_of(one.request(CLIP)).kind is FailureKind.LOCAL

        ballast.unlink()

        one.request(CLIP).result(20)
        assert store.usage().clips == 1
        one.close()


def test_a_disk_that_fills_up_during_a_fetch_is_a_local_failure(
    fetcher: FetcherFactory, site: VideoSite, small_disk: SmallDisk, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / f"{CLIP.youtube_id}.mp4").write_bytes(os.urandom(4_000_000))
    disk = small_disk(DISK_SIZE)
    with Store(disk / "cache") as store, VideoSite(folder) as large:
        assert store.usage().disk_free < 4_000_000
        one = fetcher(into=store, url=large.url_template)

        error = error_of(one.request(CLIP))

        assert error.kind is FailureKind.LOCAL
        assert not store.is_cached(CLIP)
        assert list(store.layout.clips.glob("*/*")) == []
        assert leftovers(store) == []
        assert store.usage().reserved == 0
        assert error.errno == errno.ENOSPC
        # And whoever asks again gets an answer.
        assert error_of(one.request(CLIP)).kind is FailureKind.LOCAL
        one.close()
