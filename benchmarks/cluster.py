"""Nodes that share a store: requests to the origin and to the store, and the speed of a hit.

The nodes are processes that use the library, with caches of their own (`tests.support.cluster_node`). The store is a
bucket of moto, behind a proxy where requests are counted. The origin is an HTTP server with an archive; every node has
its index, so that a clip is one request. Hundreds of nodes, and an hour of the budget, are simulated.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import cluster_simulation
from benchmarks.report import Row, Target
from kinetics_fs import Library
from kinetics_fs.catalog import Clip
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import ClipFacts, Records, SharedBudget, SharedStore, StoreClock, open_backend
from kinetics_fs.shared.backend import MAX_FILE
from kinetics_fs.shared.store import clip_key
from kinetics_fs.store import RateLimited
from tests.support.cluster import Nodes, Origin, cluster_clips, large_clips
from tests.support.memory_backend import MemoryBackend
from tests.support.s3_proxy import S3Proxy, s3_proxy
from tests.support.servers import Moto, moto

LIMIT = 300  # requests an hour


class Scale(NamedTuple):
    """How much is measured."""

    nodes: int
    clips: int
    killed: int
    ttl: float | None
    """Seconds of a lease; None for those of the program."""
    hits: int


_FULL = Scale(8, 200, 2, None, 60)
_QUICK = Scale(3, 30, 1, 3.0, 15)


def run(*, quick: bool) -> list[Row]:
    """Measure."""
    scale = _QUICK if quick else _FULL
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-cluster-") as made, bucket() as (server, proxy):
        folder = Path(made)
        clips = cluster_clips(folder / "clips", scale.clips)
        alone = _run_nodes(folder / "alone", None, proxy, clips, scale)
        together = _run_nodes(folder / "together", "s3://kinetics/together", proxy, clips, scale)
        killed = _run_nodes(folder / "killed", "s3://kinetics/killed", proxy, clips, scale, killed=scale.killed)
        what = f"{scale.nodes} nodes × {scale.clips} clips"
        return [
            Row(f"{what}: requests to the origin per clip", together.requests, target=Target("ours", "<=", 1.0)),
            Row(
                f"{what}, {scale.killed} killed: requests to the origin per clip",
                killed.requests,
                target=Target("ours", "<=", 1 + 2 * scale.killed / scale.clips),
            ),
            Row(
                f"{what}: MB from the origin",
                together.bytes / 1e6,
                alone.bytes / 1e6,
                "without a store",
                Target("ratio", "<=", 1.005 / scale.nodes),
            ),
            Row(f"{what}: requests to the store per clip and node", together.store_requests),
            *_requests(folder / "requests", proxy, clips),
            *_hit(folder / "hits", server, scale.hits),
            _budget(),
            *cluster_simulation.run(quick=quick),
        ]


@contextmanager
def bucket() -> Iterator[tuple[Moto, S3Proxy]]:
    """Yield a server that has a bucket `kinetics`, and a proxy in front of it; the environment has its address."""
    with tempfile.TemporaryDirectory() as folder, moto(Path(folder)) as server, s3_proxy(server.url) as proxy:
        server.s3.create_bucket(Bucket="kinetics")
        with _environment({**server.admin.environment(), "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1"}):
            yield server, proxy


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Run(NamedTuple):
    """What nodes cost.

    Attributes:
        requests: to the origin, per clip.
        bytes: from the origin.
        store_requests: to the store, per clip and node.
    """

    requests: float
    bytes: int
    store_requests: float


def _run_nodes(
    folder: Path, store: str | None, proxy: S3Proxy, clips: Mapping[Clip, bytes], scale: Scale, *, killed: int = 0
) -> _Run:
    folder.mkdir()
    if store is not None:
        SharedStore(open_backend(store)).open(create=True)
    origin = Origin(clips)
    nodes = Nodes(folder, store, origin, clips, ttl=scale.ttl)
    proxy.requests.clear()
    try:
        processes = [nodes.start(number) for number in range(scale.nodes)]
        for number in range(killed):
            origin.wait_for(len(clips) // 4 * (number + 1))
            processes[number].send_signal(signal.SIGKILL)
        for process in processes[killed:]:
            nodes.finish(process, within=600)
        nodes.check(*range(killed, scale.nodes))
        requests = proxy.requests.total() / (len(clips) * scale.nodes)
        return _Run(origin.requests.total() / len(clips), origin.bytes, requests)
    finally:
        nodes.close()
        origin.close()


def _requests(folder: Path, proxy: S3Proxy, clips: Mapping[Clip, bytes]) -> Sequence[Row]:
    """Let one node fetch clips, and another one find them."""
    folder.mkdir()
    store = "s3://kinetics/requests"
    SharedStore(open_backend(store)).open(create=True)
    origin = Origin(clips)
    nodes = Nodes(folder, store, origin, clips)
    first, *others = clips
    counts = []
    try:
        for number in range(2):
            with Library(**nodes.library(number)) as library:
                library.open(first.name).close()  # connects
                library.fetcher.drain_uploads(lambda left: None)
                proxy.requests.clear()
                for clip in others:
                    library.open(clip.name).close()
                library.fetcher.drain_uploads(lambda left: None)
                # One request deletes a thousand leases some minutes later; it is not counted.
                counts.append(proxy.requests.total() / len(others))
    finally:
        origin.close()
    fetch, hit = counts
    return [
        Row("requests to the store per clip: first fetch", fetch, target=Target("ours", "<=", 6)),
        Row("requests to the store per clip: hit", hit, target=Target("ours", "<=", 1)),
    ]


def _hit(folder: Path, server: Moto, rounds: int) -> Sequence[Row]:
    """Open clips of 1.5 MB that the store has, next to a request for the same object."""
    folder.mkdir()
    address, clips = "s3://kinetics/hits", large_clips(folder / "clips", rounds + 1)
    with ExitStack() as opened:
        opened.enter_context(_environment({"AWS_ENDPOINT_URL": server.url}))  # without the proxy
        store = SharedStore(open_backend(address))
        store.open(create=True)
        for clip, body in clips.items():
            store.put_clip(clip, SOURCE, body, ClipFacts.of(body, "archive", 10.0))
        origin = Origin(dict(list(clips.items())[:1]))
        opened.callback(origin.close)
        nodes = Nodes(folder, address, origin, clips)
        library = opened.enter_context(Library(**nodes.library(0)))
        first, *others = clips
        library.open(first.name).close()  # starts the processes
        ours, plain = [], []
        for clip in others:
            began = time.perf_counter()
            library.open(clip.name).close()
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            assert store.backend.get(clip_key(clip, SOURCE), max_size=MAX_FILE) is not None
            plain.append(time.perf_counter() - began)
    target = Target("ratio", "<=", 1.3)
    return [
        Row(
            "open of a clip of 1.5 MB that the store has, ms",
            median(ours) * 1e3,
            median(plain) * 1e3,
            "plain GET",
            target,
        )
    ]


def _budget() -> Row:
    """Let 64 machines whose clocks differ ask as often as they can for an hour."""
    now = [1_800_000_000.0]
    backend, choose = MemoryBackend(lambda: now[0]), random.Random(1)

    def machine(number: int) -> SharedBudget:
        def monotonic(start: float = now[0] - 90 * number) -> float:
            return now[0] - start

        clock = StoreClock(monotonic)
        return SharedBudget(
            Records(backend),
            backend,
            clock,
            "youtube",
            "default",
            f"{number:x}",
            monotonic=monotonic,
            sleep=lambda _: None,
        )

    machines, granted = [machine(number) for number in range(64)], 0
    for _ in range(3600):
        now[0] += 1
        try:
            choose.choice(machines).acquire(limit=LIMIT, urgent=True)
        except RateLimited:
            continue
        granted += 1
    return Row(
        f"64 machines, {LIMIT} requests an hour: requests in the first hour",
        granted,
        LIMIT,
        "limit",
        Target("ratio", "<=", 1.0),
    )
