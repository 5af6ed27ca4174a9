"""`kinetics-fs fill --shared`: several machines, as processes, fill one store, despite kills, faults and damage."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fill.archive_job import Summary, unpack_progress
from kinetics_fs.fill.shared_indexes import import_shared_indexes, put_index, version_tag
from kinetics_fs.shared import IndexKey, SharedStore, create_store
from kinetics_fs.shared.store import clip_key
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset
from tests.support.annotated_archives import HEADS, SURFING, TRAIN, AnnotatedArchives
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import ENVIRONMENT, json_output, run_command
from tests.support.s3_proxy import Fault, s3_proxy
from tests.support.servers import Moto
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, make_tar

pytestmark = pytest.mark.server

NODE = """
import sys
from kinetics_fs.fill import shared_fill
shared_fill.ARCHIVE_TTL = 3.0
from kinetics_fs.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""The program, with leases that are over soon."""


class Cluster(AnnotatedArchives):
    """Machines with caches of their own and one shared store.

    Attributes:
        address: address of the store.
        store: the store.
    """

    def __init__(self, dataset: Dataset, folder: Path, address: str) -> None:
        super().__init__(dataset, folder)
        self.caches = folder / "caches"
        self.address = address
        self.store: SharedStore = create_store(address)[0]

    def start(self, node: int, base: str | Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start the fill of a machine as a process."""
        command = [sys.executable, "-c", NODE, "--config", os.devnull, "fill", "--json", "--verify", "none"]
        command += ["--shared", self.address, "--annotations", str(self.annotations), "--archive-url", str(base)]
        return subprocess.Popen(
            [*command, "--cache-dir", str(self.caches / str(node)), *map(str, arguments)],
            env={**ENVIRONMENT, **{k: v for k, v in os.environ.items() if k.startswith("AWS_")}, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the fill of a machine whose cache is `cache`, inside this process."""
        credentials = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        return run_command(
            *("fill", *self.arguments, "--shared", self.address, "--archive-url", self.folder, "--verify", "none"),
            *arguments,
            **{**credentials, **environment},
        )

    def shared(self) -> dict[Clip, bytes]:
        """Return the clips in the store."""
        found: dict[Clip, bytes] = {}
        for clip, _ in self.store.clips("source"):
            shared = self.store.get_clip(clip, "source")
            assert shared is not None
            found[clip] = shared.body
        return found


@pytest.fixture
def cluster(dataset: Dataset, tmp_path: Path) -> Cluster:
    return Cluster(dataset, tmp_path, str(tmp_path / "shared"))


@pytest.fixture
def bucket_cluster(dataset: Dataset, tmp_path: Path, bucket_url: str) -> Cluster:
    return Cluster(dataset, tmp_path, bucket_url)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the end of a machine, and return what it printed."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (process.returncode, output, errors)
    value: dict[str, Any] = json.loads(output)
    return value


def sent(site: ArchiveSite, name: str) -> int:
    """Return the bytes of an archive that were sent, without requests for its version."""
    return sum(one.bytes for one in site.requests if one.name == name and one.bytes > 1)


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("place", ["cluster", "bucket_cluster"])
def test_machines_read_each_archive_once(place: str, request: pytest.FixtureRequest) -> None:
    cluster: Cluster = request.getfixturevalue(place)
    with cluster.site() as site:
        results = [finish(one) for one in [cluster.start(node, site.url, "--jobs", "1") for node in range(3)]]
        size = {name: len(site.files[name]) for name in cluster.clips}
        assert {name: sent(site, name) for name in size} == size

    assert cluster.shared() == cluster.of(SURFING, HEADS, TRAIN)
    read = Counter(name for result in results for name in result["archives"]["read"])
    assert read == Counter(list(cluster.clips))
    assert sum(result["uploaded"] for result in results) == len(cluster.shared())
    for node, result in enumerate(results):
        archives = result["archives"]
        assert sorted(archives["read"] + archives["read_elsewhere"]) == sorted(cluster.clips)
        assert (archives["left"], archives["failed"]) == ([], {})
        assert cached_content(cluster.caches / str(node)) == cluster.of(*archives["read"])
        with ArchiveIndexDB(CacheLayout(cluster.caches / str(node)).archive_indexes) as index_db:
            assert sorted(index_db.versions()) == sorted(cluster.clips)
            assert sorted(index_db.versions(confirmed=True)) == sorted(archives["read"])
    assert {fill.archive for fill in cluster.store.fills()} == set(cluster.clips)
    assert not list(cluster.store.backend.scan("checkpoints/v1"))


SEGMENT = 8 * 1024 * 1024
"""One request of a reader of a whole archive."""


class Slow(bytes):
    """The content of an archive. Its last segment is served only after `released` is set, the others one after another.

    The first segments arrive at a distance at which checkpoints are written between them.
    """

    released: threading.Event
    pause: float
    """Seconds between two segments."""

    def __getitem__(self, key: Any) -> Any:
        self.released.wait(100 if key.start >= 2 * SEGMENT else key.start / SEGMENT * self.pause)
        return super().__getitem__(key)


@contextmanager
def slow_archive(cluster: Cluster, site: ArchiveSite, pause: float = 0.0) -> Iterator[Slow]:
    """Replace an archive by a large one that arrives slowly."""
    chance = random.Random(1)
    clips = {Clip(f"large____{number:02}", 0, 10): chance.randbytes(500_000) for number in range(42)}
    cluster.clips = {SURFING: clips}
    cluster.annotate(list(clips))
    site.files[SURFING] = content = Slow(by_zlib(make_tar(clips), 1))
    content.released, content.pause = threading.Event(), pause
    try:
        yield content
    finally:
        content.released.set()


def checkpoint_offset(cluster: Cluster) -> int:
    """Return the offset of the checkpoint in the store; -1 if there is none."""
    for entry in cluster.store.backend.scan("checkpoints/v1"):
        found = cluster.store.backend.get(entry.key, max_size=10**7)
        if found is not None and (progress := unpack_progress(found.body)) is not None:
            return progress.checkpoint.block.bit // 8
    return -1


@pytest.mark.parametrize("local", [True, False])
def test_a_machine_continues_at_the_checkpoint_of_one_that_was_killed(cluster: Cluster, local: bool) -> None:
    only_shared = [] if local else ["--no-local"]
    with cluster.site() as site, slow_archive(cluster, site, 4.5) as content:
        killed = cluster.start(0, site.url, *only_shared)
        wait_until(lambda: checkpoint_offset(cluster) > SEGMENT // 2, killed)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with ArchiveSite({**site.files, SURFING: bytes(content)}) as mirror:
            result = finish(cluster.start(1, mirror.url, *only_shared))
        assert sent(mirror, SURFING) < len(content) - SEGMENT // 2
    assert cluster.shared() == cluster.of(SURFING)
    assert result["archives"]["read"] == [SURFING]
    assert result["stored"] + result["already_cached"] == len(cluster.of(SURFING))
    assert not list(cluster.store.backend.scan("checkpoints/v1"))
    # The first part was indexed by the machine that died.
    with ArchiveIndexDB(CacheLayout(cluster.caches / "1").archive_indexes) as index_db:
        assert len(index_db.clips(SURFING)) == len(cluster.of(SURFING))
        assert index_db.versions(confirmed=True) == {}
    if not local:
        assert cached_content(cluster.caches / "1") == {}


def test_an_interrupted_machine_leaves_its_archive_to_the_others_at_once(cluster: Cluster) -> None:
    with cluster.site() as site, slow_archive(cluster, site) as content:
        first = cluster.start(0, site.url)
        wait_until(lambda: cluster.shared(), first)
        second = cluster.start(1, site.url)
        wait_until(lambda: len(site.requests) > 5, first, second)
        first.send_signal(signal.SIGTERM)  # as from `scancel`
        output, errors = first.communicate(timeout=60)
        assert (first.returncode, errors) == (130, "")
        assert json.loads(output)["archives"]["left"] == [SURFING]
        content.released.set()
        assert finish(second)["archives"]["read"] == [SURFING]
    assert cluster.shared() == cluster.of(SURFING)


@pytest.mark.parametrize("variables", [{}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}])
def test_a_machine_begins_with_its_shard_and_takes_what_is_left(cluster: Cluster, variables: dict[str, str]) -> None:
    shard = [] if variables else ["--shard", "1/3"]
    with cluster.site() as site:
        result = finish(cluster.start(0, site.url, "--jobs", "1", *shard, **variables))
        order = list(dict.fromkeys(one.name for one in site.requests if one.bytes > 1 and one.name in cluster.clips))
    assert order[0] == sorted(cluster.clips)[1]
    assert sorted(result["archives"]["read"]) == sorted(cluster.clips)


def test_missing_archives_are_listed_as_names_and_as_an_array(cluster: Cluster) -> None:
    names = sorted(cluster.clips)  # train surfing, validation massaging, validation surfing

    def left() -> dict[str, Any]:
        done = cluster.run("--missing", "--json")
        assert done.returncode == 0, done.stderr
        return json_output(done)

    assert left() == {"archives": 3, "left": names, "array": "0-2", "failed": {}}
    assert cluster.run("--archive", names[1]).returncode == 0
    assert left() == {"archives": 3, "left": [names[0], names[2]], "array": "0,2", "failed": {}}
    done = cluster.run("--missing")
    assert done.stdout.splitlines() == [names[0], names[2]]
    assert "sbatch --array=0,2 with kinetics-fs fill --shard $SLURM_ARRAY_TASK_ID/3" in done.stderr
    # A task of that array reads its archive, and then what others have left.
    assert cluster.run("--shard", "2/3", "--jobs", "1").returncode == 0
    assert left() == {"archives": 3, "left": [], "array": "", "failed": {}}

    cache = CacheLayout(cluster.cache).root
    alone: list[str | Path] = ["fill", *cluster.arguments, "--archive-url", cluster.folder, "--missing", "--json"]
    assert json_output(run_command(*alone))["left"] == []
    assert json_output(run_command(*alone, "--cache-dir", cache / "other"))["left"] == names


def test_a_fill_without_local_clips_stores_them_in_the_store_only(cluster: Cluster) -> None:
    small = cluster.run("--no-local", "--min-free", "1000TB")
    assert small.returncode == 1
    assert "clips on their way need about" in small.stderr

    # The cache is too small for the selection.
    done = cluster.run("--no-local", "--json", "--cache-size", "1000B")

    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.shared() == cluster.of(SURFING, HEADS, TRAIN)
    assert cached_content(cluster.cache) == {}
    told = json_output(done)
    assert (told["stored"], told["already_cached"], told["uploaded"], told["not_stored"]) == (8, 0, 8, 0)
    again = json_output(cluster.run("--no-local", "--json"))
    assert (again["bytes_read"], sorted(again["archives"]["read_elsewhere"])) == (0, sorted(cluster.clips))


def test_cached_clips_are_uploaded_and_shared_ones_are_not_uploaded_again(cluster: Cluster) -> None:
    assert cluster.fill("--split", "train").returncode == 0
    first = json_output(cluster.run("--split", "train", "--json"))
    assert (first["stored"], first["already_cached"], first["uploaded"]) == (0, 1, 1)
    for entry in cluster.store.backend.scan("fills/v1"):
        cluster.store.backend.delete(entry.key)
    second = json_output(cluster.run("--split", "train", "--json"))
    assert (second["archives"]["read"], second["already_cached"], second["uploaded"]) == ([TRAIN], 1, 0)
    assert cluster.shared() == cluster.of(TRAIN)


def test_a_fill_of_a_part_of_an_archive_claims_that_part_only(cluster: Cluster) -> None:
    part = ("--annotations-only", "--split", "validation", "--max-samples", "2", "--json")
    first = json_output(cluster.run(*part))
    assert len(cluster.shared()) == 2
    assert first["archives"]["read_elsewhere"] == []
    assert json_output(cluster.run(*part))["archives"]["read"] == []

    rest = json_output(cluster.run("--split", "validation", "--json"))
    assert sorted(rest["archives"]["read"]) == [HEADS, SURFING]
    assert cluster.shared() == cluster.of(HEADS, SURFING)
    # All clips of an archive are also those of any part.
    other = json_output(cluster.run("--annotations-only", "--split", "validation", "--max-samples", "1", "--json"))
    assert other["archives"]["read"] == []


def test_a_fill_without_indexes_is_repeated_for_them(cluster: Cluster) -> None:
    assert json_output(cluster.run("--no-index", "--json"))["uploaded"] == 8
    assert json_output(cluster.run("--no-index", "--json"))["archives"]["read"] == []
    again = json_output(cluster.run("--json"))
    assert (again["indexed"], again["uploaded"]) == (8, 0)
    assert json_output(cluster.run("--json"))["archives"]["read"] == []


def test_clips_that_are_corrupt_or_in_no_archive_are_told(cluster: Cluster) -> None:
    noise, absent = Clip("noise______", 0, 10), Clip("absent_____", 0, 10)
    clips = {**cluster.clips[SURFING], noise: random.Random(1).randbytes(50_000)}
    cluster.write(SURFING, by_zlib(make_tar(clips)))
    cluster.annotate([*cluster.clips[SURFING], noise, absent])

    done = cluster.run("--verify", "container", "--json")

    assert done.returncode == 3, done.stderr
    told = json_output(done)
    assert (told["not_stored"], told["in_no_archive"], told["archives"]["left"]) == (1, 1, [])
    assert cluster.shared() == cluster.of(SURFING)
    [gone] = json.loads(run_command("failures", "list", "--json", "--cache-dir", cluster.cache).stdout)
    assert (gone["key"], gone["reason"]) == (absent.key, "not in archives")
    again = json_output(cluster.run("--json"))
    assert (again["archives"]["read"], again["not_stored"]) == ([], 1)


def test_an_archive_of_which_the_store_has_lost_a_clip_is_read_again(cluster: Cluster) -> None:
    assert cluster.run("--no-local").returncode == 0
    cluster.store.backend.delete(clip_key(next(iter(cluster.clips[HEADS])), "source"))

    lost = cluster.run("--no-local", "--json")

    assert lost.returncode == 3
    archives = json_output(lost)["archives"]
    assert list(archives["failed"]) == archives["left"] == [HEADS]
    assert archives["failed"][HEADS] == "the shared store has lost clips of it; run the same command again"
    again = json_output(cluster.run("--no-local", "--json"))
    assert (again["archives"]["read"], again["uploaded"]) == ([HEADS], 1)
    assert cluster.shared() == cluster.of(SURFING, HEADS, TRAIN)


def test_a_damaged_archive_is_read_by_two_machines(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (cluster.folder / TRAIN).read_bytes()
    cluster.write(TRAIN, content[: len(content) // 2])
    for node in range(3):
        monkeypatch.setattr(socket, "gethostname", lambda node=node: f"node-{node}")
        done = cluster.run("--split", "train", "--cache-dir", cluster.caches / str(node), "--json")
        assert (json_output(done)["bytes_read"] == 0) == (node == 2), done
    assert "(read by node-1)" in json_output(done)["archives"]["failed"][TRAIN]
    assert json_output(done)["archives"]["left"] == [TRAIN]
    cluster.write(TRAIN, content)
    assert cluster.run("--split", "train").returncode == 0
    assert cluster.shared() == cluster.of(TRAIN)


# Faults of the store


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shared-write", "none"], "cannot fill the shared store with --shared-write none"),
        (["--shared-write", "youtube"], "cannot fill the shared store with --shared-write youtube"),
        (["--shard", "3/3"], "cannot use --shard '3/3': it is not I/N with 0 <= I < N"),
        (["--shard", "-1/3"], "cannot use --shard '-1/3'"),
        (["--shared", "/nonexistent/store"], "kinetics-fs shared init"),
    ],
)
def test_a_fill_that_cannot_work_is_refused_in_a_sentence(
    cluster: Cluster, arguments: list[str], expected: str
) -> None:
    done = cluster.run(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (1 if "store" in arguments[1] else 2, 1), done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize("option", [["--no-local"], ["--shard", "0/2"]])
def test_options_of_a_shared_fill_need_a_shared_store(cluster: Cluster, option: list[str]) -> None:
    done = cluster.fill(*option)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: cannot use {option[0]} without --shared")


def test_a_store_that_is_away_for_some_seconds_is_waited_for(
    dataset: Dataset, tmp_path: Path, bucket_url: str, serve: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        cluster = Cluster(dataset, tmp_path, bucket_url)
        with cluster.site() as site, slow_archive(cluster, site) as content:
            process = cluster.start(0, site.url)
            wait_until(lambda: any("clips/v1" in path for _, path in proxy.requests), process)
            proxy.fault = lambda method, path: Fault(status=503)
            content.released.set()
            time.sleep(6)
            proxy.fault = lambda method, path: None
            result = finish(process)
        assert result["uploaded"] == len(cluster.of(SURFING))
        assert cluster.shared() == cluster.of(SURFING)


def test_a_store_that_refuses_uploads_ends_the_fill_with_the_way_to_complete_it(
    dataset: Dataset, tmp_path: Path, bucket_url: str, serve: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_proxy(serve.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        cluster = Cluster(dataset, tmp_path, bucket_url)
        proxy.fault = lambda method, path: (
            Fault(status=403, code="AccessDenied") if method == "PUT" and "clips/v1" in path else None
        )
        done = cluster.run()
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith("run the same command again to complete the fill")
        proxy.fault = lambda method, path: None
        assert cluster.run().returncode == 0
        assert cluster.shared() == cluster.of(SURFING, HEADS, TRAIN)


def test_a_store_that_does_not_answer_at_the_start_is_told_in_a_sentence(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    done = cluster.run("--shared", "s3://bucket/kinetics")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "s3://bucket/kinetics" in done.stderr


# Hostile objects


@pytest.mark.parametrize(
    "line",
    [
        '{"stored": -1}',
        '{"stored": "many"}',
        '{"stored": true}',
        '{"corrupt": {"a": 1}}',
        '{"refused": {"a": "b"}}',
        '{"refused": 3}',
        '{"unknown": 3}',
        '{"bytes": 1e400}',
        "[]",
        "[" * 100_000,
    ],
)
def test_a_hostile_summary_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Summary.unpack(line)


def test_hostile_indexes_in_the_store_are_passed_over(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.run().returncode == 0
    with ArchiveIndexDB(CacheLayout(cluster.cache).archive_indexes) as index_db:
        indexes = {index.archive: index for index in index_db.indexes()}
    backend = cluster.store.backend
    keys = {name: str(IndexKey.of(name, version_tag(Version(i.size, i.etag)))) for name, i in indexes.items()}
    swapped = backend.get(keys[HEADS], max_size=10**6)
    found = backend.get(keys[SURFING], max_size=10**6)
    assert swapped is not None and found is not None
    metadata = {**swapped.info.metadata, "key": keys[SURFING]}
    backend.replace(keys[SURFING], swapped.body, found.info.version, metadata)
    cluster.store.put_index(IndexKey.of("noise", "1"), b"noise")

    with Store(tmp_path / "other") as store, ArchiveIndexDB(tmp_path / "other.sqlite") as index_db:
        failures = store.failures
        clip = next(iter(cluster.clips[TRAIN]))
        failures.remember(clip, FetchError(FailureKind.GONE, "not in archives", source="archive"))
        before = failures.get(clip)
        assert import_shared_indexes(cluster.store, index_db, tmp_path, failures) == 2
        assert sorted(index_db.versions()) == sorted([HEADS, TRAIN])
        after = failures.get(clip)
        assert before is not None and after is not None
        assert after.retry_at == after.last_at < before.retry_at, "it is tried again"
        assert index_db.versions(confirmed=True) == {}
        assert import_shared_indexes(cluster.store, index_db, tmp_path, failures) == 0
        # A newer index replaces an imported one, and never one that this machine has built.
        newer = next(index_db.indexes([TRAIN]))
        put_index(cluster.store, type(newer)(TRAIN, newer.size + 1, "new", newer.gzipped, newer.records))
        assert import_shared_indexes(cluster.store, index_db, tmp_path, failures) == 1
        assert index_db.versions()[TRAIN] == Version(newer.size + 1, "new")
        assert import_shared_indexes(cluster.store, index_db, tmp_path, failures) == 0
        index_db.add(newer)
        assert import_shared_indexes(cluster.store, index_db, tmp_path, failures) == 0
        assert index_db.versions()[TRAIN] == Version(newer.size, newer.etag)
