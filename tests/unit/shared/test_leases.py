"""Leases in a simulation: clocks, crashes, lost answers and a store that comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.shared.leases import CLIP_TTL, Lease, LeaseHeld, Leases
from kinetics_fs.shared.records import StoreClock
from kinetics_fs.shared.store import ClipFacts, SharedStore, clip_lease
from tests.support.memory_backend import MemoryBackend

CLIP = Clip("-a1B2c3D4e5", 10, 20)
NAME = clip_lease(CLIP, "source")


class World:
    """A store, and machines whose clocks differ."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.backend = MemoryBackend(lambda: self.time)

    def clock(self, offset: float) -> Callable[[], float]:
        return lambda: self.time + offset

    def machine(self, name: str, offset: float = 0.0) -> tuple[SharedStore, Leases]:
        monotonic = self.clock(offset - self.time)
        store = SharedStore(self.backend, StoreClock(monotonic))
        return store, Leases(store.records, store.clock, name, monotonic)


@pytest.fixture
def world() -> World:
    return World()


def acquired(leases: Leases) -> Lease:
    lease = leases.acquire(NAME)
    assert isinstance(lease, Lease)
    return lease


def test_a_lease_has_one_owner_until_it_is_released(world: World) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second", 90.0)
    lease = acquired(first)

    held = second.acquire(NAME)
    assert held == LeaseHeld("first", CLIP_TTL)
    assert second.look(NAME) == held
    assert (first.held(), second.held()) == ([NAME], [])

    assert lease.is_new
    lease.release()
    assert second.look(NAME) is None
    assert not acquired(second).is_new
    assert first.held() == []


def test_a_lease_that_is_done_is_deleted_later(world: World) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second")
    acquired(first).release()
    first.renew()
    assert list(world.backend.scan("leases"))
    world.time += 301
    first.renew()
    assert not list(world.backend.scan("leases"))
    assert acquired(second).is_new

    second.close()
    acquired(first).release()
    first.close()
    assert not list(world.backend.scan("leases"))


def test_a_lease_is_over_when_one_nonce_was_seen_for_its_time(world: World) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second", 90.0)
    lease = acquired(first)
    world.time += 1000  # nobody looked, so nobody knows that the owner is dead
    assert isinstance(second.acquire(NAME), LeaseHeld)

    world.time += CLIP_TTL - 1
    assert isinstance(second.acquire(NAME), LeaseHeld)
    world.time += 1
    taken = acquired(second)

    first.renew()
    assert lease.is_lost
    lease.release()
    assert first.acquire(NAME) == LeaseHeld("second", CLIP_TTL)
    taken.release()


def test_a_renewed_lease_goes_on(world: World) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second")
    lease = acquired(first)
    for _ in range(20):
        world.time += CLIP_TTL / 2
        first.renew()
        assert isinstance(second.acquire(NAME), LeaseHeld)
    assert not lease.is_lost


def test_of_many_observers_one_takes_an_ended_lease_over(world: World) -> None:
    acquired(world.machine("dead")[1])
    observers = [world.machine(f"observer-{number}")[1] for number in range(5)]
    for observer in observers:
        observer.look(NAME)
    world.time += CLIP_TTL

    results = [observer.acquire(NAME) for observer in observers]
    assert [isinstance(result, Lease) for result in results] == [True, False, False, False, False]


def test_a_failure_of_two_machines_holds_for_all_until_its_time_to_retry(world: World) -> None:
    (store, first), (other, second), (_, third) = map(world.machine, ("first:1", "second:1", "third:1"))
    error = FetchError(FailureKind.TRANSIENT, "HTTP 503", source="youtube")
    acquired(first).fail(error, 30.0)
    _, same_machine = world.machine("first:2")
    acquired(same_machine).fail(error, 30.0)
    acquired(second).fail(error, 30.0)

    with pytest.raises(FetchError, match="HTTP 503") as caught:
        third.acquire(NAME)
    assert (caught.value.kind, caught.value.source, caught.value.retry_after) == (error.kind, "youtube", 30.0)
    world.time += 30
    acquired(third)
    assert store.clock.now() is None and other.clock.now() is None


def test_an_old_failure_does_not_hold_for_a_machine_that_sees_it_first(world: World) -> None:
    (_, first), (_, second), (store, third) = map(world.machine, ("first", "second", "third"))
    for leases in (first, second):
        acquired(leases).fail(FetchError(FailureKind.TRANSIENT, "HTTP 503"), 30.0)
    world.time += 3600
    assert store.probe().has_conditional_writes  # tells the time

    acquired(third)


def test_a_machine_that_shuts_down_leaves_no_lease(world: World) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second")
    acquired(first)
    first.close()
    acquired(second)


@pytest.mark.parametrize("lost", ["lose_answers", "repeat_writes"])
def test_a_write_whose_answer_was_lost_is_recognized(world: World, lost: str) -> None:
    (_, first), (_, second) = world.machine("first"), world.machine("second")
    setattr(world.backend, lost, 1)
    lease = acquired(first)
    assert isinstance(second.acquire(NAME), LeaseHeld)

    world.time += CLIP_TTL / 3
    setattr(world.backend, lost, 1)
    first.renew()
    assert not lease.is_lost
    world.time += CLIP_TTL - 1
    assert isinstance(second.acquire(NAME), LeaseHeld)
    lease.release()
    acquired(second)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"nonce": 1}',
        b'{"nonce": "x", "ttl": 1e400, "failure": 7}',
        b'{"nonce": "x", "ttl": NaN}',
        b'{"nonce": "x", "ttl": -5, "failure": {"kind": [], "reason": {}, "source": null}}',
        b'{"nonce": "x", "ttl": "x", "owner": "\\u001b[31m\\n", "failure": null}',
    ],
)
def test_a_strange_lease_is_over_after_a_while(world: World, body: bytes) -> None:
    world.backend.create(f"leases/{NAME}.json", body)
    _, leases = world.machine("first")
    for _ in range(2):
        try:
            result = leases.acquire(NAME)
        except FetchError:
            continue
        if isinstance(result, Lease):
            return
        assert result.owner.isprintable()
        world.time += 600
    acquired(leases)


class Node:
    """A machine of the simulation. It wants a clip, and looks for it whenever it is its turn."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.start()

    def start(self) -> None:
        """Begin with an empty memory, as after a crash."""
        self.store, self.leases = self.world.machine(f"node-{self.number}", 90.0 * self.number)
        self.lease: Lease | None = None
        self.wants = False
        self.has_looked = False
        self.fetched_at: float | None = None


class Cluster(RuleBasedStateMachine):
    """Nodes that open one clip at any time. Without a fault, it leaves its origin once."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.nodes = [Node(self.world, number) for number in range(4)]
        self.fetches = 0
        self.allowed = 1
        self.first_body: bytes | None = None

    node = st.integers(0, 3)

    @rule(node=node)
    def want(self, node: int) -> None:
        self.nodes[node].wants = True

    @rule(node=node)
    def turn(self, node: int) -> None:
        one = self.nodes[node]
        if not one.wants:
            return
        if one.fetched_at is not None:
            self.finish(one)
            return
        try:
            if not one.has_looked:  # anything may happen before its next turn
                one.wants, one.has_looked = not one.store.has_clip(CLIP, "source"), True
                return
            one.has_looked = False
            found = one.leases.acquire(NAME)
            if isinstance(found, LeaseHeld):
                return
            one.lease = found
            if not found.is_new and one.store.has_clip(CLIP, "source"):
                one.lease.release()
                one.wants = False
                return
        except FetchError:
            return
        except SharedStoreError:
            self.allowed += 1  # it goes on alone
        self.fetches += 1
        one.fetched_at = self.world.time + 20

    def finish(self, one: Node) -> None:
        if one.fetched_at is None or self.world.time < one.fetched_at:
            return
        body = f"cut by node {one.number}".encode()
        try:
            one.store.put_clip(CLIP, "source", body, ClipFacts.of(body, "youtube", 10.0))
        except SharedStoreError:
            return  # stays in its queue
        if one.lease is not None:
            one.lease.release()
        one.lease, one.fetched_at, one.wants = None, None, False

    @rule(seconds=st.sampled_from([1, 10, 70]))
    def wait(self, seconds: int) -> None:
        for _ in range(0, seconds, 5):
            self.world.time += min(seconds, 5)
            for one in self.nodes:
                one.leases.renew()

    @rule(node=node)
    def crash(self, node: int) -> None:
        if self.nodes[node].fetched_at is not None:
            self.allowed += 1
        self.nodes[node].start()

    @rule()
    def lose_an_answer(self) -> None:
        self.world.backend.lose_answers = 1

    @rule()
    def repeat_a_write(self) -> None:
        self.world.backend.repeat_writes = 1

    @precondition(lambda self: not self.world.backend.is_down)
    @rule(seconds=st.sampled_from([1, 100]))
    def lose_the_store(self, seconds: int) -> None:
        self.world.backend.is_down = True
        self.wait(seconds)
        self.world.backend.is_down = False
        if seconds > CLIP_TTL / 2 and any(one.fetched_at is not None for one in self.nodes):
            self.allowed += 1  # a lease was not renewed

    @rule(node=node)
    def look_while_the_store_is_away(self, node: int) -> None:
        self.world.backend.is_down = True
        self.turn(node)
        self.world.backend.is_down = False

    @invariant()
    def a_clip_is_written_once(self) -> None:
        bodies = [found.body for key, found in self.world.backend.objects.items() if key.startswith("clips/")]
        if bodies:
            self.first_body = self.first_body or bodies[0]
            assert bodies == [self.first_body]

    def teardown(self) -> None:
        for _ in range(60):
            for number in range(4):
                self.turn(number)
            self.wait(10)
        assert not any(one.wants for one in self.nodes)
        assert self.fetches <= self.allowed
        for one in self.nodes:
            one.leases.close()
        assert not [key for key in self.world.backend.objects if key.startswith("leases/")] or self.allowed > 1


Cluster.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestCluster = Cluster.TestCase
