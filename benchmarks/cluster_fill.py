"""Fills of archives by several processes, nodes and dask workers: how they scale, and what kills cost.

- Twelve archives from nginx, which sends 20 MB/s on each connection, with 1, 2 and 4 workers: `fill --jobs N`, N nodes
  that share a store in a folder, and N workers of a dask cluster. All workers are on this machine, so that they share
  its cores.
- Three nodes or dask workers and a bucket behind a proxy that counts what is written, while a worker or the command is
  killed, or the bucket is away for 20 seconds. The leases of killed nodes end within seconds instead of five minutes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.cluster import bucket
from benchmarks.report import Row, Target
from kinetics_fs.catalog import Clip
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import SharedStore, create_store
from tests.support.annotations import Labelled, write_annotations
from tests.support.archive_site import ArchiveSite
from tests.support.cluster import LARGE, large_clips
from tests.support.command_line import ENVIRONMENT
from tests.support.dask_cluster import DaskCluster
from tests.support.s3_proxy import Fault, S3Proxy
from tests.support.servers import find_nginx, nginx
from tests.support.tarballs import by_zlib, in_class, make_tar

_NODE = """
import sys
from kinetics_fs.fill import shared_fill
shared_fill.ARCHIVE_TTL = 6.0
from kinetics_fs.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""The program, with leases of archives that are over soon."""
_AWAY = 20.0  # seconds
_WITHIN = 600.0  # seconds for a fill


class Scale(NamedTuple):
    """How much is measured."""

    archives: int
    clips: int
    """In each archive."""
    workers: Sequence[int]


_FULL = Scale(12, 20, (1, 2, 4))
_QUICK = Scale(4, 6, (1, 2))


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure."""
    scale = _QUICK if quick else _FULL
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-cluster-fill-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        fills = _Fills(folder, scale)
        rows: list[Row] = []
        if find_nginx() is None:
            rows.append(Row("from a server: not measured, nginx is not installed", None))
        else:
            (folder / "nginx").mkdir()
            with nginx(folder, folder / "nginx", rate="20m") as url:
                rows += fills.scaling(f"{url}/limited/archives")
        with bucket() as (_, proxy):
            rows += fills.killed(proxy)
        return rows


class _Fills:
    def __init__(self, folder: Path, scale: Scale) -> None:
        self._folder = folder
        self._scale = scale
        self._number = 0
        clips = large_clips(folder / "clips", scale.archives * scale.clips)
        self.clips: Mapping[Clip, bytes] = clips
        self._files: dict[str, bytes] = {}
        rows, every = [], list(clips)
        for number in range(scale.archives):
            label, members = f"class {number:02d}", every[number * scale.clips :][: scale.clips]
            content = by_zlib(make_tar({clip: clips[clip] for clip in members}, in_class), 1)
            self._files[name := f"600/train/{label}.tar.gz"] = content
            path = folder / "archives" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            rows += [Labelled(label, clip, "train") for clip in members]
        self._annotations = write_annotations(folder / "annotations.csv", rows)

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._folder / f"run-{self._number}"
        folder.mkdir()
        return folder

    def _start(self, base: str, cache: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _NODE, "--config", os.devnull, "fill", "--archive-url", base]
        command += ["--annotations", str(self._annotations), "--cache-dir", str(cache)]
        for name in self._files:
            command += ["--archive", name]
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    # Scaling

    def scaling(self, base: str) -> Sequence[Row]:
        """Measure fills with more and more workers."""
        ways = {"local": self._local, "shared": self._shared, "dask": self._dask}
        walls: dict[tuple[str, int], float] = {}
        for count in self._scale.workers:
            for name, way in ways.items():
                walls[name, count] = way(base, self._new_folder(), count)
        what = f"{self._scale.archives} archives of {self._scale.clips * LARGE / 1e6:.0f} MB"
        rows = []
        for (name, count), wall in walls.items():
            rows.append(Row(f"{what}, {name}, {count} workers: s", wall, walls[name, 1] / count, f"1/{count} of one"))
        for count in self._scale.workers:
            dask, local = walls["dask", count], walls["local", count]
            rows.append(Row(f"{what}, dask, {count} workers: s", dask, local, "local", Target("ratio", "<=", 1.1)))
        return rows

    def _local(self, base: str, folder: Path, count: int) -> float:
        return _wall(lambda: [self._start(base, folder / "cache", "--jobs", str(count))])

    def _shared(self, base: str, folder: Path, count: int) -> float:
        store = create_store(str(folder / "store"))[0]
        shared: tuple[str | Path, ...] = ("--shared", store.backend.address, "--no-local", "--jobs", "1")
        wall = _wall(lambda: [self._start(base, folder / f"cache-{node}", *shared) for node in range(count)])
        assert self._lost(store) == 0
        return wall

    def _dask(self, base: str, folder: Path, count: int) -> float:
        with DaskCluster(folder) as cluster:
            for number in range(count):
                cluster.start_worker(f"worker-{number}")
            return _wall(lambda: [self._start(base, folder / "cache", "--dask", cluster.address)])

    def _lost(self, store: SharedStore) -> int:
        """Return how many clips the store lacks."""
        lost = 0
        for clip, content in self.clips.items():
            found = store.get_clip(clip, SOURCE)
            lost += found is None or found.body != content
        return lost

    # Kills

    def killed(self, proxy: S3Proxy) -> Sequence[Row]:
        """Measure what is lost and repeated if a part is killed or away."""
        return [
            *self._disturbed("one of three nodes killed", proxy, self._kill_a_node, kills=1),
            *self._disturbed("the bucket away for 20 s", proxy, self._take_the_bucket_away, kills=1),
            *self._disturbed("one of three dask workers killed", proxy, self._kill_a_dask_worker, kills=1),
            *self._disturbed("the command of a dask fill killed, and repeated", proxy, self._kill_the_client, kills=3),
        ]

    def _disturbed(
        self, what: str, proxy: S3Proxy, disturb: Callable[[ArchiveSite, S3Proxy, str], None], *, kills: int
    ) -> Sequence[Row]:
        address = f"s3://kinetics/{what.replace(' ', '-').replace(',', '')}"
        store = create_store(address)[0]
        proxy.written.clear()
        with ArchiveSite(self._files) as site:
            # Slower than the bucket, so that all workers are in the middle of an archive for some time.
            site.before = lambda: time.sleep(random.uniform(0.5, 1.0))
            disturb(site, proxy, address)
            size = {name: len(content) for name, content in self._files.items()}
            sent = dict.fromkeys(size, 0)
            for request in site.requests:
                if request.name in sent and request.bytes > 1:
                    sent[request.name] += request.bytes
        repeated = sum(sent[name] / size[name] - 1 for name in size)
        twice = sum(count > 1 for path, count in proxy.written.items() if path.endswith(".mp4"))
        return [
            Row(f"{what}: clips lost", self._lost(store), target=Target("ours", "<=", 0)),
            Row(f"{what}: objects written twice", twice, target=Target("ours", "<=", 0)),
            Row(f"{what}: archives read again", repeated, target=Target("ours", "<=", kills)),
        ]

    def _wait_for_half(self, proxy: S3Proxy) -> None:
        """Wait until half of the clips are in the bucket."""
        deadline = time.monotonic() + _WITHIN
        while sum(path.endswith(".mp4") for path in list(proxy.written)) < len(self.clips) / 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _start_nodes(self, site: ArchiveSite, address: str) -> list[subprocess.Popen[bytes]]:
        folder = self._new_folder()
        return [
            self._start(site.url, folder / f"cache-{node}", "--shared", address, "--no-local", "--jobs", "1")
            for node in range(3)
        ]

    def _kill_a_node(self, site: ArchiveSite, proxy: S3Proxy, address: str) -> None:
        nodes = self._start_nodes(site, address)
        self._wait_for_half(proxy)
        os.killpg(nodes[0].pid, signal.SIGKILL)
        nodes[0].wait()
        _finish(nodes[1:])

    def _take_the_bucket_away(self, site: ArchiveSite, proxy: S3Proxy, address: str) -> None:
        nodes = self._start_nodes(site, address)
        self._wait_for_half(proxy)
        proxy.fault = lambda method, path: Fault(refuses=True)
        time.sleep(_AWAY)
        proxy.fault = lambda method, path: None
        _finish(nodes)

    def _kill_a_dask_worker(self, site: ArchiveSite, proxy: S3Proxy, address: str) -> None:
        folder = self._new_folder()
        with DaskCluster(folder) as cluster:
            for number in range(3):
                cluster.start_worker(f"worker-{number}", environment=_aws())
            command = self._dask_command(site, folder, cluster, address)
            self._wait_for_half(proxy)
            cluster.kill("worker-0")
            _finish([command])

    def _kill_the_client(self, site: ArchiveSite, proxy: S3Proxy, address: str) -> None:
        folder = self._new_folder()
        with DaskCluster(folder) as cluster:
            for number in range(3):
                cluster.start_worker(f"worker-{number}", environment=_aws())
            command = self._dask_command(site, folder, cluster, address)
            self._wait_for_half(proxy)
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
            _finish([self._dask_command(site, folder, cluster, address)])

    def _dask_command(
        self, site: ArchiveSite, folder: Path, cluster: DaskCluster, address: str
    ) -> subprocess.Popen[bytes]:
        workers = ("--worker-cache-dir", folder / "worker-cache")
        return self._start(
            site.url, folder / "cache", "--shared", address, "--no-local", "--dask", cluster.address, *workers
        )


def _aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _wall(start: Callable[[], list[subprocess.Popen[bytes]]]) -> float:
    """Return the seconds until all processes have ended."""
    began = time.perf_counter()
    _finish(start())
    return time.perf_counter() - began


def _finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    try:
        for process in processes:
            assert process.wait(_WITHIN) == 0, process.args
    finally:
        for process in processes:
            process.kill()
