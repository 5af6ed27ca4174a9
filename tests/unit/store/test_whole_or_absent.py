"""A clip is cached with every byte, or absent, and an open file keeps its bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store import Store
from tests.support.store import (
    UNIT,
    assert_in_step,
    cached_numbers,
    clip,
    clip_file,
    clip_files,
    contents,
    is_absent,
    is_whole,
    keep,
    query,
    read_clip,
    write,
)


def test_a_published_clip_is_read_back(store: Store) -> None:
    assert is_absent(store, clip(0))
    keep(store, clip(0))
    assert is_whole(store, clip(0))
    assert_in_step(store.folder)


def test_a_clip_is_absent_until_it_is_published(store: Store) -> None:
    claim = store.claim(clip(0))
    assert claim is not None
    with claim:
        path = write(claim)
        assert not store.is_cached(clip(0))
        assert is_absent(store, clip(0))
        claim.publish(path, "test")
        assert is_whole(store, clip(0)), "not only when the claim ends"


def test_a_claim_left_without_publishing_leaves_nothing(store: Store) -> None:
    claim = store.claim(clip(0))
    assert claim is not None
    with pytest.raises(RuntimeError), claim:
        write(claim)
        (claim.folder / "parts").mkdir()
        (claim.folder / "parts/one").write_bytes(b"x")
        assert store.usage().reserved > 0
        raise RuntimeError("the fetch went wrong")
    assert_in_step(store.folder)
    assert store.usage().reserved == 0
    keep(store, clip(0))
    assert is_whole(store, clip(0))


def test_a_claim_that_could_not_begin_can_be_claimed_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "mkdir", mkdir)
        with pytest.raises(FetchError) as caught:
            store.claim(clip(0))
    assert caught.value.kind is FailureKind.LOCAL
    assert_in_step(store.folder)
    keep(store, clip(0))


@pytest.mark.parametrize("size", [0, 1, UNIT - 1, 3 * UNIT])
def test_sizes_are_exact(store: Store, size: int) -> None:
    keep(store, clip(0), size)
    assert is_whole(store, clip(0), size)
    record = store.record(clip(0))
    assert record is not None
    assert record.size == size
    assert store.sizes([clip(0).key, clip(1).key]) == {clip(0).key: (size, True)}


def test_the_record_of_a_clip(store: Store) -> None:
    before = time.time()
    keep(store, clip(0))
    record, data = store.record(clip(0)), read_clip(store, clip(0))
    assert record is not None
    assert data is not None
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert (record.source, record.cached) == ("test", True)
    assert before <= record.stored_at <= time.time()
    assert store.record(clip(1)) is None


def test_an_open_clip_has_the_time_of_its_publication(store: Store) -> None:
    moments = []
    for _ in range(2):
        keep(store, clip(0))
        opened, record = store.open(clip(0)), store.record(clip(0))
        assert opened is not None
        assert record is not None
        opened.close()
        assert opened.stored_at == record.stored_at
        moments.append(opened.stored_at)
    assert moments[0] < moments[1]


def test_sizes_of_more_clips_than_one_query_takes(store: Store) -> None:
    for number in (0, 700, 1400):
        keep(store, clip(number), number + 1)
    found = store.sizes([clip(number).key for number in range(1500)])
    assert found == {clip(number).key: (number + 1, True) for number in (0, 700, 1400)}


def test_a_file_with_another_name_keeps_its_mode(store: Store) -> None:
    other = store.folder.with_name("the user's own")
    claim = store.claim(clip(0))
    assert claim is not None
    with claim:
        file = write(claim)
        file.chmod(0o644)
        other.hardlink_to(file)
        claim.publish(file, "test")
    assert is_whole(store, clip(0))
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_clip_files_are_read_only(store: Store) -> None:
    keep(store, clip(0))
    assert stat.S_IMODE(clip_file(store.folder, clip(0)).stat().st_mode) == 0o400
    opened = store.open(clip(0))
    assert opened is not None
    with pytest.raises(OSError):
        os.write(opened.fd, b"x")
    opened.close()


def forget_by_drop(store: Store) -> None:
    store.remove(clip(0))


def forget_by_eviction(store: Store) -> None:
    with Store(store.folder, limit=UNIT) as tight:
        keep(tight, clip(1))


def forget_by_republishing(store: Store) -> None:
    keep(store, clip(0), 10)


@pytest.mark.parametrize("forget", [forget_by_drop, forget_by_eviction, forget_by_republishing])
def test_an_open_clip_keeps_its_bytes(store: Store, forget: Callable[[Store], None]) -> None:
    keep(store, clip(0))
    path = clip_file(store.folder, clip(0))
    data = path.read_bytes()
    opened = store.open(clip(0))
    assert opened is not None
    forget(store)
    assert not path.exists()
    assert os.pread(opened.fd, UNIT + 1, 0) == data
    opened.close()


def test_a_removed_clip_is_absent_and_its_size_stays_known(store: Store) -> None:
    keep(store, clip(0))
    store.remove(clip(0))
    assert is_absent(store, clip(0))
    assert store.sizes([clip(0).key]) == {clip(0).key: (UNIT, False)}
    record = store.record(clip(0))
    assert record is not None
    assert not record.cached
    assert_in_step(store.folder)
    store.remove(clip(0))  # once more does no harm
    store.remove(clip(1))


def test_clips_outlive_a_restart(folder: Path) -> None:
    with Store(folder) as store:
        for number in range(5):
            keep(store, clip(number), number + 1)
        store.remove(clip(2))
    with Store(folder) as store:
        assert cached_numbers(store, 5) == [0, 1, 3, 4]
        assert all(is_whole(store, clip(number), number + 1) for number in (0, 1, 3, 4))
        assert store.sizes([clip(2).key]) == {clip(2).key: (3, False)}
        assert_in_step(folder)


def test_a_closed_store_leaves_no_lock_file(folder: Path) -> None:
    with Store(folder) as store:
        assert len(contents(folder).locks) == 1
        store.open(clip(0))
    assert contents(folder).locks == set()


def publish_nothing(path: Path) -> None:
    path.unlink()


def publish_a_symlink(path: Path) -> None:
    target = path.with_name("target")
    path.rename(target)
    path.symlink_to(target)


def publish_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [publish_nothing, publish_a_symlink, publish_a_folder])
def test_only_a_regular_file_can_be_published(store: Store, spoil: Callable[[Path], None]) -> None:
    claim = store.claim(clip(0))
    assert claim is not None
    with claim:
        path = write(claim)
        spoil(path)
        with pytest.raises(FetchError) as caught:
            claim.publish(path, "test")
    assert caught.value.kind is FailureKind.LOCAL
    assert caught.value.cause_errno is not None
    assert is_absent(store, clip(0))
    assert_in_step(store.folder)


def test_a_publication_that_fails_can_be_repeated_under_the_same_claim(store: Store) -> None:
    claim = store.claim(clip(0))
    assert claim is not None
    with claim:
        with pytest.raises(FetchError):
            claim.publish(claim.folder / "missing", "test")
        claim.publish(write(claim), "test")
    assert is_whole(store, clip(0))


def test_a_clip_that_the_table_of_files_refuses_leaves_no_file(store: Store) -> None:
    table = store.layout.clip_table
    query(table, "CREATE TRIGGER broken BEFORE INSERT ON Cache BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises((FetchError, StoreError)):
        keep(store, clip(0))
    query(table, "DROP TRIGGER broken")
    assert_in_step(store.folder)
    keep(store, clip(0))
    assert is_whole(store, clip(0))


# A power cut, which no test can make: that what must be on the disk is asked to be, in the right order


def test_the_bytes_and_then_the_name_are_forced_to_the_disk_before_the_row(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    forced: list[str] = []

    def noted(fd: int) -> None:
        fsync(fd)
        named, known = clip_files(store.folder), contents(store.folder).rows
        if stat.S_ISREG(os.fstat(fd).st_mode):
            forced.append(f"file, {len(named)} named, {len(known)} known")
        elif named and os.path.samestat(os.fstat(fd), named[0].parent.stat()):
            forced.append(f"folder, {len(named)} named, {len(known)} known")

    monkeypatch.setattr(os, "fsync", noted)
    keep(store, clip(0))
    assert forced == ["file, 0 named, 0 known", "folder, 1 named, 0 known"]


def test_both_databases_wait_for_the_disk(store: Store) -> None:
    full = (2,)
    with store._database.connection() as database:
        assert database.execute("PRAGMA synchronous").fetchone() == full
    assert store._files._cache._sql("PRAGMA synchronous").fetchone() == full
