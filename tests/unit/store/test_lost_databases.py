"""The two databases: each may be lost or damaged without the other."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
from pathlib import Path

import pytest

from kinetics_fs.errors import StoreError
from kinetics_fs.store import Store
from tests.support.store import (
    UNIT,
    assert_in_step,
    assert_nothing_unknown,
    cached_numbers,
    clip,
    clip_files,
    is_absent,
    is_whole,
    keep,
    lose,
    query,
)

DATABASES = ["state.sqlite", "clips/cache.db"]


@pytest.fixture
def filled(folder: Path) -> Path:
    """The directory of a closed store with the clips 0, 1 and 2, of 1, 2 and 3 units."""
    with Store(folder) as store:
        for number in range(3):
            keep(store, clip(number), (number + 1) * UNIT)
    return folder


def test_a_lost_state_database_is_rebuilt_from_the_files(filled: Path) -> None:
    with Store(filled) as store:
        before = [store.record(clip(number)) for number in range(3)]
    lose(filled / "state.sqlite")
    with Store(filled) as store:
        assert [store.record(clip(number)) for number in range(3)] == before
        assert all(is_whole(store, clip(number), (number + 1) * UNIT) for number in range(3))
        assert_in_step(filled)


def test_after_the_loss_of_the_state_database_the_oldest_clip_is_still_evicted_first(filled: Path) -> None:
    lose(filled / "state.sqlite")
    with Store(filled, limit=6 * UNIT) as store:
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [1, 2, 3]


def test_without_the_table_of_files_all_clips_are_absent_and_can_be_fetched(filled: Path) -> None:
    lose(filled / "clips/cache.db")
    with Store(filled) as store:
        assert cached_numbers(store, 3) == []
        assert all(is_absent(store, clip(number)) for number in range(3))
        assert store.usage().bytes == 0
        assert store.sizes([clip(2).key]) == {clip(2).key: (3 * UNIT, False)}, "known sizes stay known"
        keep(store, clip(0))
        assert is_whole(store, clip(0))


def test_without_the_table_of_files_the_files_are_removed(filled: Path) -> None:
    lose(filled / "clips/cache.db")
    with Store(filled):
        assert_nothing_unknown(filled)
        assert clip_files(filled) == []


def test_without_either_database_the_store_is_empty_and_works(filled: Path) -> None:
    for name in DATABASES:
        lose(filled / name)
    with Store(filled) as store:
        assert is_absent(store, clip(0))
        keep(store, clip(0))
        assert is_whole(store, clip(0))


def damage_whole(database: Path) -> None:
    database.write_bytes(b"this is no database" * 1000)


def damage_head(database: Path) -> None:
    data = database.read_bytes()
    database.write_bytes(b"\xff" * 100 + data[100:])


def damage_all_but_the_first_page(database: Path) -> None:
    data = database.read_bytes()
    database.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def damage_cut(database: Path) -> None:
    data = database.read_bytes()
    database.write_bytes(data[: 4096 * (len(data) // 8192)])


def damage_other_schema(database: Path) -> None:
    lose(database)
    query(database, "CREATE TABLE clip (x)")
    query(database, "CREATE TABLE Cache (x)")


def damage_folder(database: Path) -> None:
    lose(database)
    database.mkdir()


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize(
    "damage",
    [damage_whole, damage_head, damage_all_but_the_first_page, damage_cut, damage_other_schema, damage_folder],
)
def test_a_damaged_database_is_an_error_of_one_sentence(
    filled: Path, name: str, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    database = filled / name
    query(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database)
    with pytest.raises(StoreError) as caught, Store(filled):
        pass
    sentence = str(caught.value)
    assert str(filled) in sentence
    assert "--cache-dir" in sentence
    assert "\n" not in sentence
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_a_store_that_cannot_be_opened_leaves_no_file_open(filled: Path) -> None:
    database = filled / "clips/cache.db"
    good = database.read_bytes()
    damage_whole(database)
    with contextlib.suppress(StoreError):
        Store(filled)
        raise AssertionError("it was opened")
    gc.collect()  # diskcache leaves its connection to it
    still_open = {path.resolve() for path in Path("/dev/fd").iterdir()}
    assert [path for path in still_open if filled in path.parents] == []
    lose(database)
    database.write_bytes(good)
    with Store(filled) as store:
        assert_in_step(filled)
        assert is_whole(store, clip(0))
