"""The commands that look after a shared store, in a bucket and in a folder."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.errors import FailureKind
from kinetics_fs.shared import (
    ClipFacts,
    CompletedFill,
    IndexKey,
    Leases,
    SharedStore,
    UploadQueue,
    create_store,
    open_backend,
)
from kinetics_fs.shared.pruning import PruneResult, prune_store
from kinetics_fs.shared.store import clip_key
from kinetics_fs.shared.upload_queue import Upload
from kinetics_fs.shared_upkeep import DeletedFrom
from kinetics_fs.store import CacheLayout, Failure
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.command_line import json_output, run_command
from tests.support.memory_backend import MemoryBackend
from tests.support.s3_proxy import Fault, s3_proxy
from tests.support.servers import Moto

CLIP, OTHER = Clip("-a1B2c3D4e5", 10, 20), Clip("_a1B2c3D4e5", 10, 20)
BODY = b"a clip" * 1000

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(params=["bucket", "folder"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty place."""
    return str(request.getfixturevalue("bucket_url")) if request.param == "bucket" else str(tmp_path / "store")


@pytest.fixture
def store(address: str) -> SharedStore:
    return create_store(address)[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `kinetics-fs` with the settings of the cloud that the test has, and a cache directory."""

    def run(*arguments: str | Path, server: str | None = None) -> CompletedProcess[str]:
        cloud = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if server is not None:
            cloud["AWS_ENDPOINT_URL"] = server
        return run_command(*arguments, **cloud, KINETICS_FS_CACHE_DIR=str(tmp_path / "cache"))

    return run


def put(store: SharedStore, clip: Clip, profile: str = "source", body: bytes = BODY) -> None:
    assert store.put_clip(clip, profile, body, ClipFacts.of(body, "archive", 10.0))


@pytest.fixture
def video(dataset: Dataset) -> bytes:
    return (dataset.videos / f"{next(iter(VIDEOS))}.mp4").read_bytes()


LABELS = {CLIP: "surfing water", OTHER: "abseiling"}


@pytest.fixture
def listed(tmp_path: Path) -> tuple[str | Path, ...]:
    """Arguments that name annotations with `CLIP` and `OTHER`."""
    path = tmp_path / "annotations.csv"
    path.write_text(csv_text(f"{label},{','.join(map(str, clip))},train" for clip, label in LABELS.items()))
    return "--annotations", path


def damage(store: SharedStore, clip: Clip, body: bytes) -> None:
    """Put an object that has not the size of its metadata."""
    key = clip_key(clip, "source")
    store.backend.create(key, body[:-7], {"key": key, "size": str(len(body)), "sha256": "0" * 64})


# Creation


def test_init_creates_a_store_and_does_nothing_the_second_time(address: str, run: Run) -> None:
    first, second = run("shared", "init", address), run("shared", "init", address)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"{address} is a shared store now" in first.stdout
    assert f"{address} is a shared store already" in second.stdout
    assert "conditional writes  yes" in first.stdout
    assert SharedStore(open_backend(address)).open(create=False)


def test_init_refuses_a_place_with_other_files_and_names_one(address: str, run: Run, serve: Moto) -> None:
    if "://" in address:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        serve.s3.put_object(Bucket=bucket, Key=f"{prefix}/thesis\u202e.tex", Body=b"")
    else:
        Path(address).mkdir()
        (Path(address) / "thesis\u202e.tex").touch()
    done = run("shared", "init", address)
    assert done.returncode == 1 and done.stdout == ""
    assert "it has other files, such as 'thesis" in done.stderr and "\u202e" not in done.stderr
    assert "give an empty folder or prefix" in done.stderr


def test_init_restores_the_record_of_a_store_that_lost_it(store: SharedStore, run: Run) -> None:
    put(store, CLIP)
    store.backend.delete("kinetics-store.json")
    done = run("shared", "status", "--shared", store.backend.address)
    assert done.returncode == 1 and "the store with kinetics-fs shared init" in done.stderr
    assert run("shared", "init", store.backend.address).returncode == 0
    assert store.open(create=False) and store.has_clip(CLIP, "source")


def test_init_takes_a_folder_that_a_console_made_for_empty(bucket_url: str, run: Run, serve: Moto) -> None:
    bucket, _, prefix = bucket_url.removeprefix("s3://").partition("/")
    for key in (f"{prefix}/", f"{prefix}/clips/", f"{prefix}/clips/v1/source/"):
        serve.s3.put_object(Bucket=bucket, Key=key, Body=b"")
    assert run("shared", "init", bucket_url).returncode == 0
    assert json_output(run("shared", "status", "--shared", bucket_url, "--json"))["content"]["clips"] == 0


@pytest.mark.parametrize("key", ["clips/v1/source/a\x1bb", "clips/v1//x", "leases/../x"])
def test_a_name_that_no_program_can_use_is_named(bucket_url: str, run: Run, serve: Moto, key: str) -> None:
    create_store(bucket_url)
    bucket, _, prefix = bucket_url.removeprefix("s3://").partition("/")
    serve.s3.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"")
    done = run("shared", "status", "--shared", bucket_url)
    assert done.returncode == 1 and "has an invalid name" in done.stderr and "remove it" in done.stderr
    assert "\x1b" not in done.stderr


def test_init_takes_a_new_disk_for_empty(tmp_path: Path, run: Run) -> None:
    (tmp_path / "store" / "lost+found").mkdir(parents=True)
    (tmp_path / "store" / ".snapshot").mkdir()
    assert run("shared", "init", tmp_path / "store").returncode == 0


@pytest.mark.parametrize("address", ["/nonexistent/parent/store", "/dev/null", "ftp://server/store", "s3://"])
def test_init_says_what_is_wrong_with_an_address(address: str, run: Run) -> None:
    done = run("shared", "init", address)
    assert done.returncode in (1, 2) and address.rstrip("/") in done.stderr and "; " in done.stderr


@pytest.mark.parametrize("mode", [0o2775, 0o755, 0o700, 0o2770])
def test_everything_in_a_folder_has_the_permissions_of_the_folder(tmp_path: Path, run: Run, mode: int) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    os.chown(folder, -1, 12345) if os.geteuid() == 0 else None
    folder.chmod(mode)
    before = os.umask(0o077)
    try:
        done = run("shared", "init", folder)
        store = SharedStore(open_backend(str(folder)))
        put(store, CLIP)
        record = store.records.create("leases/clip/x.json", {})
        assert record is not None and store.records.replace("leases/clip/x.json", record.version, {}) is not None
    finally:
        os.umask(before)
    assert f"mode {mode:04o}: {'its group' if mode & 0o020 else 'only its owner'} can write" in done.stdout
    for path in folder.rglob("*"):
        status = path.stat()
        if path.is_dir():
            assert stat.S_IMODE(status.st_mode) == mode, path
        else:
            assert stat.S_IMODE(status.st_mode) == mode & 0o666, path
        assert not mode & stat.S_ISGID or status.st_gid == folder.stat().st_gid


# Status


def test_status_counts_clips_leases_budgets_and_uploads(store: SharedStore, run: Run, tmp_path: Path) -> None:
    put(store, CLIP)
    put(store, OTHER)
    put(store, OTHER, "0123456789abcdef")
    store.put_index(IndexKey.of("600/train/a.tar.gz", "etag"), b"an index")
    store.put_fill(CompletedFill("600/train/a.tar.gz", "etag", "all", True, 2, 12000, "node"))
    leases = Leases(store.records, store.clock, "gpu-7:123")
    leases.acquire("clip/source/00/x")
    leases.acquire("clip/source/00/done").release()  # type: ignore[union-attr]
    (tmp_path / "cache").mkdir()
    queue = UploadQueue(CacheLayout(tmp_path / "cache").uploads)
    queue.add([Upload(CLIP, "source")], urgent=False)
    queue.close()

    done = run("shared", "status", "--shared", store.backend.address, "--json")
    assert done.returncode == 0, done.stderr
    status = json_output(done)
    content = status["content"]
    assert (content["clips"], content["indexes"], content["fills"]) == (3, 1, 1)
    assert {name: totals["clips"] for name, totals in content["profiles"].items()} == {
        "source": 2,
        "0123456789abcdef": 1,
    }
    [lease] = status["leases"]
    assert (lease["name"], lease["owner"]) == ("clip/source/00/x", "gpu-7:123") and 50 < lease["ends_in_seconds"] <= 60
    assert status["expired_leases"] == 1
    assert status["conditional_writes"] and status["can_write"] and status["format"] == {"reader": 1, "writer": 1}
    assert status["uploads"]["clips"] == 1

    text = run("shared", "status", "--shared", store.backend.address).stdout
    assert "gpu-7:123" in text and "0123456789abcdef" in text and "1 clip of this cache waits" in text
    quick = json_output(run("shared", "status", "--quick", "--json", "--shared", store.backend.address))
    assert quick["content"] is None and len(quick["leases"]) == 1


def test_status_prints_hostile_objects_safely(store: SharedStore, run: Run, serve: Moto) -> None:
    records = store.records
    records.create("leases/clip/x.json", {"owner": "\x1b[2Jme\n", "ttl": 1e300, "failure": {"kind": 3, "reason": []}})
    records.create("leases/clip/y.json", {"owner": {"a": [1] * 1000}, "ttl": "soon"})
    records.create("budget/youtube@lab.json", {"used": {"x": -1}, "nodes": [], "block": {"reason": "\x1b[2J"}})
    records.create("budget/You Tube@lab.json".replace(" ", "_"), {"used": 5})
    store.backend.create("leases/clip/z.json", b"{")
    if "://" in store.backend.address:
        bucket, _, prefix = store.backend.address.removeprefix("s3://").partition("/")
        for key in ("leases/a b.json", "clips/v1/source/00/\u202e.mp4", "fills/v1/ä.json", "budget/a@b@c.json"):
            serve.s3.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"{}")
    for arguments in ((), ("--json",)):
        done = run("shared", "status", "--shared", store.backend.address, *arguments)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout and "\u202e" not in done.stdout and "z.json" in done.stdout
    assert list(store.fills()) == []


def test_status_shows_the_store_although_the_queue_of_the_cache_is_damaged(
    folder: SharedStore, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    CacheLayout(tmp_path / "cache").uploads.write_bytes(b"no database" * 1000)
    done = run("shared", "status", "--shared", folder.backend.address)
    assert done.returncode == 0 and "uploads.sqlite" in done.stderr and "clips" in done.stdout


def test_status_needs_a_store(tmp_path: Path, run: Run) -> None:
    assert "give its address with --shared" in run("shared", "status").stderr
    done = run("shared", "status", "--shared", tmp_path)
    assert done.returncode == 1 and "has no kinetics-store.json" in done.stderr


# Verification


def test_verify_finds_every_kind_of_damage(store: SharedStore, run: Run, video: bytes) -> None:
    put(store, CLIP, body=video)
    put(store, CLIP, "0123456789abcdef", body=b"no video" * 1000)
    damage(store, OTHER, video)
    address = store.backend.address
    for arguments in ((), ("--all",), ("--all", "--decode")):
        done = run("shared", "verify", "--json", "--shared", address, *arguments)
        assert done.returncode == 3, done.stderr
        found = json_output(done)
        assert (found["verified"], found["damaged"], found["deleted"]) == (3, 2, 0)
        assert {(one["clip"], one["profile"]) for one in found["bad"]} == {
            (CLIP.key, "0123456789abcdef"),
            (OTHER.key, "source"),
        }
    done = run("shared", "verify", "--sample", "2", "--shared", address)
    assert "2 clips of 3 verified" in done.stdout
    assert store.has_clip(OTHER, "source")


def test_verify_repair_deletes_damaged_clips_and_lets_fills_bring_them_again(
    store: SharedStore, run: Run, video: bytes, listed: tuple[str | Path, ...]
) -> None:
    put(store, CLIP, body=video)
    damage(store, OTHER, video)
    for archive in ("600/train/abseiling.tar.gz", "600/train/surfing water.tar.gz", "700/train/part_1.tar.gz"):
        store.put_fill(CompletedFill(archive, "etag", "all", False, 2, 12000, "node"))
    done = run("shared", "verify", "--repair", "--shared", store.backend.address, *listed)
    assert done.returncode == 3 and "1 clip and" not in done.stderr, done.stderr
    assert "1 clip deleted, and 2 completion records of fills" in done.stdout
    assert [fill.archive for fill in store.fills()] == ["600/train/surfing water.tar.gz"]
    assert store.has_clip(CLIP, "source") and not store.has_clip(OTHER, "source")
    assert run("shared", "verify", "--all", "--shared", store.backend.address).returncode == 0


def test_verify_goes_on_after_a_clip_that_cannot_be_read(bucket_url: str, serve: Moto, video: bytes, run: Run) -> None:
    store, _ = create_store(bucket_url)
    put(store, CLIP, body=video)
    put(store, OTHER, body=video)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: Fault(status=500) if CLIP.name in path and method == "GET" else None
        done = run("shared", "verify", "--all", "--json", "--shared", bucket_url, server=proxy.url)
    assert done.returncode == 3, done.stderr
    found = json_output(done)
    assert (found["verified"], found["damaged"], found["unreadable"]) == (1, 0, 1)


def test_verify_lets_fills_bring_deleted_clips_again_even_if_the_store_then_fails(
    bucket_url: str,
    serve: Moto,
    video: bytes,
    run: Run,
    listed: tuple[str | Path, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, _ = create_store(bucket_url)
    clips = sorted((CLIP, OTHER), key=lambda clip: clip_key(clip, "source"))
    damage(store, clips[0], video)
    put(store, clips[1], body=video)
    archive = f"600/train/{LABELS[clips[0]]}.tar.gz"
    store.put_fill(CompletedFill(archive, "etag", "all", False, 2, 12000, "node"))
    monkeypatch.setattr("kinetics_fs.shared.verification._MAX_UNREADABLE", 1)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: Fault(status=500) if clips[1].name in path else None
        done = run("shared", "verify", "--all", "--repair", "--shared", bucket_url, *listed, server=proxy.url)
    assert done.returncode == 1 and "1 clip deleted, and 1 completion record" in done.stdout, done.stdout
    assert "HTTP 500" in done.stderr


# Deletion


@pytest.fixture
def folder(tmp_path: Path) -> SharedStore:
    """A store in a folder, with files whose times a test can set."""
    return create_store(str(tmp_path / "store"))[0]


def age(store: SharedStore, days: float, pattern: str = "*") -> None:
    at = time.time() - days * 86400
    for path in Path(store.backend.address).rglob(pattern):
        if path.is_file():
            os.utime(path, (at, at))


def profiles(store: SharedStore) -> set[tuple[Clip, str]]:
    return {(one.clip, one.profile) for one in store.listing()}


def test_prune_deletes_only_a_given_selection_and_only_with_yes(
    folder: SharedStore, run: Run, listed: tuple[str | Path, ...]
) -> None:
    put(folder, CLIP)
    put(folder, OTHER)
    put(folder, OTHER, "0123456789abcdef")
    for archive in ("600/train/abseiling.tar.gz", "600/train/surfing water.tar.gz"):
        folder.put_fill(CompletedFill(archive, "etag", "all", False, 2, 12000, "node"))
    age(folder, 8)
    everything = profiles(folder)
    prune = "shared", "prune", *listed, "--shared", folder.backend.address, "--json"

    nothing = json_output(run(*prune, "--yes"))
    assert (nothing["clips"], nothing["fills"]) == (0, 0)
    dry = json_output(run(*prune, "--class", "abseiling"))
    assert (dry["deleted"], dry["clips"], dry["fills"], dry["young"]) == (False, 2, 1, 0)
    assert profiles(folder) == everything and len(list(folder.fills())) == 2

    done = json_output(run(*prune, "--class", "abseiling", "--yes"))
    assert (done["deleted"], done["clips"], done["fills"]) == (True, 2, 1)
    assert profiles(folder) == {(CLIP, "source")}
    assert [fill.archive for fill in folder.fills()] == ["600/train/surfing water.tar.gz"]
    assert json_output(run(*prune, "--all", "--yes"))["clips"] == 1
    assert profiles(folder) == set() and list(folder.fills()) == []


def test_prune_of_a_profile_leaves_others_and_the_fills(
    folder: SharedStore, run: Run, listed: tuple[str | Path, ...]
) -> None:
    for profile in ("source", "0123456789abcdef", "fedcba9876543210"):
        put(folder, CLIP, profile)
    put(folder, Clip("elsewhere__", 0, 10), "0123456789abcdef")
    folder.put_fill(CompletedFill("600/train/surfing water.tar.gz", "etag", "all", False, 1, 12000, "node"))
    age(folder, 8)
    prune = "shared", "prune", *listed, "--shared", folder.backend.address, "--yes"
    done = run(*prune, "--profile", "0123456789abcdef")
    assert done.returncode == 0 and "2 clips" in done.stdout, done.stderr
    assert profiles(folder) == {(CLIP, "source"), (CLIP, "fedcba9876543210")}
    assert len(list(folder.fills())) == 1
    assert "is not the name of one" in run(*prune, "--profile", "../../etc").stderr


def test_prune_keeps_young_clips(folder: SharedStore, run: Run, listed: tuple[str | Path, ...]) -> None:
    put(folder, CLIP)
    age(folder, 6.9)
    done = run("shared", "prune", *listed, "--shared", folder.backend.address, "--all", "--yes")
    assert "0 clips, 0 bytes, deleted" in done.stdout and "1 clip younger than 7 days stays" in done.stdout
    assert profiles(folder) == {(CLIP, "source")}


def test_prune_ignores_a_selection_that_is_meant_for_mounts(
    folder: SharedStore, run: Run, listed: tuple[str | Path, ...], tmp_path: Path
) -> None:
    put(folder, CLIP)
    age(folder, 8)
    config = tmp_path / "config.toml"
    config.write_text('class = ["surfing water"]')
    prune = "--config", config, "shared", "prune", *listed, "--shared", folder.backend.address, "--yes"
    assert run(*prune).returncode == 0
    assert profiles(folder) == {(CLIP, "source")}
    assert run(*prune, "--all", "--split", "train").returncode == 2
    assert run(*prune, "--all").returncode == 0
    assert profiles(folder) == set()


def test_prune_deletes_what_dead_processes_left(run: Run) -> None:
    day = 86400.0
    world = [1_800_000_000.0 - 200 * day]
    backend = MemoryBackend(lambda: world[0])
    store = SharedStore(backend)
    store.open(create=True)

    def gone(clip: Clip) -> None:
        store.put_gone(
            Failure(clip.key, FailureKind.GONE, "Video unavailable", "youtube", None, world[0], world[0], 1, 0)
        )

    gone(CLIP)  # due after 7 days
    leases = Leases(store.records, store.clock, "dead machine")
    leases.acquire("clip/source/00/dead")
    backend.create("probe/0123.json", b"1")
    backend.create("leases/clip/damaged.json", b"{")
    world[0] += 180 * day
    gone(OTHER)
    world[0] += 20 * day - 500
    leases.acquire("clip/source/00/done").release()  # type: ignore[union-attr]
    world[0] += 400
    leases.acquire("clip/source/00/alive")
    leases.acquire("clip/source/00/just-done").release()  # type: ignore[union-attr]
    world[0] += 100

    def prune(*, delete: bool) -> PruneResult:
        return prune_store(store, chosen=None, archives=DeletedFrom(None), delete=delete)

    before = set(backend.objects)
    dry = prune(delete=False)
    assert set(backend.objects) == before
    done = prune(delete=True)
    assert (done.leases, done.failures, done.probes) == (3, 1, 1) == (dry.leases, dry.failures, dry.probes)
    assert set(store.gone_clips()) == {OTHER}
    assert {key for key in backend.objects if key.startswith("leases/")} == {
        "leases/clip/source/00/alive.json",
        "leases/clip/source/00/just-done.json",
    }


def test_prune_needs_a_store_that_can_be_written(
    bucket_url: str, serve: Moto, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(bucket_url)
    reader = serve.user(f"reader-{os.getpid()}", ["s3:Get*", "s3:List*"])
    serve.check(signatures=True)
    try:
        for name, value in reader.environment().items():
            monkeypatch.setenv(name, value)
        done = run("shared", "prune", "--shared", bucket_url)
        assert done.returncode == 1 and "cannot prune" in done.stderr and "403" in done.stderr
        status = json_output(run("shared", "status", "--shared", bucket_url, "--json"))
        assert status["can_write"] is False and "403" in status["reason"]
    finally:
        serve.check(signatures=False)


def test_a_store_of_a_newer_version_is_read_and_not_written(
    folder: SharedStore, run: Run, listed: tuple[str | Path, ...], tmp_path: Path
) -> None:
    put(folder, CLIP)
    record = folder.records.read("kinetics-store.json")
    assert record is not None
    folder.records.replace("kinetics-store.json", record.version, {**record.values, "writer": 2})
    before = profiles(folder)
    shared = "--shared", folder.backend.address
    status = run("shared", "status", *shared)
    assert status.returncode == 0 and "writers 2 (a newer version of kinetics-fs writes to it" in status.stdout
    assert run("shared", "prune", *shared).returncode == 0
    for command in (
        ("shared", "prune", *listed, *shared, "--all", "--yes"),
        ("shared", "sync", *shared),
        ("shared", "import", *listed, *shared, tmp_path),
        ("shared", "verify", "--repair", *shared),
        ("failures", "clear", "--all", *shared),
    ):
        done = run(*command)
        assert done.returncode == 1 and "update kinetics-fs" in done.stderr, command
    assert profiles(folder) == before


@pytest.mark.parametrize("arguments", [("verify", "--all", "--sample", "3"), ("verify", "--sample", "0"), ("import",)])
def test_contradictory_arguments_are_refused(folder: SharedStore, run: Run, arguments: tuple[str, ...]) -> None:
    done = run("shared", *arguments, "--shared", folder.backend.address)
    assert done.returncode == 2 and done.stderr
