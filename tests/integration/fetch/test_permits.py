"""Permits of the throttle of a cache and of the budget that machines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.fetch.permits import Permits, RequestPermit
from kinetics_fs.shared import Connection, SharedStore, connection
from kinetics_fs.store import RateLimited, Store
from tests.support.memory_backend import MemoryBackend

LIMIT = 64
REFUSED = FetchError(FailureKind.BLOCKED, "HTTP 429", source="youtube")


class Machine:
    """A machine with a cache of its own."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self.store = store
        self.connection = connection
        self.permits = Permits(store.throttle, lambda source: LIMIT, connection)

    def acquire(self) -> RequestPermit:
        return self.permits.acquire("youtube", urgent=True)

    def requests(self, most: int) -> int:
        """Return how many requests it may send, up to a number."""
        for number in range(most):
            try:
                self.permits.record(self.acquire(), None)
            except RateLimited:
                return number
        return most


class World:
    """A store in memory with a clock that stands still."""

    def __init__(self, folder: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = MemoryBackend(lambda: 1_800_000_000.0)
        self._folder = folder
        self._opened = opened
        self._nodes = iter("0123456789abcdef")
        monkeypatch.setattr(connection, "node_id", lambda: next(self._nodes) * 12)
        SharedStore(self.backend).open(create=True)

    def machine(self, name: str) -> Machine:
        store = self._opened.enter_context(Store(self._folder / name))
        shared = Connection(
            SharedStore(self.backend), store, write="all", group="default", limits={"youtube": LIMIT}, machine=name
        )
        shared.start(lambda report: None)
        self._opened.callback(shared.close, 0)
        return Machine(store, shared)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with ExitStack() as opened:
        yield World(tmp_path, opened, monkeypatch)


def test_machines_share_one_budget(world: World) -> None:
    first, second = world.machine("first"), world.machine("second")
    assert first.requests(40) == 40
    assert second.requests(100) == LIMIT - 40
    assert second.permits.limit("youtube") == LIMIT


def test_a_permit_that_was_not_used_goes_back_to_both(world: World) -> None:
    first, second = world.machine("first"), world.machine("second")
    for _ in range(2 * LIMIT):
        first.permits.cancel(first.acquire())
    first.connection.close(0)
    assert second.requests(100) == LIMIT
    assert first.store.throttle.fetches_last_hour("youtube") == 0


def test_without_the_store_a_machine_keeps_to_its_part(world: World) -> None:
    machines = [world.machine(name) for name in ("first", "second", "third", "fourth")]
    for machine in machines:
        assert machine.requests(1) == 1
    first = machines[-1]
    world.backend.is_down = True
    first.connection.outage.begin(SharedStoreError("cannot reach the store"))
    assert first.permits.limit("youtube") == LIMIT // 4
    assert first.requests(100) == LIMIT // 4 - 1  # one was sent before


def test_a_store_that_goes_away_in_a_request_does_not_fail_it(world: World) -> None:
    first = world.machine("first")
    world.backend.is_down = True
    permit = first.acquire()
    assert permit.shared is None and first.connection.outage.is_on
    first.permits.record(permit, None)


def test_a_store_that_was_never_reached_leaves_a_sixteenth(world: World) -> None:
    world.backend.is_down = True
    first = world.machine("first")
    assert first.permits.limit("youtube") == LIMIT // 16
    assert first.requests(100) == LIMIT // 16


def test_a_block_of_one_machine_holds_for_all_and_ends_for_all(world: World) -> None:
    first, second = world.machine("first"), world.machine("second")
    first.permits.record(first.acquire(), REFUSED)
    with pytest.raises(FetchError, match="HTTP 429"):
        second.acquire()
    assert second.store.throttle.fetches_last_hour("youtube") == 0
    budget = first.connection.budget("youtube")
    assert budget is not None
    budget.reset_block()
    assert second.requests(1) == 1


@pytest.mark.parametrize("end", ["record", "cancel"])
def test_a_damaged_budget_is_begun_again(world: World, end: str) -> None:
    first = world.machine("first")
    assert first.requests(3) == 3
    [key] = [key for key in world.backend.objects if key.startswith("budget/youtube")]
    found = world.backend.get(key, max_size=10**6)
    assert found is not None
    world.backend.replace(key, b"[[[", found.info.version)
    ends: dict[str, Callable[[RequestPermit], None]] = {
        "record": lambda permit: first.permits.record(permit, REFUSED),
        "cancel": first.permits.cancel,
    }
    ends[end](first.acquire())
    second = world.machine("second")
    if end == "cancel":
        assert second.requests(5) == 5
