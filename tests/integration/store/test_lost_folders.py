"""A cache directory that is removed, renamed or replaced while it is in use: no clip is lost by that."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.errors import FetchError, StoreError
from kinetics_fs.store import Store
from tests.support.store import SmallDisk, clip, is_whole, keep, keep_clips, lose, query

COUNT = 3


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()


def replace_by_another(cache: Path) -> None:
    cache.rename(cache.with_name("moved"))
    Store(cache).close()


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "renamed": (lambda cache: cache.rename(cache.with_name("moved")), "it was removed or renamed while it was in use"),
    "removed": (shutil.rmtree, "it was removed or renamed"),
    "replaced": (replace, "it was replaced"),
    "replaced by another cache": (replace_by_another, "it was replaced"),
    "clips renamed": (lambda cache: (cache / "clips").rename(cache / "moved"), "clips was removed or renamed"),
    "clips removed": (lambda cache: shutil.rmtree(cache / "clips"), "clips was removed or renamed"),
    "clips replaced": (lambda cache: replace(cache / "clips"), "clips was replaced"),
    "table of clips removed": (lambda cache: lose(cache / "clips/cache.db"), "cache.db was removed"),
    "state database removed": (lambda cache: lose(cache / "state.sqlite"), "state.sqlite was removed"),
}


def put_back(cache: Path) -> None:
    moved = next(path for path in (cache.with_name("moved"), cache / "moved") if path.exists())
    place = cache if moved.parent == cache.parent else cache / "clips"
    if place.exists():
        shutil.rmtree(place)
    moved.rename(place)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_clip_is_removed_because_its_folder_is_gone(folder: Path, loss: str) -> None:
    lose_folder, cause = LOSSES[loss]
    with Store(folder) as store:
        keep_clips(store, COUNT)
        lose_folder(folder)
        for number in range(COUNT + 1):
            with pytest.raises(FetchError, match=cause) as caught:
                store.claim(clip(number))
            assert caught.value.cause_errno == errno.ENOENT
        for number in range(COUNT):
            try:
                opened = store.open(clip(number))
            except StoreError as error:
                assert cause in str(error)
            else:
                assert opened is not None  # only the state database is gone
                opened.close()
        assert cause in store.status().cache.error
        if "renamed" in loss or "replaced" in loss:
            put_back(folder)
            assert [is_whole(store, clip(number)) for number in range(COUNT)] == [True] * COUNT
            assert store.status().cache.error == ""
            assert store.status().cache.clips == COUNT
            keep(store, clip(COUNT))
    if "renamed" in loss or "replaced" in loss:
        with Store(folder) as store:
            assert [is_whole(store, clip(number)) for number in range(COUNT + 1)] == [True] * (COUNT + 1)


def test_a_disk_that_is_unmounted_costs_no_clip(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk, other = small_disk(16 * 1024**2), tmp_path / "other"
    other.mkdir()
    with Store(disk / "cache") as store:
        keep(store, clip(0), 1000)
        subprocess.run(["mount", "--bind", disk, other], check=True)
        try:
            subprocess.run(["umount", "-l", disk], check=True)
            cause = f"the disk of {disk} was unmounted while it was in use; mount it again"
            with pytest.raises(StoreError, match=cause):
                store.open(clip(0))
            assert query(other / "cache/state.sqlite", "SELECT key FROM clip WHERE cached") == [(clip(0).key,)]
            subprocess.run(["mount", "--bind", other, disk], check=True)
        finally:
            subprocess.run(["umount", "-l", other], check=True)
        assert is_whole(store, clip(0), 1000)
