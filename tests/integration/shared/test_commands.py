"""The commands that look after a shared store, in a bucket and in a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.demo.dataset import VIDEOS
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
from kinetics_fs.shared.store import clip_key
from kinetics_fs.shared.upload_queue import Upload
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.command_line import json_output, run_command
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
    assert done.returncode == 1 and "create the store with kinetics-fs shared init" in done.stderr
    assert run("shared", "init", store.backend.address).returncode == 0
    assert store.open(create=False) and store.has_clip(CLIP, "source")


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
    assert "2 of 3 clips verified" in done.stdout
    assert store.has_clip(OTHER, "source")


def test_verify_repair_deletes_damaged_clips_and_lets_fills_bring_them_again(
    store: SharedStore, run: Run, video: bytes, listed: tuple[str | Path, ...]
) -> None:
    put(store, CLIP, body=video)
    damage(store, OTHER, video)
    for archive in ("600/train/abseiling.tar.gz", "600/train/surfing water.tar.gz", "700/train/part_1.tar.gz"):
        store.put_fill(CompletedFill(archive, "etag", 2, 12000, "node"))
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
