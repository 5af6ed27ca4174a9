"""Nodes with caches of their own and one shared store, as processes: each clip leaves its origin once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.shared import SharedStore, open_backend
from tests.support.cluster import Nodes, Origin, cluster_clips
from tests.support.s3_proxy import Fault, s3_proxy
from tests.support.servers import Moto


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[Clip, bytes]:
    return cluster_clips(tmp_path_factory.mktemp("cluster") / "clips", 12)


@pytest.fixture
def origin(clips: dict[Clip, bytes]) -> Iterator[Origin]:
    origin = Origin(clips)
    yield origin
    origin.close()


@pytest.fixture(params=["bucket", "folder"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path, origin: Origin, clips: dict[Clip, bytes]) -> Iterator[Nodes]:
    address = request.getfixturevalue("bucket_url") if request.param == "bucket" else str(tmp_path / "store")
    (tmp_path / "store").mkdir()
    SharedStore(open_backend(address)).open(create=True)
    nodes = Nodes(tmp_path, address, origin, clips)
    yield nodes
    nodes.close()


def test_each_clip_leaves_its_origin_once_although_clocks_differ(nodes: Nodes, clips: dict[Clip, bytes]) -> None:
    processes = [nodes.start(number, clock=90.0 * number) for number in range(3)]
    results = [nodes.finish(process) for process in processes]

    assert len(nodes.origin.requests) == nodes.origin.requests.total() == len(clips)
    assert sum(result["misses"] for result in results) == len(clips)
    assert sum(result["hits"] for result in results) == 2 * len(clips)
    assert [result["left"] for result in results] == [0, 0, 0]
    nodes.check(0, 1, 2)


def test_a_killed_node_costs_its_clips_one_more_request(nodes: Nodes) -> None:
    nodes.origin.holds_after = 4
    processes = [nodes.start(number) for number in range(3)]
    nodes.origin.wait_for(5)
    processes[0].send_signal(signal.SIGKILL)
    nodes.origin.released.set()
    for process in processes[1:]:
        nodes.finish(process)

    again = sum(count - 1 for count in nodes.origin.requests.values())
    assert again <= 4  # those in flight, and those that were not uploaded yet
    nodes.check(1, 2)


def test_a_store_that_goes_away_stops_no_node(
    serve: Moto,
    bucket_url: str,
    tmp_path: Path,
    origin: Origin,
    clips: dict[Clip, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        SharedStore(open_backend(bucket_url)).open(create=True)
        nodes = Nodes(tmp_path, bucket_url, origin, clips, environment={"AWS_ENDPOINT_URL": proxy.url})
        try:
            origin.holds_after = 3
            processes = [nodes.start(number) for number in range(2)]
            origin.wait_for(4)
            proxy.fault = lambda method, path: Fault(503, "SlowDown")
            origin.released.set()
            origin.wait_for(len(clips) + 3)  # both work alone
            proxy.fault = lambda method, path: None
            for process in processes:
                assert nodes.finish(process)["left"] == 0
            nodes.check(0, 1)
        finally:
            nodes.close()
