"""Fetchers of several machines that share a store in a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, SharedStoreError
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.shared import ClipFacts, Connection, SharedStore, open_backend
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.fetching import CLIP, DEAD, NO_SLEEP, OTHER, TIMEOUT, error_of
from tests.support.mounts import wait_until
from tests.support.store import read_clip

CUT = CutProfile().name


class Cluster:
    """Machines, each with a cache, that share a store and a site."""

    def __init__(self, folder: Path, site: VideoSite, opened: ExitStack) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self._site = site
        self._opened = opened
        self.stores: dict[str, Store] = {}

    def init(self) -> SharedStore:
        self.shared.mkdir()
        store = SharedStore(open_backend(str(self.shared)))
        assert store.open(create=True)
        return store

    def machine(
        self,
        name: str,
        *,
        write: str = "all",
        limit: int | None = None,
        profile: CutProfile = CutProfile(),  # noqa: B008
        timeout: float = TIMEOUT,
        workers: int = 2,
    ) -> Fetcher:
        store = self.stores[name] = self._opened.enter_context(Store(self.folder / name, profile=profile))
        connection = Connection(
            SharedStore(open_backend(str(self.shared))),
            store,
            write=write,
            group="default",
            limits={"youtube": limit},
            machine=name,
        )
        sources = SourceSettings(
            order=("youtube",), video_url=self._site.url_template, ytdlp=NO_SLEEP, max_height=profile.max_height
        )
        settings = FetchSettings(workers=workers, timeout=timeout, max_fetches_per_hour=limit, sources=sources)
        fetcher = Fetcher(store, settings, connection)
        self._opened.callback(fetcher.close)
        return fetcher


@pytest.fixture
def cluster(tmp_path: Path, site: VideoSite) -> Iterator[Cluster]:
    with ExitStack() as opened:
        yield Cluster(tmp_path, site, opened)


def uploaded(fetcher: Fetcher) -> Callable[[], bool]:
    def is_done() -> bool:
        status = fetcher.shared_status()
        return status is not None and status.uploads is not None and status.uploads.uploaded > 0 and status.leases == 0

    return is_done


def status_of(fetcher: Fetcher) -> tuple[int, int, int, int]:
    status = fetcher.shared_status()
    assert status is not None
    return status.hits, status.misses, status.waits, status.damaged


def test_a_store_that_was_not_created_is_an_error(cluster: Cluster) -> None:
    cluster.shared.mkdir()
    with pytest.raises(SharedStoreError, match=r"has no kinetics-store.json"):
        cluster.machine("first")


def test_a_clip_is_fetched_once_and_then_read_from_the_store(cluster: Cluster, site: VideoSite) -> None:
    shared = cluster.init()
    first = cluster.machine("first")
    first.request(CLIP).result(TIMEOUT)
    wait_until(uploaded(first))
    found = shared.get_clip(CLIP, CUT)
    assert found is not None and found.body == read_clip(cluster.stores["first"], CLIP)

    second = cluster.machine("second")
    second.request(CLIP).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1
    assert read_clip(cluster.stores["second"], CLIP) == found.body
    record = cluster.stores["second"].record(CLIP)
    assert record is not None
    assert (record.profile, record.source) == (CUT, "youtube")
    assert record.duration == pytest.approx(2.0, abs=0.1)
    assert (status_of(first), status_of(second)) == ((0, 1, 0, 0), (1, 0, 0, 0))


def test_machines_that_open_a_clip_at_once_fetch_it_once(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    site.delay[CLIP.youtube_id] = 1
    fetchers = [cluster.machine(name) for name in ("first", "second", "third")]
    for future in [fetcher.request(CLIP) for fetcher in fetchers]:
        future.result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1
    assert sorted(map(status_of, fetchers)) == [(0, 1, 0, 0), (1, 0, 1, 0), (1, 0, 1, 0)]


def test_a_wait_for_another_machine_ends_with_its_waiters(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    site.media_delay[CLIP.youtube_id] = 60
    first, second = cluster.machine("first"), cluster.machine("second")
    first.request(CLIP)
    wait_until(lambda: site.video_fetches(CLIP.youtube_id))
    waiter = second.request(CLIP)
    wait_until(lambda: status_of(second)[2])
    assert waiter.cancel()
    wait_until(lambda: not second.is_fetching(CLIP))  # it may be looking into the store just now


def test_a_machine_does_not_wait_longer_than_its_timeout(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    site.media_delay[CLIP.youtube_id] = 60
    first, second = cluster.machine("first"), cluster.machine("second", timeout=3)
    first.request(CLIP)
    wait_until(lambda: site.video_fetches(CLIP.youtube_id))
    second.request(CLIP)
    wait_until(lambda: site.video_fetches(CLIP.youtube_id) == 2)


def test_a_machine_with_other_cut_settings_fetches_its_own(cluster: Cluster, site: VideoSite) -> None:
    shared = cluster.init()
    first, second = cluster.machine("first"), cluster.machine("second", profile=CutProfile(max_height=32))
    first.request(CLIP).result(TIMEOUT)
    second.request(CLIP).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 2
    wait_until(uploaded(second))
    assert shared.get_clip(CLIP, CutProfile(max_height=32).name) is not None


def test_a_clip_as_its_source_has_it_serves_all_settings(cluster: Cluster, site: VideoSite, video: Path) -> None:
    shared = cluster.init()
    body = video.read_bytes()
    assert shared.put_clip(CLIP, "source", body, ClipFacts.of(body, "archive", None))
    machine = cluster.machine("machine")
    machine.request(CLIP).result(TIMEOUT)
    record = cluster.stores["machine"].record(CLIP)
    assert record is not None and (record.profile, record.source) == ("source", "archive")
    assert read_clip(cluster.stores["machine"], CLIP) == body
    assert site.requests == []


@pytest.mark.parametrize("damage", ["cut off", "swapped", "no video"])
def test_a_damaged_clip_is_fetched_from_a_source_and_replaced(
    cluster: Cluster, site: VideoSite, video: Path, damage: str
) -> None:
    shared = cluster.init()
    body = b"<html></html>" if damage == "no video" else video.read_bytes()
    assert shared.put_clip(CLIP, "source", body, ClipFacts.of(body, "archive", 2.0))
    assert shared.put_clip(OTHER, "source", body + b"\0", ClipFacts.of(body + b"\0", "archive", 2.0))
    [path] = cluster.shared.glob(f"clips/v1/source/*/{CLIP.name}*")
    [other] = cluster.shared.glob(f"clips/v1/source/*/{OTHER.name}*")
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "swapped":
        path.write_bytes(other.read_bytes())

    machine = cluster.machine("machine")
    machine.request(CLIP).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1
    assert status_of(machine)[3] >= 1
    wait_until(uploaded(machine))
    reader = cluster.machine("reader", write="none")
    reader.request(CLIP).result(TIMEOUT)
    assert site.video_fetches(CLIP.youtube_id) == 1


@pytest.mark.parametrize("write", ["none", "youtube"])
def test_what_is_uploaded_is_a_setting(cluster: Cluster, site: VideoSite, write: str) -> None:
    shared = cluster.init()
    machine = cluster.machine("machine", write=write)
    machine.request(CLIP).result(TIMEOUT)
    machine.close()
    assert (shared.get_clip(CLIP, CUT) is not None) == (write == "youtube")
    assert not list(cluster.shared.glob("leases/clip/**/*.json")) or write == "youtube"


def test_a_verdict_is_shared_once_the_source_has_delivered_something(cluster: Cluster, site: VideoSite) -> None:
    shared = cluster.init()
    first = cluster.machine("first")
    assert error_of(first.request(DEAD)).kind is FailureKind.GONE
    assert shared.get_gone(DEAD) is None

    # The cause may be the first machine, so a second one asks. Then the lease has the failure: a third one neither asks
    # the site nor remembers it.
    second = cluster.machine("second")
    assert error_of(second.request(DEAD)).kind is FailureKind.GONE
    fourth = cluster.machine("fourth")
    assert error_of(fourth.request(DEAD)).kind is FailureKind.GONE
    assert cluster.stores["fourth"].failures.get(DEAD) is None
    assert site.video_fetches(DEAD.youtube_id) == 2

    first.request(CLIP).result(TIMEOUT)
    report = shared.get_gone(DEAD)
    assert report is not None and (report.kind, report.source) == (FailureKind.GONE, "youtube")
    third = cluster.machine("third")
    assert error_of(third.request(DEAD)).kind is FailureKind.GONE
    failure = cluster.stores["third"].failures.get(DEAD)
    assert failure is not None and failure.source == "imported youtube"
    assert site.video_fetches(DEAD.youtube_id) == 2


def test_a_clip_that_another_machine_got_is_found_in_spite_of_a_failure(
    cluster: Cluster, site: VideoSite, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = cluster.init()
    machine = cluster.machine("machine")
    assert error_of(machine.request(DEAD)).kind is FailureKind.GONE
    body = video.read_bytes()
    assert shared.put_clip(DEAD, "source", body, ClipFacts.of(body, "archive", 2.0))
    assert machine.known_failure(DEAD) is not None
    monkeypatch.setattr("kinetics_fs.fetch.outcomes._LOOK_INTERVAL", 0.0)
    assert machine.known_failure(DEAD) is None
    machine.request(DEAD).result(TIMEOUT)
    assert site.video_fetches(DEAD.youtube_id) == 1


def test_the_machines_of_a_group_share_one_budget(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    first, second = cluster.machine("first", limit=2), cluster.machine("second", limit=2, timeout=5)
    first.request(CLIP).result(TIMEOUT)
    first.request(OTHER).result(TIMEOUT)
    error = error_of(second.request(Clip("demo-video2", 0, 2)))
    assert error.kind is FailureKind.BLOCKED and "the limit of 2 clips per hour" in error.reason
    status = second.shared_status()
    assert status is not None
    [budget] = status.budgets
    assert (budget.source, budget.used, budget.limit) == ("youtube", 2, 2)


def test_a_source_that_blocks_one_machine_is_left_alone_by_all(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    first, second = cluster.machine("first"), cluster.machine("second")
    site.fail[CLIP.youtube_id] = 429
    assert error_of(first.request(CLIP)).kind is FailureKind.BLOCKED
    error = error_of(second.request(OTHER))
    assert error.kind is FailureKind.BLOCKED and site.video_fetches(OTHER.youtube_id) == 0


def test_a_machine_works_alone_while_the_store_is_away(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    machine = cluster.machine("machine", limit=160)
    away = cluster.shared.rename(cluster.folder / "away")
    machine.request(CLIP).result(TIMEOUT)
    status = machine.shared_status()
    assert status is not None and status.error and status.uploads is not None and status.uploads.queued == 1
    machine.close()

    away.rename(cluster.shared)
    again = cluster.machine("machine")
    wait_until(uploaded(again))
    shared = SharedStore(open_backend(str(cluster.shared)))
    assert shared.get_clip(CLIP, CUT) is not None


def test_a_store_that_is_away_at_the_start_is_used_later(
    cluster: Cluster, site: VideoSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinetics_fs.shared import StoreUnreachable, connection

    monkeypatch.setattr(connection, "_FIRST_RETRY", 0.1)
    shared = cluster.init()
    is_away = threading.Event()
    is_away.set()
    open_store = SharedStore.open

    def open_or_not(self: SharedStore, *, create: bool) -> bool:
        if is_away.is_set():
            raise StoreUnreachable("cannot reach the store: it is away")
        return open_store(self, create=create)

    monkeypatch.setattr(SharedStore, "open", open_or_not)
    machine = cluster.machine("machine")
    machine.request(CLIP).result(TIMEOUT)
    status = machine.shared_status()
    assert status is not None and "it is away" in status.error
    is_away.clear()
    wait_until(uploaded(machine))
    assert shared.get_clip(CLIP, CUT) is not None
    status = machine.shared_status()
    assert status is not None and status.error == ""


def test_a_store_of_a_newer_version_is_read_and_not_written(cluster: Cluster, site: VideoSite, video: Path) -> None:
    shared = cluster.init()
    body = video.read_bytes()
    assert shared.put_clip(CLIP, "source", body, ClipFacts.of(body, "archive", None))
    path = cluster.shared / "kinetics-store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "writer": 2}))
    machine = cluster.machine("machine")
    machine.request(CLIP).result(TIMEOUT)
    machine.request(OTHER).result(TIMEOUT)
    status = machine.shared_status()
    assert status is not None and "newer version" in status.note
    assert shared.get_clip(OTHER, CUT) is None
    path.write_text(json.dumps({**json.loads(path.read_text()), "reader": 2}))
    with pytest.raises(SharedStoreError, match="update kinetics-fs"):
        cluster.machine("other")


def test_the_digest_of_a_clip_stays_the_same(cluster: Cluster, site: VideoSite) -> None:
    shared = cluster.init()
    first = cluster.machine("first")
    first.request(CLIP).result(TIMEOUT)
    wait_until(uploaded(first))
    second = cluster.machine("second")
    second.request(CLIP).result(TIMEOUT)
    found, record = shared.get_clip(CLIP, CUT), cluster.stores["second"].record(CLIP)
    assert found is not None and record is not None
    assert found.facts.sha256 == record.sha256 == hashlib.sha256(found.body).hexdigest()


def test_a_fetch_that_is_deferred_keeps_its_lease(cluster: Cluster, site: VideoSite) -> None:
    cluster.init()
    first = cluster.machine("first", limit=1)
    first.request(OTHER).result(TIMEOUT)
    waiter = first.request(CLIP, Priority.BACKGROUND)
    wait_until(lambda: status_of(first)[1] == 2)
    second = cluster.machine("second")
    second.request(CLIP)
    wait_until(lambda: status_of(second)[2])
    waiter.cancel()
    wait_until(lambda: cluster.stores["second"].is_cached(CLIP))
