"""A disk that fills up: space stays free as configured, and no error of the disk costs a clip."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store import Store
from tests.support import store_subprocess
from tests.support.store import (
    UNIT,
    SmallDisk,
    assert_cache_full,
    assert_in_step,
    cached_numbers,
    clip,
    clip_files,
    fill,
    is_absent,
    is_whole,
    keep,
    keep_clips,
    read_clip,
)
from tests.support.subprocesses import end, start


def free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


@pytest.mark.parametrize("limit", [None, 100 * UNIT], ids=["no limit", "a limit that is far"])
def test_min_free_holds(small_disk: SmallDisk, limit: int | None) -> None:
    folder = small_disk(16 * UNIT) / "cache"
    with Store(folder, limit=limit, min_free=8 * UNIT) as store:
        for number in range(12):
            keep_dense(store, number)
            assert free(folder) >= 8 * UNIT
        assert cached_numbers(store, 12)[-1] == 11
        assert_in_step(folder)


def test_nothing_is_evicted_while_the_disk_has_space(small_disk: SmallDisk) -> None:
    folder = small_disk(16 * UNIT) / "cache"
    with Store(folder, min_free=8 * UNIT) as store:
        for number in range(6):
            keep_dense(store, number)
        assert free(folder) >= 9 * UNIT
        claim = store.claim(clip(6))
        assert claim is not None
        with claim:
            path = claim.folder / "finished.mp4"
            path.write_bytes(b"x" * UNIT)
            assert free(folder) >= 8 * UNIT, "it fits as it is"
            claim.publish(path, "test")
        assert cached_numbers(store, 7) == list(range(7))


def test_a_disk_that_other_programs_fill_is_an_error(small_disk: SmallDisk) -> None:
    disk = small_disk(8 * UNIT)
    with Store(disk / "cache", min_free=4 * UNIT) as store:
        (disk / "other").write_bytes(b"x" * 5 * UNIT)
        with pytest.raises(FetchError) as caught:
            store.claim(clip(0))
        assert_cache_full(caught.value)
        (disk / "other").unlink()
        keep(store, clip(0))
        assert is_whole(store, clip(0))


def test_a_claim_without_space_evicts_nothing(small_disk: SmallDisk) -> None:
    disk = small_disk(10 * UNIT)
    with Store(disk / "cache", min_free=4 * UNIT) as store:
        keep_dense(store, 0)
        (disk / "other").write_bytes(b"x" * 7 * UNIT)
        with pytest.raises(FetchError):
            store.claim(clip(1))
        assert not is_absent(store, clip(0)), "its bytes would not have been enough"
        assert_in_step(store.folder)


def keep_dense(store: Store, number: int) -> None:
    """Put a clip into the store that takes real space on the disk."""
    claim = store.claim(clip(number))
    assert claim is not None
    with claim:
        path = claim.folder / "finished.mp4"
        path.write_bytes(b"x" * UNIT)
        claim.publish(path, "test")


@pytest.mark.parametrize("moment", ["before the claim", "before publishing"])
def test_a_full_disk_is_an_error_with_enospc_and_stores_no_clip(small_disk: SmallDisk, moment: str) -> None:
    disk = small_disk(8 * UNIT)
    with Store(disk / "cache") as store:
        for number in range(2):
            keep_dense(store, number)
        filler = None
        with pytest.raises((FetchError, StoreError)):
            if moment == "before the claim":
                filler = fill(disk)
            claim = store.claim(clip(2))
            assert claim is not None
            with claim:
                path = claim.folder / "finished.mp4"
                path.touch()  # an empty file: nothing but the store itself needs space
                filler = filler or fill(disk)
                claim.publish(path, "test")
                raise StoreError("it was published, against all odds")
        assert filler is not None
        filler.unlink()
        for number in range(3):
            if not is_absent(store, clip(number)):
                assert read_clip(store, clip(number)) == (b"x" * UNIT if number < 2 else b"")
        keep_dense(store, 3)
        assert not is_absent(store, clip(3)), "the store works again when there is space again"
    with Store(disk / "cache"):
        assert_in_step(disk / "cache")


Act = Callable[[Store], object]

ACTS: dict[str, Act] = {
    "drop": lambda store: store.remove(clip(0)),
    "remember a failure": lambda store: store.failures.remember(clip(7), FetchError(FailureKind.GONE, "x" * 10_000)),
    "forget failures": lambda store: store.failures.forget(),
}


@pytest.mark.parametrize("name", ACTS)
def test_on_a_full_disk_every_method_works_or_raises_a_kinetics_error(small_disk: SmallDisk, name: str) -> None:
    disk = small_disk(4 * UNIT)
    with Store(disk / "cache") as store:
        keep_dense(store, 0)
        filler = fill(disk)
        try:
            ACTS[name](store)
        except (FetchError, StoreError) as error:
            assert "\n" not in str(error)
        assert is_absent(store, clip(0)) or read_clip(store, clip(0)) == b"x" * UNIT
        filler.unlink()
        keep_dense(store, 1)


def test_cached_clips_are_read_from_a_full_disk(small_disk: SmallDisk) -> None:
    disk = small_disk(4 * UNIT)
    with Store(disk / "cache") as store:
        keep_dense(store, 0)
        filler = fill(disk)
        assert read_clip(store, clip(0)) == b"x" * UNIT
        filler.unlink()


def test_opening_a_store_on_a_full_disk_is_an_error(small_disk: SmallDisk) -> None:
    disk = small_disk(4 * UNIT)
    filler = fill(disk)
    with pytest.raises(StoreError) as caught:
        Store(disk / "cache")
    assert "\n" not in str(caught.value)
    filler.unlink()
    Store(disk / "cache").close()


def test_a_process_out_of_file_descriptors_loses_no_clip(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 3)
    assert end(start(store_subprocess.open_without_descriptors, folder, 0)) == 0
    with Store(folder) as store:
        assert cached_numbers(store, 3) == [0, 1, 2]
        assert is_whole(store, clip(0))
    assert len(clip_files(folder)) == 3
