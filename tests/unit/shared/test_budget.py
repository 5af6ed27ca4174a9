"""The common budget of many machines in a simulation: at most the limit in any hour, and one breaker."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.shared.backend import StoreUnreachable
from kinetics_fs.shared.budget import GRANT, SharedBudget
from kinetics_fs.shared.records import Records, StoreClock
from kinetics_fs.store import Permit, RateLimited
from tests.support.memory_backend import MemoryBackend

HOUR = 3600.0
KEY = "budget/youtube@default.json"
BLOCKED = FetchError(FailureKind.BLOCKED, "HTTP 429", source="youtube")


class World:
    """A store whose clock is 90 s off, and machines whose clocks differ."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.backend = MemoryBackend(lambda: self.time + 90)

    def machine(self, number: int) -> SharedBudget:
        def monotonic(start: float = self.time - number) -> float:
            return self.time - start

        return SharedBudget(
            Records(self.backend),
            self.backend,
            StoreClock(monotonic),
            "youtube",
            "default",
            f"{number:04x}",
            monotonic=monotonic,
            sleep=lambda _: None,
        )


@pytest.fixture
def world() -> World:
    return World()


def take(budget: SharedBudget, limit: int | None = 300, *, urgent: bool = True) -> Permit | None:
    try:
        return budget.acquire(limit=limit, urgent=urgent)
    except RateLimited as limited:
        assert 0 < limited.seconds <= 2 * HOUR
        return None


def count(budget: SharedBudget, limit: int, *, urgent: bool) -> int:
    taken = 0
    while take(budget, limit, urgent=urgent):
        taken += 1
    return taken


def test_64_machines_use_one_budget(world: World) -> None:
    choose = random.Random(7)
    machines = [world.machine(number) for number in range(64)]
    used: deque[float] = deque()
    for second in range(4500):
        world.time += 1
        while used and used[0] <= world.time - HOUR:
            used.popleft()
        if take(choose.choice(machines)):
            used.append(world.time)
        assert len(used) <= 300
        assert second != 3599 or len(used) >= 300 - GRANT
    assert machines[0].share(300) == 300 // 64
    assert sum(world.backend.requests.values()) < 64 * 4500 / 15


@given(
    limit=st.integers(1, 40),
    nodes=st.integers(1, 6),
    seed=st.integers(0, 1000),
    step=st.sampled_from([1.0, 7.0, 61.0]),
    urgent=st.booleans(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_hour_has_more_requests_than_the_limit(limit: int, nodes: int, seed: int, step: float, urgent: bool) -> None:
    world, choose = World(), random.Random(seed)
    machines = [world.machine(number) for number in range(nodes)]
    used: list[float] = []
    for _ in range(400):
        world.time += choose.random() * 2 * step
        number = choose.randrange(nodes)
        if choose.random() < 0.02:
            machines[number] = world.machine(number)  # killed, and started again
        machine = machines[number]
        if choose.random() < 0.02:
            world.backend.lose_answers = 1
        if choose.random() < 0.02:
            world.backend.repeat_writes = 1
        try:
            permit = take(machine, limit, urgent=urgent)
        except StoreUnreachable:
            continue
        if permit and choose.random() < 0.1:
            machine.cancel(permit)
        elif permit:
            used.append(world.time)
        assert sum(at > world.time - HOUR for at in used) <= limit
    assert used


def test_a_part_is_reserved_for_opens(world: World) -> None:
    first, second = world.machine(1), world.machine(2)
    assert count(first, 20, urgent=False) == 16
    assert count(second, 20, urgent=True) == 4


def test_unused_requests_come_back(world: World) -> None:
    first, second = world.machine(1), world.machine(2)
    assert take(first, GRANT)
    assert count(second, GRANT, urgent=True) == 0
    first.close()
    world.time += 20
    assert count(second, GRANT, urgent=True) == GRANT - 1


def test_without_a_limit_only_the_breaker_counts(world: World) -> None:
    machine = world.machine(1)
    assert all(take(machine, None) for _ in range(1000))
    assert sum(world.backend.requests.values()) < 10


def test_a_block_stops_all_machines_and_one_tests_it(world: World) -> None:
    first, second, third = (world.machine(number) for number in range(3))
    for machine in (first, second, third):
        assert take(machine)
    permit = take(first)
    assert permit and not permit.is_probe
    first.record(permit, BLOCKED)

    world.time += 31  # the grants of the others are over
    for machine in (first, second, third):
        with pytest.raises(FetchError, match="HTTP 429") as caught:
            machine.acquire(limit=300, urgent=True)
        assert caught.value.kind is FailureKind.BLOCKED and 0 < (caught.value.retry_after or 0) <= 60
    assert second.status().reason == "HTTP 429"

    world.time += 30
    probe = take(second)
    assert probe and probe.is_probe
    with pytest.raises(FetchError, match="another machine tests"):
        third.acquire(limit=300, urgent=True)

    second.record(probe, BLOCKED)  # the pause doubles
    world.time += 119
    with pytest.raises(FetchError):
        third.acquire(limit=300, urgent=True)
    world.time += 3
    probe = take(third)
    assert probe and probe.is_probe
    third.cancel(probe)
    probe = take(first)
    assert probe and probe.is_probe
    first.record(probe, FetchError(FailureKind.GONE, "Video unavailable"))
    for machine in (first, second, third):
        permit = take(machine)
        assert permit and not permit.is_probe
        assert machine.status().blocked_until is None


def test_a_lost_test_does_not_block_for_ever(world: World) -> None:
    first, second = world.machine(1), world.machine(2)
    permit = take(first)
    assert permit
    first.record(permit, BLOCKED)
    world.time += 61
    assert (probe := take(first)) and probe.is_probe  # and this machine dies
    world.time += 600
    assert (probe := take(second)) and probe.is_probe


def test_a_refusal_of_an_old_request_does_not_prolong_a_block(world: World) -> None:
    first, second = world.machine(1), world.machine(2)
    permits = take(first), take(second)
    assert permits[0] and permits[1]
    world.time += 5
    first.record(permits[0], BLOCKED)
    until = first.status().blocked_until
    world.time += 5
    second.record(permits[1], BLOCKED)
    assert second.status().blocked_until == until


def test_a_reset_ends_the_block_for_all(world: World) -> None:
    first, second = world.machine(1), world.machine(2)
    permit = take(first)
    assert permit
    first.record(permit, BLOCKED)
    second.reset_block()
    assert take(first) and take(second)


def test_without_the_store_a_machine_has_its_share(world: World) -> None:
    machine = world.machine(1)
    world.backend.is_down = True
    with pytest.raises(StoreUnreachable):
        machine.acquire(limit=300, urgent=True)
    assert machine.share(300) == 300 // 16

    world.backend.is_down = False
    for number in range(1, 4):
        assert take(world.machine(number))
    assert take(machine)
    world.backend.is_down = True
    assert machine.share(300) == 100
    assert machine.share(1) == 1
    world.time += HOUR + 1
    assert machine.share(300) == 300 // 16


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"nonce": "x", "used": {"x": 1, "99999999999": 5, "-1": 2}, "nodes": [], "block": 7}',
        b'{"nonce": "x", "used": {"30000000": true, "30000001": -5, "1": 1e9}, "nodes": {"z": {}}, "block": {}}',
        b'{"nonce": "x", "block": {"reason": "\\u001b[0m", "at": 1e300, "until": 1e300, "trips": 9, "probe_until": 0,'
        b' "recovered_at": 0}}',
        b'{"nonce": "x", "block": {"reason": "", "at": NaN, "until": 0, "trips": 0, "probe_until": 0,'
        b' "recovered_at": 0}}',
    ],
)
def test_a_strange_record_neither_stops_nor_frees_a_machine(world: World, body: bytes) -> None:
    world.backend.create(KEY, body)
    assert count(world.machine(1), 10, urgent=True) == 10


def test_a_test_that_never_ends_in_the_record_counts_as_lost(world: World) -> None:
    now = world.time + 90
    world.backend.create(
        KEY,
        b'{"nonce": "x", "block": {"reason": "r", "at": %d, "until": %d, "trips": 1, "probe_until": %d,'
        b' "recovered_at": 0}}' % (now, now, now + 10**8),
    )
    world.time += 700
    assert (probe := take(world.machine(1))) and probe.is_probe
