"""Machines with caches of their own and one shared store, as processes: each clip leaves its source once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared import open_backend
from tests.support.cluster import Machines, Origin
from tests.support.s3_proxy import Fault, s3_proxy
from tests.support.servers import Moto

CLIPS = [Clip(f"-a1B2c3D4{number:02d}", number, number + 10) for number in range(20)]


@pytest.fixture
def serve_clips() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture(params=["bucket", "folder"])
def machines(request: pytest.FixtureRequest, tmp_path: Path, serve_clips: Origin) -> Iterator[Machines]:
    store = tmp_path / "store"
    store.mkdir()
    address = request.getfixturevalue("bucket_url") if request.param == "bucket" else str(store)
    machines = Machines(tmp_path, address, serve_clips, CLIPS)
    yield machines
    machines.close()


def test_each_clip_leaves_its_source_once(machines: Machines) -> None:
    processes = [machines.start(number) for number in range(3)]
    results = [machines.finish(process) for process in processes]

    assert machines.origin.requests == {clip.name: 1 for clip in CLIPS}
    assert sum(result["misses"] for result in results) == len(CLIPS)
    assert sum(result["hits"] for result in results) == 2 * len(CLIPS)
    assert {result["left"] for result in results} == {0}
    machines.check(0, 1, 2)
    assert list(open_backend(machines.store).scan("leases")) == []


def test_a_killed_machine_costs_its_clips_one_more_request(machines: Machines) -> None:
    machines.origin.holds_after = 6
    processes = [machines.start(number) for number in range(3)]
    machines.origin.wait_for(7)
    processes[0].send_signal(signal.SIGKILL)
    machines.origin.released.set()
    for process in processes[1:]:
        machines.finish(process)

    again = sum(count - 1 for count in machines.origin.requests.values())
    assert again <= 3  # the one in flight, and those that were not uploaded yet
    machines.check(1, 2)


def test_a_store_that_goes_away_stops_nobody(
    serve: Moto, bucket_url: str, tmp_path: Path, serve_clips: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        machines = Machines(tmp_path, bucket_url, serve_clips, CLIPS)
        serve_clips.holds_after = 5
        processes = [machines.start(number) for number in range(2)]
        serve_clips.wait_for(6)
        proxy.fault = lambda method, path: Fault(503, "SlowDown")
        serve_clips.released.set()
        serve_clips.wait_for(len(CLIPS) + 5)  # both go on alone
        proxy.fault = lambda method, path: None
        for process in processes:
            assert machines.finish(process)["left"] == 0
        machines.check(0, 1)
