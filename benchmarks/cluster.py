"""Machines that share a store: requests to the source and to the store, and the speed of a hit.

The machines are processes with caches of their own (`tests.support.cluster_node`). The store is a bucket of moto
behind a proxy that counts requests. The source is an HTTP server that counts requests, too. The clocks of the machines
run ten times as fast, so that leases of killed machines end within seconds. The budget is measured in a simulation of
an hour.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.report import Row, Target
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared import (
    ClipFacts,
    Leases,
    LocalClip,
    Node,
    Outage,
    Records,
    SharedBudget,
    SharedClip,
    SharedStore,
    StoreClock,
    UploadQueue,
    Work,
    WriteBack,
    open_backend,
)
from kinetics_fs.shared.backend import MAX_FILE
from kinetics_fs.shared.store import clip_key
from kinetics_fs.store import RateLimited
from tests.support.cluster import Machines, Origin
from tests.support.memory_backend import MemoryBackend
from tests.support.s3_proxy import S3Proxy, s3_proxy
from tests.support.servers import moto

HIT_SIZE = 1_500_000  # bytes
LIMIT = 300  # requests an hour


def run(*, quick: bool) -> list[Row]:
    """Measure."""
    machines, clips, rounds = (3, 60, 30) if quick else (8, 200, 200)
    with _bucket() as proxy:
        return [
            *_once(proxy, machines, clips, killed=0),
            *_once(proxy, machines, clips, killed=1 if quick else 2),
            *_requests(proxy, rounds),
            _hit(proxy, rounds),
            _budget(),
        ]


@contextmanager
def _bucket() -> Iterator[S3Proxy]:
    """Yield a proxy in front of a server that has a bucket `kinetics`; the environment has its address."""
    with tempfile.TemporaryDirectory() as folder, moto(Path(folder)) as server, s3_proxy(server.url) as proxy:
        server.s3.create_bucket(Bucket="kinetics")
        before = dict(os.environ)
        os.environ.update({**server.admin.environment(), "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1"})
        try:
            yield proxy
        finally:
            os.environ.clear()
            os.environ.update(before)


def _once(proxy: S3Proxy, count: int, clips: int, *, killed: int) -> Sequence[Row]:
    origin = Origin()
    proxy.requests.clear()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [Clip(f"cluster{number:04d}", number, number + 10) for number in range(clips)]
        machines = Machines(Path(folder), f"s3://kinetics/killed-{killed}", origin, chosen)
        try:
            processes = [machines.start(number) for number in range(count)]
            for number in range(killed):
                origin.wait_for(clips // 4 * (number + 1))
                processes[number].send_signal(signal.SIGKILL)
            results = [machines.finish(process) for process in processes[killed:]]
            machines.check(*range(killed, count))
        finally:
            machines.close()
            origin.close()
    what = f"{count} machines × {clips} clips" + (f", {killed} killed" if killed else "")
    rows = [
        Row(
            f"{what}: requests to the source per clip",
            origin.requests.total() / clips,
            target=Target("ours", "<=", 1.02 if killed else 1.0),
        )
    ]
    if not killed:
        hits = sum(result["hits"] for result in results)
        # The polls of waiting machines are counted, too.
        rows.append(Row(f"{what}: requests to the store per clip and machine", proxy.requests.total() / (hits + clips)))
    return rows


def _requests(proxy: S3Proxy, clips: int) -> Sequence[Row]:
    """Let one machine fetch clips, and another one find them."""

    def machine(name: str) -> tuple[Node, WriteBack, Leases]:
        store = SharedStore(open_backend("s3://kinetics/requests"))
        leases = Leases(store.records, store.clock, name)
        queue = UploadQueue(Path(folder) / f"{name}.sqlite")
        write_back = WriteBack(store, queue, cached)
        node = Node(store, leases, write_back, ["source", "0123abcd"], Outage(), lambda report: None)
        return node, write_back, leases

    class Cached:
        def read(self, clip: Clip, profile: str) -> LocalClip:
            return LocalClip(b"clip", ClipFacts.of(b"clip", "youtube", 10.0))

    cached, chosen = Cached(), [Clip("-a1B2c3D4e5", number, number + 10) for number in range(clips)]
    with tempfile.TemporaryDirectory() as folder:
        proxy.requests.clear()
        node, write_back, leases = machine("first")
        for clip in chosen:
            work = node.begin(clip)
            assert isinstance(work, Work)
            work.finish("source")
        assert write_back.flush(600) == 0
        leases.close()
        first = proxy.requests.total() / clips

        proxy.requests.clear()
        node, _, _ = machine("second")
        assert all(isinstance(node.begin(clip), SharedClip) for clip in chosen)
        hit = proxy.requests.total() / clips
    return [
        Row("requests to the store per clip: first fetch", round(first, 1), target=Target("ours", "<=", 6)),
        Row("requests to the store per clip: hit", hit, target=Target("ours", "<=", 1)),
    ]


def _hit(proxy: S3Proxy, rounds: int) -> Row:
    store = SharedStore(open_backend("s3://kinetics/hit"))
    clip, body = Clip("-a1B2c3D4e5", 10, 20), os.urandom(HIT_SIZE)
    store.put_clip(clip, "source", body, ClipFacts.of(body, "youtube", 10.0))
    key, ours, plain = clip_key(clip, "source"), [], []
    for _ in range(rounds):
        began = time.perf_counter()
        assert store.get_clip(clip, "source") is not None
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert store.backend.get(key, max_size=MAX_FILE) is not None
        plain.append(time.perf_counter() - began)
    return Row(
        "a clip of 1.5 MB from the store, verified, s",
        median(ours),
        median(plain),
        "plain GET",
        Target("ratio", "<=", 1.3),
    )


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
