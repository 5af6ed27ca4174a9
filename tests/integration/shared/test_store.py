"""The objects of a shared store, in a bucket and in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, KineticsError, SharedStoreError
from kinetics_fs.shared.backend import Backend, Conflict, ObjectDamaged, Version
from kinetics_fs.shared.bucket import BucketBackend
from kinetics_fs.shared.folder import FolderBackend
from kinetics_fs.shared.store import (
    ClipFacts,
    CompletedFill,
    IndexKey,
    SharedClip,
    SharedStore,
    archive_name,
    clip_key,
)
from kinetics_fs.store import Failure
from tests.support.memory_backend import MemoryBackend

CLIP = Clip("-a1B2c3D4e5", 10, 20)
OTHER = Clip("_a1B2c3D4e5", 10, 20)
BODY = b"a clip" * 1000
FACTS = ClipFacts.of(BODY, "youtube", 9.96)
NOW = 1_800_000_000.0


@pytest.fixture(params=["bucket", "folder"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return (
        BucketBackend(request.getfixturevalue("bucket_url")) if request.param == "bucket" else FolderBackend(tmp_path)
    )


@pytest.fixture
def store(backend: Backend) -> SharedStore:
    store = SharedStore(backend)
    store.open(create=True)
    return store


def content(clip: SharedClip | None) -> tuple[bytes, ClipFacts] | None:
    return None if clip is None else (clip.body, clip.facts)


def test_a_place_becomes_a_store_only_on_request(backend: Backend) -> None:
    with pytest.raises(SharedStoreError, match=r"has no kinetics-store\.json; check the address"):
        SharedStore(backend).open(create=False)
    assert SharedStore(backend).open(create=True)
    assert SharedStore(backend).open(create=True)
    assert SharedStore(backend).open(create=False)


@pytest.mark.parametrize(
    ("reader", "writer", "expected"), [(1, 1, True), (1, 2, False), (2, 2, "newer version"), ("x", 1, "damaged")]
)
def test_a_store_says_who_may_read_and_write(
    store: SharedStore, reader: object, writer: object, expected: bool | str
) -> None:
    record = store.records.read("kinetics-store.json")
    assert record is not None
    store.records.replace("kinetics-store.json", record.version, {**record.values, "reader": reader, "writer": writer})
    if isinstance(expected, bool):
        assert store.open(create=False) is expected
    else:
        with pytest.raises(KineticsError, match=expected):
            store.open(create=False)


def test_the_probe_finds_conditional_writes_and_the_time(store: SharedStore) -> None:
    assert store.probe() == (True, True, "")
    assert store.clock.now() is not None
    assert list(store.backend.scan("probe")) == []


@pytest.mark.parametrize("ignored", ["create", "replace"])
def test_the_probe_notices_a_store_that_ignores_conditions(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend(lambda: NOW)

    def overwrite(key: str, body: bytes, *_: object) -> Version:
        backend.objects.pop(key, None)
        return MemoryBackend.create(backend, key, body)

    monkeypatch.setattr(backend, ignored, overwrite)
    found = SharedStore(backend).probe()
    assert found.can_write and not found.has_conditional_writes and "no conditional writes" in found.reason


def test_a_clip_is_written_once_and_read_by_one_request(store: SharedStore) -> None:
    assert store.get_clip(CLIP, "source") is None
    assert not store.has_clip(CLIP, "source")

    assert store.put_clip(CLIP, "source", BODY, FACTS)
    other = ClipFacts.of(b"another cut", "archive", None)
    assert not store.put_clip(CLIP, "source", b"another cut", other)
    assert store.put_clip(CLIP, "0123abcd", b"another cut", other)

    assert store.has_clip(CLIP, "source")
    assert content(store.get_clip(CLIP, "source")) == (BODY, FACTS)
    assert content(store.get_clip(CLIP, "0123abcd")) == (b"another cut", other)
    assert store.get_clip(OTHER, "source") is None


def test_clips_are_listed_in_order(store: SharedStore) -> None:
    clips = [Clip(f"-a1B2c3D4e{number}", 0, 10) for number in range(8)]
    for clip in clips:
        store.put_clip(clip, "source", BODY, FACTS)
    store.backend.create("clips/v1/source/00/not-a-clip.mp4", b"", {})
    listed = [clip for clip, _ in store.clips("source")]
    assert sorted(listed) == clips
    assert [clip for clip, _ in store.clips("source", after=listed[2])] == listed[3:]


@pytest.mark.parametrize(
    "fault", ["short", "long", "other content", "swapped", "other profile", "bits", "no metadata", "bad metadata"]
)
def test_a_damaged_clip_is_never_returned_and_then_replaced(store: SharedStore, fault: str) -> None:
    key = clip_key(CLIP, "source")
    metadata = {"key": key, "sha256": FACTS.sha256, "size": str(FACTS.size), "source": "youtube", "duration": "9.960"}
    match fault:
        case "short":
            store.backend.create(key, BODY[:-1], metadata)
        case "long":
            store.backend.create(key, BODY + b"x", metadata)
        case "other content":
            store.backend.create(key, b"the clip of another id", metadata)
        case "swapped":
            store.backend.create(key, BODY, {**metadata, "key": clip_key(OTHER, "source")})
        case "other profile":
            store.backend.create(key, BODY, {**metadata, "key": clip_key(CLIP, "0123abcd")})
        case "bits":
            store.backend.create(key, BODY[:-1] + b"?", metadata)
        case "no metadata":
            store.backend.create(key, BODY, {})
        case "bad metadata":
            store.backend.create(key, BODY, {**metadata, "size": "0x1770"})

    with pytest.raises(ObjectDamaged, match="metadata") as caught:
        store.get_clip(CLIP, "source")
    assert caught.value.version is not None
    assert not store.has_clip(CLIP, "source")

    another = SharedStore(store.backend)
    with pytest.raises(ObjectDamaged):
        another.get_clip(CLIP, "source")
    assert store.put_clip(CLIP, "source", BODY, FACTS)
    assert content(store.get_clip(CLIP, "source")) == (BODY, FACTS)
    assert not another.put_clip(CLIP, "source", b"2", ClipFacts.of(b"2", "youtube", None))
    assert content(another.get_clip(CLIP, "source")) == (BODY, FACTS)


def test_a_cached_file_that_is_damaged_is_not_written(store: SharedStore) -> None:
    with pytest.raises(ObjectDamaged, match="cached file is damaged"):
        store.put_clip(CLIP, "source", BODY[:-1], FACTS)
    assert not store.has_clip(CLIP, "source")


def failure(clip: Clip = CLIP, *, last_at: float = NOW, reason: str = "Video unavailable") -> Failure:
    return Failure(
        key=clip.key,
        kind=FailureKind.GONE,
        reason=reason,
        source="youtube",
        errno=None,
        first_at=NOW - 100,
        last_at=last_at,
        attempts=2,
        retry_at=last_at + 1000,
    )


def test_a_failure_is_shared_until_it_is_forgotten(store: SharedStore) -> None:
    assert store.get_gone(CLIP) is None
    store.put_gone(failure())
    store.put_gone(failure(OTHER))

    report = store.get_gone(CLIP)
    assert report is not None
    assert report[:4] == (CLIP, FailureKind.GONE, "Video unavailable", "youtube")
    assert (report.first_at, report.last_at, report.attempts) == (NOW - 100, NOW, 2)
    assert set(store.gone_clips()) == {CLIP, OTHER}

    store.forget_gone([CLIP])
    assert store.get_gone(CLIP) is None
    assert list(store.gone_clips()) == [OTHER]


def test_the_latest_failure_counts(store: SharedStore) -> None:
    for last_at, reason in ((NOW, "first"), (NOW + 10, "later"), (NOW + 5, "late to arrive")):
        store.put_gone(failure(last_at=last_at, reason=reason))
    report = store.get_gone(CLIP)
    assert report is not None and report.reason == "later"


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xfe", b"{" * 9000, json.dumps({"key": OTHER.key}).encode()])
def test_a_damaged_failure_is_replaced(store: SharedStore, body: bytes) -> None:
    key = f"gone/v1/{clip_key(CLIP, 'source').split('/')[3]}/{CLIP.key}.json"
    store.backend.create(key, body)
    with pytest.raises(ObjectDamaged, match="no failure of this clip"):
        store.get_gone(CLIP)
    store.put_gone(failure())
    assert store.get_gone(CLIP) is not None


def test_an_index_is_shared(store: SharedStore) -> None:
    index = IndexKey.of("k600/val/part_0.tar.gz", '"abc"')
    assert store.get_index(index) is None
    store.put_index(index, b"an index")
    store.put_index(index, b"the same index, compressed otherwise")
    assert store.get_index(index) == b"an index"
    assert store.get_index(IndexKey.of("k600/val/part_0.tar.gz", '"new"')) is None


def test_the_newest_index_of_each_archive_is_listed(store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, other = (IndexKey.of(*names) for names in (("a", "1"), ("a", "2"), ("b", "1")))
    for index in (first, second, other):
        store.put_index(index, b"x")
    store.backend.create("indexes/v1/strange", b"")
    scan = store.backend.scan
    times = {str(first): 20.0, str(second): 10.0}
    listed = [entry._replace(modified=times.get(entry.key, 1.0)) for entry in scan("indexes/v1")]
    monkeypatch.setattr(store.backend, "scan", lambda prefix: iter(listed))
    assert sorted(store.indexes()) == sorted([first, other])


def test_a_damaged_index_is_replaced(store: SharedStore) -> None:
    index = IndexKey.of("a.tar.gz", "e")
    store.backend.create(str(index), b"short", {"sha256": "0" * 64})
    with pytest.raises(ObjectDamaged):
        store.get_index(index)
    store.put_index(index, b"sound")
    assert store.get_index(index) == b"sound"


def test_completed_fills_are_recorded(store: SharedStore) -> None:
    first = CompletedFill("val/part_0.tar.gz", '"abc"', "all", True, 1000, 2**40, "node-1")
    second = CompletedFill("val/part_1.tar.gz", '"abc"', "selection", False, 0, 0, "node-2")
    for fill in (first, second, first._replace(node="node-3"), first._replace(indexed=False)):
        store.put_fill(fill)
    store.backend.create("fills/v1/strange.json", b"[]")
    store.backend.create("fills/v1/strange-2.json", b'{"nonce": "", "archive": 1}')
    store.records.create("fills/v1/swapped.json", first._asdict())

    assert store.get_fill("val/part_0.tar.gz", '"abc"', "selection") == first
    assert store.get_fill("val/part_0.tar.gz", '"new"', "selection") is None
    assert store.get_fill("val/part_1.tar.gz", '"abc"', "selection") == second
    assert store.get_fill("val/part_1.tar.gz", '"abc"', "other") is None
    assert sorted(store.fills()) == [first, second]

    indexed = second._replace(indexed=True)
    store.put_fill(indexed)
    assert store.get_fill("val/part_1.tar.gz", '"abc"', "selection") == indexed


@pytest.mark.parametrize("body", [b"", b"[]", b'{"nonce": "1"}', b"[" * 100_000])
def test_a_damaged_completion_record_counts_for_nothing_and_is_replaced(store: SharedStore, body: bytes) -> None:
    fill = CompletedFill("a.tar.gz", "e", "all", True, 1, 1, "node")
    store.put_fill(fill)
    [entry] = store.backend.scan("fills/v1")
    store.backend.delete(entry.key)
    store.backend.create(entry.key, body)
    assert store.get_fill("a.tar.gz", "e", "all") is None
    store.put_fill(fill)
    assert store.get_fill("a.tar.gz", "e", "all") == fill


def test_a_checkpoint_is_replaced_and_deleted(store: SharedStore) -> None:
    archive = ("val/part_0.tar.gz", '"abc"', "selection")
    assert store.get_progress(*archive) is None
    for body in (b"first", b"second"):
        store.put_progress(*archive, body)
        assert store.get_progress(*archive) == body
    assert store.get_progress("val/part_0.tar.gz", '"abc"', "other") is None
    [entry] = store.backend.scan("checkpoints/v1")
    store.delete_progress(*archive)
    store.delete_progress(*archive)
    assert store.get_progress(*archive) is None

    store.backend.create(entry.key, b"swapped", {"key": entry.key, "sha256": "0" * 64})
    with pytest.raises(ObjectDamaged):
        store.get_progress(*archive)
    store.put_progress(*archive, b"sound")
    assert store.get_progress(*archive) == b"sound"


@pytest.mark.parametrize("archive", ["", "..", "/", "a" * 500 + ".tar.gz", "ü b.tar.gz", "s3://b/\n/x", ".hidden"])
def test_any_name_of_an_archive_is_a_key(store: SharedStore, archive: str) -> None:
    index = IndexKey.of(archive, "")
    store.put_index(index, b"x")
    assert store.get_index(index) == b"x"
    assert archive_name(archive, "a") != archive_name(archive, "b")


def test_a_profile_is_no_path(store: SharedStore) -> None:
    for profile in ("", "../x", "Source", "a" * 33):
        with pytest.raises(ValueError, match="profile"):
            store.get_clip(CLIP, profile)


def test_writers_of_two_versions_meet(store: SharedStore) -> None:
    """A clip of a later version may have more metadata; names under `clips/v2` are another version's business."""
    key = clip_key(CLIP, "source")
    metadata = {"key": key, "sha256": FACTS.sha256, "size": str(FACTS.size), "codec": "av1"}
    store.backend.create(key, BODY, metadata)
    store.backend.create("clips/v2/source/x.mp4", b"", {})
    found = store.get_clip(CLIP, "source")
    assert found is not None and found.facts == ClipFacts(FACTS.size, FACTS.sha256, "", None)
    with pytest.raises(Conflict):
        store.backend.create(key, BODY, metadata)
