"""`index build --dask` and `fill --dask`: the workers of a dask cluster read the archives."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.fill import dask_executor
from kinetics_fs.fill.dask_executor import DaskExecutor
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.support.annotated_archives import HEADS, SURFING, TRAIN, AnnotatedArchives, large_archive
from tests.support.annotations import csv_text
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import ENVIRONMENT, has_ended, json_output, run_command
from tests.support.dask_cluster import DaskCluster
from tests.support.featureless_filesystem import featureless_filesystem
from tests.support.mounts import wait_until
from tests.support.store import SmallDisk, cached_content
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.tarballs import by_zlib, in_class, make_tar

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster with two workers, `one` and `two`."""
    with DaskCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_worker("one")
        cluster.start_worker("two")
        yield cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A cluster without workers, for a test that ends its processes."""
    with DaskCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


def indexed(cache: Path) -> dict[str, int]:
    with ArchiveIndexDB(CacheLayout(cache).archive_indexes) as index_db:
        return {archive.archive: archive.clips for archive in index_db.archives()}


def test_workers_build_the_indexes_of_the_client(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_command(
        *("index", "build", *annotated.arguments, "--archive-url", "archives", "--json"),
        *("--dask", cluster.address, "--worker-cache-dir", tmp_path / "{worker} cache"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert indexed(annotated.cache) == {name: len(clips) for name, clips in annotated.clips.items()}
    assert {path.name for path in tmp_path.glob("* cache")} <= {"one cache", "two cache"}


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(annotated: AnnotatedArchives) -> Iterator[Start]:
    """Start a command with the annotations in a session of its own; it is killed in the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                [*command, *map(str, annotated.arguments)],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def build(cluster: DaskCluster, site: ArchiveSite, folder: Path) -> list[str | Path]:
    """Return the arguments of an `index build` of the validation split, without the annotations."""
    return [
        *("index", "build", "--split", "validation", "--archive-url", site.url, "--json", "--dask", cluster.address),
        *("--worker-cache-dir", folder / "{worker}"),
    ]


@pytest.mark.apps
def test_a_killed_worker_repeats_its_archive_at_most(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    own_cluster.start_worker("one")
    with annotated.site() as site, large_archive(annotated, site) as content:
        process = start(*build(own_cluster, site, tmp_path))
        # The large archive is read first, by the only worker.
        assert content.reached.wait(60), process.poll()
        children = own_cluster.children("one")
        own_cluster.kill("one")
        assert children and all(has_ended(pid, within=10) for pid in children)
        content.released.set()
        own_cluster.start_worker("two")
        said, complaints = process.communicate(timeout=60)

    assert process.returncode == 0, complaints
    assert json.loads(said)["archives"]["read"] == sorted([SURFING, HEADS])
    assert indexed(annotated.cache) == {SURFING: 50, HEADS: 3}


def test_ctrl_c_ends_the_jobs_and_the_same_command_resumes(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    with annotated.site() as site, large_archive(annotated, site) as content:
        process = start(*build(cluster, site, tmp_path))
        assert content.reached.wait(60), process.poll()
        children = cluster.children("one") + cluster.children("two")
        os.killpg(process.pid, signal.SIGINT)
        said, complaints = process.communicate(timeout=30)
        assert process.returncode == 130, complaints
        assert complaints == ""
        assert json.loads(said)["interrupted"]
        assert all(has_ended(pid, within=1) for pid in children), "the command waits for them"
        content.released.set()

        done = run_command(*build(cluster, site, tmp_path), *annotated.arguments)

    assert (done.returncode, done.stderr) == (0, "")
    assert indexed(annotated.cache) == {SURFING: 50, HEADS: 3}


def test_a_killed_client_ends_the_run(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    with annotated.site() as site, large_archive(annotated, site) as content:
        process = start(*build(cluster, site, tmp_path))
        assert content.reached.wait(60), process.poll()
        children = cluster.children("one") + cluster.children("two")
        process.kill()
        assert children and all(has_ended(pid, within=15) for pid in children)


@pytest.mark.apps
def test_a_scheduler_that_ends_is_reported(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    own_cluster.start_worker("one")
    with annotated.site() as site, large_archive(annotated, site) as content:
        process = start(*build(own_cluster, site, tmp_path))
        assert content.reached.wait(60), process.poll()
        own_cluster.kill("scheduler")
        _, complaints = process.communicate(timeout=40)
    assert process.returncode == 1
    assert complaints == (
        f"kinetics-fs: dask scheduler {own_cluster.address}: lost the connection to it;"
        " run the same command again to resume\n"
    )


@pytest.mark.apps
def test_an_empty_cluster_is_waited_for(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    process = start(
        *("index", "build", "--archive-url", annotated.folder, "--json", "--dask", own_cluster.address),
        *("--worker-cache-dir", tmp_path / "{worker}"),
    )
    assert process.stderr is not None
    assert "has no workers; waiting for the first one" in process.stderr.readline()
    own_cluster.start_worker("late")
    said, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert len(json.loads(said)["archives"]["read"]) == 3


def test_a_scheduler_that_does_not_answer_is_one_sentence(
    annotated: AnnotatedArchives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_executor, "_CONNECT_TIMEOUT", 1.0)
    done = run_command("index", "build", *annotated.arguments, "--dask", "tcp://127.0.0.1:9")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kinetics-fs: cannot use the dask scheduler tcp://127.0.0.1:9: no answer")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--dask", "scheduler"], "is not the address of a scheduler"),
        (["--dask", "tcp://me:secret@host:8786"], "is not the address of a scheduler"),
        (["--dask", "tls://127.0.0.1:9"], "configure distributed.comm.tls"),
        (["--dask", "tcp://127.0.0.1:9", "--worker-cache-dir", "cache"], "is not absolute"),
        (["--worker-cache-dir", "/cache"], "without --dask"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    annotated: AnnotatedArchives, arguments: list[str], complaint: str
) -> None:
    done = run_command("index", "build", *annotated.arguments, "--archive-url", annotated.folder, *arguments)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_a_fill_puts_the_clips_into_the_shared_store(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    assert run_command("shared", "init", shared).returncode == 0
    fill: list[str | Path] = [
        *("--shared", shared, "--no-local", "--json", "--dask", cluster.address),
        *("--worker-cache-dir", tmp_path / "workers" / "{worker}"),
    ]
    done = annotated.fill(*fill)
    assert (done.returncode, done.stderr) == (0, "")
    told = json_output(done)
    assert (told["uploaded"], told["not_stored"], told["archives"]["left"]) == (8, 0, [])
    assert not annotated.cached()
    names = {path.name.removesuffix(".mp4") for path in shared.glob("clips/**/*.mp4")}
    assert names == {clip.key for clip in annotated.of(SURFING, HEADS, TRAIN)}
    assert indexed(annotated.cache) == {name: len(clips) for name, clips in annotated.clips.items()}

    again = json_output(annotated.fill(*fill))
    assert again["bytes_read"] == 0
    assert sorted(again["archives"]["read_elsewhere"]) == sorted(annotated.clips)


def test_without_a_shared_store_the_workers_have_the_clips(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    workers = tmp_path / "workers"
    fill: list[str | Path] = ["--json", "--dask", cluster.address, "--worker-cache-dir", workers / "{worker}"]
    done = annotated.fill(*fill)
    assert done.returncode == 0, done.stderr
    assert "the clips of each archive go into the cache of the worker that reads it" in done.stderr
    found: dict[Clip, bytes] = {}
    for cache in workers.iterdir():
        cached = cached_content(cache)
        assert found.keys().isdisjoint(cached)
        found |= cached
    assert found == annotated.of(SURFING, HEADS, TRAIN)
    assert not annotated.cached()

    assert sorted(json_output(annotated.fill(*fill))["archives"]["read_before"]) == sorted(annotated.clips)
    assert annotated.fill("--json").returncode == 0
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN), "they were not in this cache"


@pytest.mark.apps
def test_a_worker_without_space_costs_no_clip(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, small_disk: SmallDisk
) -> None:
    disk = small_disk(200_000)  # no archive fits
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "one").symlink_to(disk)
    done = annotated.fill(
        *("--json", "--dask", cluster.address, "--worker-cache-dir", tmp_path / "workers" / "{worker}")
    )
    assert done.returncode == 0, done.stderr
    assert cached_content(tmp_path / "workers" / "two") == annotated.of(SURFING, HEADS, TRAIN)


def test_a_fill_ends_if_no_worker_has_space(cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path) -> None:
    done = annotated.fill(
        *("--dask", cluster.address, "--worker-cache-dir", tmp_path / "{worker}", "--min-free", "1000TB")
    )
    assert done.returncode == 1
    assert re.search(r"kinetics-fs: dask worker (one|two): its archives need about .* .B, and the disk", done.stderr)


def test_a_cache_on_a_network_filesystem_is_refused(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    with featureless_filesystem(tmp_path / "server", tmp_path / "home", "network") as home:
        done = annotated.fill("--dask", cluster.address, "--worker-cache-dir", home / "cache")
    assert done.returncode == 1
    [*_, last] = done.stderr.splitlines()
    assert "is on a network filesystem (fuse.sshfs), which can damage the databases of a cache; give a" in last
    assert not list((tmp_path / "server").iterdir())


def other_version(folder: Path) -> dict[str, str]:
    """Return the environment of a process that has another version of kinetics-fs."""
    (folder / "kinetics_fs-99.0.dist-info").mkdir(parents=True)
    (folder / "kinetics_fs-99.0.dist-info" / "METADATA").write_text("Name: kinetics-fs\nVersion: 99.0\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.apps
def test_a_worker_with_another_version_is_named(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    environment = other_version(tmp_path / "other")
    late = start(*("index", "build", "--archive-url", annotated.folder, "--dask", own_cluster.address))
    assert late.stderr is not None
    assert "waiting for the first one" in late.stderr.readline()
    own_cluster.start_worker("old", environment=environment)
    _, complaints = late.communicate(timeout=60)
    assert late.returncode == 1
    assert complaints.splitlines()[-1].startswith("kinetics-fs: dask worker old: it has kinetics-fs 99.0, and ")

    done = run_command("index", "build", *annotated.arguments, "--dask", own_cluster.address)
    assert done.returncode == 1
    assert done.stderr == (
        f"kinetics-fs: cannot use the dask cluster {own_cluster.address}: old: it has kinetics-fs 99.0, and this"
        f" machine has {metadata.version('kinetics-fs')}; install the same version on both\n"
    )


def test_an_address_with_a_password_is_not_sent(
    cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    with annotated.site() as site:
        address = site.url.replace("://", "://me:secret@")
        done = annotated.fill("--dask", cluster.address, "--worker-cache-dir", tmp_path / "worker", base=address)
    assert done.returncode == 2
    assert "to dask workers: it has a password or a signature" in done.stderr.splitlines()[-1]
    assert "secret" not in done.stderr + cluster.log("one") + cluster.log("two") + cluster.log("scheduler")


@pytest.mark.apps
def test_a_worker_that_leaves_hands_its_archive_over(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    own_cluster.start_worker("leaving")
    with annotated.site() as site, large_archive(annotated, site) as content:
        process = start(*build(own_cluster, site, tmp_path))
        assert content.reached.wait(60), process.poll()
        own_cluster.start_worker("other")
        own_cluster.kill("leaving", signal.SIGTERM)
        content.released.set()
        said, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert json.loads(said)["archives"]["read"] == sorted([SURFING, HEADS])


@pytest.mark.apps
def test_the_resource_limits_the_archives_of_a_worker(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    own_cluster.start_worker("wide", "--nthreads", "8", "--resources", "kinetics-fs=2")
    with DaskExecutor(own_cluster.address, lambda job, done, total: None) as executor:
        wait_until(lambda: executor.slots == 5)
        own_cluster.start_worker("plain", "--nthreads", "3")
        wait_until(lambda: executor.slots == 11)


@pytest.mark.apps
def test_no_clip_is_lost_when_workers_are_killed_at_random(
    own_cluster: DaskCluster, annotated: AnnotatedArchives, tmp_path: Path, start: Start
) -> None:
    chance = random.Random(1)
    videos = list(annotated.of(SURFING).values())
    labels = [f"class {number}" for number in range(6)]
    clips: dict[str, dict[Clip, bytes]] = {
        label: {Clip(f"{label.replace(' ', '_')}____", start, start + 10): chance.choice(videos) for start in range(20)}
        for label in labels
    }
    rows = [f"{label},{clip.youtube_id},{clip.start},{clip.end},train" for label in labels for clip in clips[label]]
    annotated.annotations.write_text(csv_text(rows))
    files = {f"600/train/{label}.tar.gz": by_zlib(make_tar(clips[label], in_class)) for label in labels}
    names = [argument for name in files for argument in ("--archive", name)]
    shared = tmp_path / "shared"
    assert run_command("shared", "init", shared).returncode == 0
    number = itertools.count()
    with ArchiveSite(files) as site:
        site.before = lambda: time.sleep(0.5)
        fill: list[str | Path] = ["fill", "--archive-url", site.url, "--shared", shared, "--no-local", "--json", *names]
        fill += ["--dask", own_cluster.address, "--worker-cache-dir", tmp_path / "workers" / "{worker}"]
        for _ in range(2):
            own_cluster.start_worker(f"worker-{next(number)}")
        for _ in range(5):
            process = start(*fill)
            while process.poll() is None and next(number) < 12:
                time.sleep(chance.uniform(0.5, 2.0))
                own_cluster.kill(chance.choice([name for name in own_cluster.processes if name != "scheduler"]))
                own_cluster.start_worker(f"worker-{next(number)}")
            said, complaints = process.communicate(timeout=100)
            if process.returncode == 0:
                break
        assert process.returncode == 0, complaints
    assert json.loads(said)["archives"]["left"] == []
    found = {path.name.removesuffix(".mp4") for path in shared.glob("clips/**/*.mp4")}
    assert found == {clip.key for label in labels for clip in clips[label]}
