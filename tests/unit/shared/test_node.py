"""One machine's part in a shared store."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.shared.leases import CLIP_TTL, Leases
from kinetics_fs.shared.node import Node, Wait, Work
from kinetics_fs.shared.outage import Outage
from kinetics_fs.shared.records import StoreClock
from kinetics_fs.shared.store import ClipFacts, SharedClip, SharedStore, clip_key
from kinetics_fs.shared.upload_queue import UploadQueue
from kinetics_fs.shared.write_back import LocalClip, WriteBack
from kinetics_fs.store import Failure, FailureReport
from tests.support.memory_backend import MemoryBackend

CLIP = Clip("-a1B2c3D4e5", 10, 20)
DAY = 86400.0


class Machine:
    """A machine with a cache. All have one store and one time."""

    def __init__(self, world: World, name: str, *, writes: bool = True) -> None:
        self.cached: dict[Clip, bytes] = {}
        self.believes = True
        self.world = world
        store = SharedStore(world.backend, StoreClock(world.clock))
        self.leases = Leases(store.records, store.clock, name, world.clock)
        self.queue = UploadQueue(world.folder / f"{name}.sqlite", now=world.clock)
        self.write_back = WriteBack(store, self.queue, self, monotonic=world.clock)
        self.outage = Outage(world.clock)
        self.node = Node(
            store,
            self.leases,
            self.write_back if writes else None,
            ["source", "0123abcd"],
            self.outage,
            self.note_gone,
            monotonic=world.clock,
            now=world.clock,
        )

    def note_gone(self, report: FailureReport) -> FetchError | None:
        return FetchError(report.kind, report.reason, source=report.source) if self.believes else None

    def read(self, clip: Clip, profile: str) -> LocalClip | None:
        body = self.cached.get(clip)
        return None if body is None else LocalClip(body, ClipFacts.of(body, "youtube", 10.0))

    def work(self) -> Work:
        found = self.node.begin(CLIP)
        assert isinstance(found, Work)
        return found

    def fetch(self, work: Work, body: bytes = b"clip", profile: str = "source") -> None:
        self.cached[CLIP] = body
        work.finish(profile)
        self.write_back.flush(30)


class World:
    """A store, and the time of all machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = 1_800_000_000.0
        self.backend = MemoryBackend(self.clock)

    def clock(self) -> float:
        return self.time


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def failure(kind: FailureKind = FailureKind.GONE, *, at: float) -> Failure:
    return Failure(CLIP.key, kind, "Video unavailable", "youtube", None, at, at, 1, at + 7 * DAY)


def test_one_machine_works_and_the_others_wait(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    work = first.work()
    waits = []
    for _ in range(6):
        wait = second.node.begin(CLIP)
        assert isinstance(wait, Wait) and wait.owner == "first"
        waits.append(wait.seconds)
        world.time += wait.seconds
    assert waits == sorted(waits) and waits[0] == 0.2 and max(waits) <= 2

    first.fetch(work)
    found = second.node.begin(CLIP)
    assert isinstance(found, SharedClip) and found.body == b"clip"
    status = second.node.status()
    assert (status.hits, status.misses, status.waits) == (1, 0, 1)
    assert first.node.status().leases == []


def test_requests_are_few(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    first.fetch(first.work())
    assert sum(world.backend.requests.values()) == 6
    world.backend.requests.clear()
    assert isinstance(second.node.begin(CLIP), SharedClip)
    assert world.backend.requests == {"get": 1}


def test_a_look_while_another_machine_works_is_one_request(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    work = first.work()
    assert isinstance(second.node.begin(CLIP), Wait)
    for _ in range(3):
        world.backend.requests.clear()
        assert isinstance(second.node.begin(CLIP), Wait)
        assert world.backend.requests == {"get": 1}
    first.fetch(work)
    assert isinstance(second.node.begin(CLIP), SharedClip)


def test_a_clip_of_another_profile_is_used(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    first.fetch(first.work(), profile="0123abcd")
    assert isinstance(second.node.begin(CLIP), SharedClip)


def test_a_clip_that_arrived_just_before_the_lease_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    work = first.work()
    check = second.node._check_gone

    def check_and_let_the_first_finish(clip: Clip) -> None:
        check(clip)
        first.fetch(work)

    monkeypatch.setattr(second.node, "_check_gone", check_and_let_the_first_finish)
    assert isinstance(second.node.begin(CLIP), SharedClip)
    assert second.leases.held() == []


def test_a_verdict_is_shared_until_its_time_to_retry(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    error = FetchError(FailureKind.GONE, "Video unavailable", source="youtube")
    first.work().fail(error, failure(at=world.time))

    with pytest.raises(FetchError, match="Video unavailable") as caught:
        second.node.begin(CLIP)
    assert (caught.value.kind, caught.value.source) == (FailureKind.GONE, "youtube")
    world.time += 7 * DAY + 1
    second.work()


def test_a_verdict_that_does_not_hold_here_leaves_the_clip_to_this_machine(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    error = FetchError(FailureKind.GONE, "not in archives", source="archive")
    first.work().fail(error, failure(at=world.time))
    second.believes = False
    second.fetch(second.work())
    assert isinstance(first.node.find(CLIP), SharedClip)


def test_the_profile_of_the_last_hit_is_tried_first(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    first.fetch(first.work(), profile="0123abcd")
    assert isinstance(second.node.begin(CLIP), SharedClip)
    world.backend.requests.clear()
    assert isinstance(second.node.begin(CLIP), SharedClip)
    assert world.backend.requests == {"get": 1}


def test_a_clip_with_the_right_digest_that_is_no_video_is_replaced(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    first.fetch(first.work(), b"<html>")
    found = second.node.begin(CLIP)
    assert isinstance(found, SharedClip)
    second.node.reject(CLIP, found)
    second.fetch(second.work())
    replaced = first.node.find(CLIP)
    assert replaced is not None and replaced.body == b"clip"
    assert second.node.status().damaged >= 1


def test_an_impatient_machine_does_not_wait(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    work = first.work()
    alone = second.node.begin(CLIP, patient=False)
    assert isinstance(alone, Work) and not alone.is_leased
    second.cached[CLIP] = b"other"
    alone.finish("source")
    second.write_back.flush(30)
    first.fetch(work)
    found = first.node.find(CLIP)
    assert found is not None and found.body == b"other"


def test_abandoned_work_is_done_by_the_next_machine(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    first.work().abandon("not uploaded")
    assert second.work().is_leased


@pytest.mark.parametrize(
    ("kind", "believed"),
    [
        (FailureKind.TRANSIENT, True),
        (FailureKind.CORRUPT, True),
        (FailureKind.BLOCKED, False),
        (FailureKind.CREDENTIALS, False),
        (FailureKind.CONFIG, False),
        (FailureKind.LOCAL, False),
    ],
)
def test_only_failures_of_the_clip_are_believed(world: World, kind: FailureKind, believed: bool) -> None:
    first, second, third = (Machine(world, name) for name in ("first", "second", "third"))
    first.work().fail(FetchError(kind, "reason"))
    first.work().fail(FetchError(kind, "reason"))  # the cause may be this machine
    second.work().fail(FetchError(kind, "reason"))
    if believed:
        with pytest.raises(FetchError, match="reason"):
            third.node.begin(CLIP)
        world.time += 60
    third.work()


def test_a_machine_that_does_not_write_waits_but_takes_no_lease(world: World) -> None:
    reader, writer = Machine(world, "reader", writes=False), Machine(world, "writer")
    reader.work().fail(FetchError(FailureKind.TRANSIENT, "reason"))
    work = writer.work()
    assert isinstance(reader.node.begin(CLIP), Wait)
    writer.fetch(work)
    assert isinstance(reader.node.begin(CLIP), SharedClip)
    assert reader.leases.held() == []


def test_a_machine_that_dies_costs_the_time_of_its_lease(world: World) -> None:
    Machine(world, "dead").work()
    second = Machine(world, "second")
    waited = 0.0
    while isinstance(wait := second.node.begin(CLIP), Wait):
        world.time += wait.seconds
        waited += wait.seconds
    assert isinstance(wait, Work)
    assert CLIP_TTL <= waited <= CLIP_TTL + 2


def test_a_damaged_clip_is_fetched_and_replaced(world: World) -> None:
    first, second = Machine(world, "first"), Machine(world, "second")
    world.backend.create(clip_key(CLIP, "source"), b"damaged", {"sha256": "0" * 64, "size": "7"})
    work = first.work()
    assert first.node.status().damaged == 1
    first.fetch(work)
    found = second.node.begin(CLIP)
    assert isinstance(found, SharedClip) and found.body == b"clip"


def test_an_unreachable_store_is_left_alone_for_a_while(world: World) -> None:
    machine = Machine(world, "machine")
    world.backend.is_down = True
    for _ in range(10):
        machine.work()
    assert sum(world.backend.requests.values()) == 1
    assert "is down" in machine.outage.reason

    world.time += 5
    machine.work()
    assert sum(world.backend.requests.values()) == 2
    world.backend.is_down = False
    machine.work()  # the pause has doubled
    assert machine.outage.reason
    world.time += 10
    machine.fetch(machine.work())
    assert machine.outage.reason == ""
    assert isinstance(Machine(world, "other").node.begin(CLIP), SharedClip)


def test_a_record_that_cannot_be_read_stops_nothing(world: World) -> None:
    machine = Machine(world, "machine")
    hh = clip_key(CLIP, "source").split("/")[3]
    world.backend.create(f"gone/v1/{hh}/{CLIP.key}.json", b"\xff")
    machine.fetch(machine.work())
    assert isinstance(Machine(world, "other").node.begin(CLIP), SharedClip)
