"""Simulation of a large cluster: hundreds of nodes that open clips through the code of the shared store.

Nodes, leases and records are those of the program; the store is in memory, and the clock is that of the simulation. A
node has as many opens in progress as its loaders have workers. Every request takes the same time, and so does every
fetch from a source. The order of events depends on the seed only.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import mean, quantiles
from typing import NamedTuple, cast

from benchmarks.report import Row, Target
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import (
    ClipFacts,
    Lease,
    Leases,
    Node,
    Outage,
    SharedClip,
    SharedStore,
    StoreClock,
    Wait,
    WriteBack,
)
from tests.support.memory_backend import MemoryBackend

NODES, CLIPS = 256, 650_000
WORKERS = 8  # opens in progress at each node
REQUEST, TRANSFER, FETCH, STEP = 0.01, 0.03, 1.0, 0.4
"""Seconds: one request to the store; the bytes of a clip; a fetch from a source; between two opens of a worker."""
SPREAD = 0.2  # a duration varies by this part
RENEWAL = 5.0  # seconds between two looks of a node at its leases

FACTS = ClipFacts.of(b"clip", "archive", 10.0)


class Result(NamedTuple):
    """The outcome of a simulation.

    Attributes:
        opens: number of clips that nodes opened.
        fetches: number of fetches from a source.
        requests: number of requests to the store.
        seconds: from the first to the last open.
        peak: requests in the busiest second.
        waits: how long the opens took that met a lease, in seconds.
    """

    opens: int
    fetches: int
    requests: int
    seconds: float
    peak: int
    waits: Sequence[float]


class Simulation:
    """Nodes that open clips.

    Args:
        orders: the clips that each node opens, in their order.
        stored: clips that the store has already.
    """

    def __init__(self, orders: Sequence[Sequence[Clip]], stored: Iterable[Clip]) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._random = random.Random(1)
        self._backend = MemoryBackend(lambda: 1_800_000_000 + self.now)
        self._per_second: Counter[int] = Counter()
        self._fetches = self._opens = self._active = 0
        self._last = 0.0
        self._waits: list[float] = []
        for clip in stored:
            SharedStore(self._backend).put_clip(clip, SOURCE, b"clip", FACTS)
        self._backend.requests.clear()
        for number, order in enumerate(map(iter, orders)):
            clock = StoreClock(lambda: self.now)
            clock.observe(1_800_000_000)
            store = SharedStore(self._backend, clock)
            leases = Leases(store.records, clock, f"node-{number}", lambda: self.now)
            node = Node(
                store,
                leases,
                cast(WriteBack, _Uploads(self, store)),
                ["0123abcd", SOURCE],
                Outage(lambda: self.now),
                lambda report: None,
                monotonic=lambda: self.now,
            )
            self._renew(leases)
            for _ in range(WORKERS):
                self._active += 1
                self.after(STEP * self._random.random(), partial(self._open, node, order))

    def run(self) -> Result:
        """Run until every node has opened its clips."""
        while self._events and self._active:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return Result(
            self._opens,
            self._fetches,
            sum(self._per_second.values()),
            self._last,
            max(self._per_second.values()),
            self._waits,
        )

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something later."""
        seconds *= self._random.uniform(1 - SPREAD, 1 + SPREAD)
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def requests_of(self, action: Callable[[], object]) -> int:
        """Do something; return how many requests it sent."""
        before = sum(self._backend.requests.values())
        action()
        count = sum(self._backend.requests.values()) - before
        self._per_second[int(self.now)] += count
        return count

    def _renew(self, leases: Leases) -> None:
        self.requests_of(leases.renew)
        self.after(RENEWAL, lambda: self._renew(leases))

    def _open(self, node: Node, order: Iterator[Clip]) -> None:
        clip = next(order, None)
        if clip is None:
            self._active -= 1
        else:
            self._look(node, order, clip, self.now, waited=False)

    def _look(self, node: Node, order: Iterator[Clip], clip: Clip, began: float, *, waited: bool) -> None:
        found: list[object] = []
        seconds = REQUEST * self.requests_of(lambda: found.append(node.begin(clip)))
        match found[0]:
            case Wait(seconds=wait):
                self.after(seconds + wait, lambda: self._look(node, order, clip, began, waited=True))
                return
            case SharedClip():
                seconds += TRANSFER
            case work:
                self._fetches += 1
                seconds += FETCH
                self.after(seconds, lambda: work.finish(SOURCE))  # type: ignore[attr-defined]
        self._opens += 1
        self._last = self.now
        if waited:
            self._waits.append(self.now - began)
        self.after(seconds + STEP, lambda: self._open(node, order))


class _Uploads:
    """The write-back of a node, without its queue and its threads."""

    is_paused = False

    def __init__(self, simulation: Simulation, store: SharedStore) -> None:
        self._simulation = simulation
        self._store = store

    def add(self, clip: Clip, profile: str, lease: Lease | None) -> None:
        def upload() -> None:
            self._store.put_clip(clip, profile, b"clip", FACTS)
            if lease is not None:
                lease.release()

        self._simulation.after(TRANSFER + REQUEST, lambda: self._simulation.requests_of(upload))


def run(*, quick: bool) -> Sequence[Row]:
    """Simulate an epoch that the nodes divide, one in orders of their own, and one in the same order."""
    share = 20 if quick else 250
    divided = [_clips(range(node * share, (node + 1) * share)) for node in range(NODES)]
    own = [_clips(random.Random(node).sample(range(CLIPS), share)) for node in range(NODES)]
    same = [_clips(range(40 if quick else 200))] * NODES
    return [
        *_rows("a first epoch, divided among the nodes", divided, stored=False),
        *_rows("a later epoch without caches", divided, stored=True),
        *_rows("each node in an order of its own", own, stored=False),
        *_rows("all nodes in the same order", same, stored=False),
    ]


def _clips(numbers: Iterable[int]) -> list[Clip]:
    return [Clip(f"simulated{number // 10000:02d}", number % 10000, number % 10000 + 10) for number in numbers]


def _rows(what: str, orders: Sequence[Sequence[Clip]], *, stored: bool) -> Sequence[Row]:
    clips = {clip for order in orders for clip in order}
    result = Simulation(orders, clips if stored else ()).run()
    what = f"{NODES} nodes, {what}"
    rows = [
        Row(f"{what}: requests to the store per open", result.requests / result.opens),
        Row(f"{what}: opens a second", result.opens / result.seconds),
        Row(f"{what}: requests a second, mean", result.requests / result.seconds),
        Row(f"{what}: requests a second, peak", result.peak),
    ]
    if not stored:
        rows += [
            Row(f"{what}: fetches per clip", result.fetches / len(clips), target=Target("ours", "<=", 1.0)),
            Row(f"{what}: part of the opens that met a lease", len(result.waits) / result.opens),
        ]
    if len(result.waits) > 1:
        rows += [
            Row(f"{what}: time until such an open gets the clip, mean, s", mean(result.waits), FETCH, "one fetch"),
            Row(f"{what}: the same, 99th percentile, s", quantiles(result.waits, n=100)[98], FETCH, "one fetch"),
        ]
    return rows
