"""A cache on a disk that cannot be written: its clips are read without a write, and the cause has its name."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store import ActivityCounts, Store, summarize_cache
from tests.support.store import SmallDisk, clip, fill, is_whole, keep
from tests.support.store_fixtures import make_read_only, make_writable
from tests.support.user import User

COUNT = 4
GONE = FetchError(FailureKind.GONE, "removed", source="youtube")


class Unwritable(NamedTuple):
    """A disk that cannot be written."""

    make: Callable[[Path], object]
    undo: Callable[[Path], object]
    cause: str
    errno: int


DISKS = {
    "read-only": Unwritable(
        make_read_only, make_writable, "the disk is mounted read-only; mount it for writing", errno.EROFS
    ),
    "full": Unwritable(
        fill, lambda disk: (disk / "filler").unlink(), "the disk is full; free space on it", errno.ENOSPC
    ),
}


@pytest.fixture(params=DISKS)
def unwritable(request: pytest.FixtureRequest) -> Unwritable:
    return DISKS[request.param]


@pytest.fixture
def disk(small_disk: SmallDisk) -> Iterator[Path]:
    """A disk with a cache of four clips, of which the process that stored them was killed: its log is not applied."""
    disk = small_disk(8_000_000)
    with Store(disk / "cache", limit=1_000_000_000) as store:
        keep_clips_small(store, COUNT)
        store.failures.remember(clip(99), GONE)
        store.pins.add([clip(0)])
        copy = disk / "copy"
        shutil.copytree(disk / "cache", copy)  # as after a kill
    shutil.rmtree(disk / "cache")
    copy.rename(disk / "cache")
    assert (disk / "cache/clips/cache.db-wal").stat().st_size > 0
    yield disk
    gc.collect()


def keep_clips_small(store: Store, count: int) -> None:
    for number in range(count):
        keep(store, clip(number), 10_000)


def files(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return the size, inode number and time of the last change of everything below a folder."""
    statuses = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (status.st_size, status.st_ino, status.st_mtime_ns) for path, status in statuses.items()}


CHANGES: dict[str, Callable[[Store], object]] = {
    "remove": lambda store: store.remove(clip(0)),
    "remember a failure": lambda store: store.failures.remember(clip(7), GONE),
    "forget failures": lambda store: store.failures.forget(),
    "import failures": lambda store: store.failures.import_reports([]),
    "pin": lambda store: store.pins.add([clip(1)]),
    "unpin": lambda store: store.pins.remove([clip(0)]),
    "unpin all": lambda store: store.pins.remove_all(),
    "request": lambda store: store.throttle.acquire("youtube", max_per_hour=None, urgent=True),
    "record history": lambda store: store.history.add(ActivityCounts(1)),
}


def test_after_a_restart_cached_clips_are_read_without_a_write(disk: Path, unwritable: Unwritable) -> None:
    unwritable.make(disk)
    before = files(disk / "cache")
    with Store(disk / "cache") as store:
        assert [is_whole(store, clip(number), 10_000) for number in range(COUNT)] == [True] * COUNT
        assert not is_whole_or_fails(store, COUNT)
        assert [cached for cached, _ in store.cached_clips()] == sorted(clip(number) for number in range(COUNT))
        failure = store.failures.get(clip(99))
        assert failure is not None and failure.reason == "removed"
        assert store.usage().clips == COUNT
        assert store.usage().limit == 1_000_000_000
        assert store.pins.totals().clips == 1
        assert store.sizes([clip(0).key])[clip(0).key] == (10_000, True)
        status = store.status()
        assert status.cache.clips == COUNT
        assert unwritable.cause in status.cache.error
    if unwritable.errno == errno.EROFS:
        assert files(disk / "cache") == before
    summary = summarize_cache(disk / "cache")
    assert summary is not None and summary.clips == COUNT


def is_whole_or_fails(store: Store, number: int) -> bool:
    """Return whether a clip is cached; its fetch must fail."""
    with pytest.raises(FetchError) as caught:
        store.claim(clip(number))
    assert caught.value.kind is FailureKind.LOCAL
    assert caught.value.errno in (errno.EROFS, errno.ENOSPC)
    return is_whole(store, clip(number))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_by_the_cause(disk: Path, unwritable: Unwritable, change: str) -> None:
    unwritable.make(disk)
    with Store(disk / "cache") as store:
        with pytest.raises(StoreError, match=unwritable.cause) as caught:
            CHANGES[change](store)
        assert caught.value.errno == unwritable.errno
        assert store.pins.totals().clips == 1
        assert store.failures.get(clip(99)) is not None


def test_the_store_stores_clips_again_when_the_disk_can_be_written(disk: Path, unwritable: Unwritable) -> None:
    unwritable.make(disk)
    with Store(disk / "cache") as store:
        assert store.status().cache.error
        unwritable.undo(disk)
        assert store.status().cache.error == ""
        keep(store, clip(COUNT), 10_000)
        assert [is_whole(store, clip(number), 10_000) for number in range(COUNT + 1)] == [True] * (COUNT + 1)
    with Store(disk / "cache") as store:
        assert store.usage().clips == COUNT + 1


def test_a_disk_that_cannot_be_written_any_more_costs_no_cached_clip(disk: Path, unwritable: Unwritable) -> None:
    with Store(disk / "cache") as store:
        assert is_whole(store, clip(0), 10_000)
        unwritable.make(disk)
        assert [is_whole(store, clip(number), 10_000) for number in range(COUNT)] == [True] * COUNT
        with pytest.raises(FetchError, match=unwritable.cause) as caught:
            store.claim(clip(COUNT))
        assert caught.value.errno == unwritable.errno
        assert unwritable.cause in store.status().cache.error
        unwritable.undo(disk)
        assert store.status().cache.error == ""
        keep(store, clip(COUNT), 10_000)
        assert is_whole(store, clip(COUNT), 10_000)


def test_a_new_cache_on_such_a_disk_is_refused_by_the_cause(small_disk: SmallDisk, unwritable: Unwritable) -> None:
    disk = small_disk(1_000_000)
    unwritable.make(disk)
    with pytest.raises(StoreError, match=unwritable.cause) as caught:
        Store(disk / "cache")
    assert "move" not in str(caught.value)
    unwritable.undo(disk)
    Store(disk / "cache").close()


def test_a_cache_of_the_first_format_can_be_read(tmp_path: Path, small_disk: SmallDisk, unwritable: Unwritable) -> None:
    disk = small_disk(20_000_000)
    shutil.unpack_archive(Path(__file__).parents[2] / "support/old_cache.tar.gz", disk)
    cache = disk / "cache"
    unwritable.make(disk)
    before = files(cache)
    with Store(cache) as store:
        cached = [clip for clip, _ in store.cached_clips()]
        assert cached
        for one in cached:
            opened = store.open(one)
            assert opened is not None
            opened.close()
    if unwritable.errno == errno.EROFS:
        assert files(cache) == before


PROTECTED = {
    "state database": ["state.sqlite"],
    "table of clips": ["clips/cache.db"],
    "both and their folders": ["state.sqlite", "clips/cache.db", ".", "clips"],
}


@pytest.fixture
def cache_of_user(public_folder: Path) -> tuple[Path, User]:
    """A cache of clips that belongs to a user without privileges."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    user = User(public_folder)
    cache = public_folder / "cache"
    with Store(cache) as store:
        keep_clips_small(store, COUNT)
    for path in (cache, *cache.rglob("*")):
        shutil.chown(path, "nobody")
    return cache, user


@pytest.mark.parametrize("protected", PROTECTED)
def test_files_without_write_permission_can_be_read(cache_of_user: tuple[Path, User], protected: str) -> None:
    cache, user = cache_of_user
    for name in PROTECTED[protected]:
        path = cache / name
        path.chmod(path.stat().st_mode & ~0o222)
    done = user.kinetics_fs("verify", "--cache-dir", cache)
    assert f"{COUNT} clips, 40.0 kB: {COUNT} good" in done.stdout, done.stderr
    done = user.kinetics_fs("failures", "clear", "--all", "--cache-dir", cache)
    assert done.returncode == 1
    assert f"cannot write to the cache directory {cache}: permission denied for {cache}" in done.stderr
    assert "move" not in done.stderr
