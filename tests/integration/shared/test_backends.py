"""The contract of a backend: a bucket on an S3 server, folders on two filesystems, one with the habits of NFS."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinetics_fs.shared import folder as folder_module
from kinetics_fs.shared.backend import (
    MAX_METADATA,
    Backend,
    Conflict,
    ObjectDamaged,
    Version,
)
from kinetics_fs.shared.bucket import BucketBackend
from kinetics_fs.shared.folder import FolderBackend
from tests.support.memory_backend import MemoryBackend
from tests.support.nfs import NfsCalls

RECORD = "leases/clip/source/-a1B2c3D4e5_000010_000020.json"
FILE = "clips/v1/source/3f/-a1B2c3D4e5_000010_000020.mp4"
METADATA = {"sha256": "0" * 64, "size": "6", "source": "youtube"}


@pytest.fixture(params=["memory", "bucket", "ext4", "tmpfs", "nfs"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    match request.param:
        case "memory":
            return MemoryBackend(time.time)
        case "bucket":
            return BucketBackend(request.getfixturevalue("bucket_url"))
        case "tmpfs":
            return FolderBackend(request.getfixturevalue("tmpfs"))
        case "nfs":
            monkeypatch.setattr(folder_module, "os", NfsCalls())
    return FolderBackend(tmp_path)


def body(backend: Backend, key: str) -> bytes | None:
    found = backend.get(key, max_size=1000)
    return found and found.body


@pytest.mark.parametrize("key", [RECORD, FILE])
def test_an_object_is_created_once(backend: Backend, key: str) -> None:
    metadata = METADATA if key == FILE else None
    assert backend.get(key, max_size=10) is None
    assert backend.stat(key) is None
    before = time.time()

    version = backend.create(key, b"first!", metadata)
    with pytest.raises(Conflict):
        backend.create(key, b"second", metadata)

    found = backend.get(key, max_size=10)
    assert found is not None
    assert (found.body, found.info.size, found.info.version) == (b"first!", 6, version)
    assert metadata is None or metadata.items() <= found.info.metadata.items()
    assert before - 1.5 < found.info.modified < time.time() + 1.5
    assert (facts := backend.stat(key)) is not None and facts[:3] == found.info[:3]


@pytest.mark.parametrize("key", [RECORD, FILE])
def test_an_object_is_replaced_only_if_it_is_unchanged(backend: Backend, key: str) -> None:
    metadata = METADATA if key == FILE else None
    with pytest.raises(Conflict):
        backend.replace(key, b"absent", Version("none"), metadata)
    first = backend.create(key, b"first", metadata)

    second = backend.replace(key, b"second", first, metadata)
    assert body(backend, key) == b"second"
    with pytest.raises(Conflict):
        backend.replace(key, b"third", first, metadata)
    found = backend.get(key, max_size=10)
    assert found is not None and found.info.version == second

    assert backend.replace(key, b"third", second, metadata) not in (first, second)
    assert body(backend, key) == b"third"


@pytest.mark.parametrize("key", [RECORD, FILE])
def test_a_deleted_object_is_absent_and_can_be_created_again(backend: Backend, key: str) -> None:
    metadata = METADATA if key == FILE else None
    backend.delete(key)
    old = backend.replace(key, b"2", backend.create(key, b"1", metadata), metadata)

    other = key.replace("000020", "000030")
    backend.create(other, b"other", metadata)
    backend.delete(key, other)
    assert body(backend, key) is None and body(backend, other) is None
    with pytest.raises(Conflict):
        backend.replace(key, b"3", old, metadata)
    backend.create(key, b"new", metadata)
    assert body(backend, key) == b"new"
    with pytest.raises(Conflict):
        backend.replace(key, b"3", old, metadata)


def test_an_object_that_is_too_large_is_damaged(backend: Backend) -> None:
    backend.create(FILE, b"x" * 5000, METADATA)
    backend.create(RECORD, b"x" * 5000)

    assert body(backend, FILE.replace("-a", "-b")) is None
    with pytest.raises(ObjectDamaged, match=r"5,000|6,024|large") as caught:
        backend.get(FILE, max_size=1000)
    with pytest.raises(ObjectDamaged):
        backend.get(RECORD, max_size=1000)

    assert caught.value.version is not None
    backend.replace(FILE, b"small", caught.value.version, METADATA)
    assert body(backend, FILE) == b"small"


def test_metadata_keeps_text_and_has_a_limit(backend: Backend) -> None:
    if isinstance(backend, MemoryBackend):
        pytest.skip("has no limit")
    backend.create(FILE, b"", {"text": "x" * (MAX_METADATA - 20)})
    found = backend.get(FILE, max_size=0)
    assert found is not None and found.body == b"" and found.info.metadata["text"] == "x" * (MAX_METADATA - 20)
    with pytest.raises(ValueError, match="bytes"):
        backend.create(FILE, b"", {"text": "x" * MAX_METADATA})


def test_a_scan_has_the_order_of_keys_and_resumes(backend: Backend) -> None:
    keys = [
        *(f"gone/v1/{number % 3}/{number}.json" for number in range(7)),
        *("gone/v1/a.json", "gone/v1/a/b.json", "gone/v1/a-.json", "gone/v10/1.json", "other/1.json"),
    ]
    for key in keys:
        backend.create(key, b"{}")
    backend.replace("gone/v1/a.json", b"{2}", _version(backend))

    expected = sorted(key for key in keys if key.startswith("gone/v1/"))
    assert [entry.key for entry in backend.scan("gone/v1")] == expected
    for at in (0, 3, len(expected) - 1):
        assert [entry.key for entry in backend.scan("gone/v1", after=expected[at])] == expected[at + 1 :]
    assert list(backend.scan("gone/v2")) == []


def _version(backend: Backend) -> Version:
    found = backend.get("gone/v1/a.json", max_size=10)
    assert found is not None
    return found.info.version


def test_of_many_writers_one_wins(backend: Backend) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            backend.create(RECORD, b"%d" % number)
        except Conflict:
            return False
        return True

    def replace(number: int) -> bool:
        found = backend.get(RECORD, max_size=50)
        assert found is not None
        start.wait()
        try:
            # With another body each time: to a bucket, equal bodies are the same version.
            backend.replace(RECORD, b"%d after %s" % (number, found.body[:40]), found.info.version)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
        assert created.count(True) == 1
        assert body(backend, RECORD) == b"%d" % created.index(True)
        for _ in range(3):
            replaced = list(pool.map(replace, range(8)))
            assert replaced.count(True) == 1
            assert (body(backend, RECORD) or b"").startswith(b"%d after " % replaced.index(True))


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/../b", ".a", "a/.b", "a b", "a/", "ä", "a" * 201, "a/" * 8 + "a"])
def test_an_invalid_key_is_a_defect_of_the_caller(backend: Backend, key: str) -> None:
    with pytest.raises(ValueError, match="not the key"):
        backend.get(key, max_size=1)


def test_a_record_can_be_replaced_many_times(backend: Backend) -> None:
    version = backend.create(RECORD, b"0")
    stale = version
    for number in range(1, 80):
        version = backend.replace(RECORD, b"%d" % number, version)
    assert body(backend, RECORD) == b"79"
    with pytest.raises(Conflict):
        backend.replace(RECORD, b"stale", stale)
    assert body(backend, RECORD) == b"79"
