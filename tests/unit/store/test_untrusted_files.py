"""A cache directory of another machine: each entry is a valid clip, or a miss after which the clip is fetched again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.store import CacheLayout, Store
from tests.support.store import (
    UNIT,
    assert_in_step,
    cached_numbers,
    change_row,
    clip,
    clip_file,
    clip_files,
    is_absent,
    is_whole,
    keep,
    keep_clips,
    lose,
    query,
)

RAW, TEXT, PICKLE = 1, 3, 4
"""Modes of diskcache that the store never writes."""

Spoil = Callable[[Path], None]


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def proof(fast_tmp_path: Path) -> Path:
    """A file that appears if content of the cache is executed."""
    return fast_tmp_path / "executed"


@pytest.fixture
def payload(proof: Path) -> bytes:
    data = pickle.dumps(Payload(proof))
    pickle.loads(data)  # noqa: S301  # that it works
    proof.unlink()
    return data


@pytest.fixture
def outside(fast_tmp_path: Path) -> Path:
    """A file outside of the cache with the length of a clip."""
    path = fast_tmp_path / "outside.mp4"
    path.write_bytes(b"s" * UNIT)
    return path


def assert_heals(folder: Path, others: int = 1) -> None:
    """Check that clip 0 is a miss, the others are whole, and a fetch restores clip 0; again after a restart."""
    for _ in range(2):
        with Store(folder) as store:
            for number in range(1, 1 + others):
                assert is_whole(store, clip(number))
            assert is_absent(store, clip(0))
            assert not store.is_cached(clip(0))
            keep(store, clip(0))
            assert is_whole(store, clip(0))
            assert all(is_whole(store, clip(number)) for number in range(1, 1 + others))
            assert_in_step(folder)
            store.remove(clip(0))


# Files


def spoil_truncate(path: Path) -> None:
    os.truncate(path, UNIT - 1)


def spoil_empty(path: Path) -> None:
    os.truncate(path, 0)


def spoil_extend(path: Path) -> None:
    os.truncate(path, UNIT + 1)


def spoil_remove(path: Path) -> None:
    path.unlink()


def spoil_remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def spoil_symlink(path: Path) -> None:
    path.rename(path.with_name("original"))
    path.symlink_to(path.with_name("original"))


def spoil_dangling_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "spoil",
    [spoil_truncate, spoil_empty, spoil_extend, spoil_remove, spoil_symlink, spoil_dangling_symlink],
)
def test_a_damaged_file_is_a_miss_and_can_be_fetched_again(folder: Path, spoil: Spoil) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
        spoil(clip_file(folder, clip(0)))
        assert is_absent(store, clip(0))
        assert not store.is_cached(clip(0))
        for path in folder.glob("clips/*/original"):
            path.unlink()
        assert_in_step(folder)
    assert_heals(folder)


def test_clips_of_a_lost_folder_can_be_fetched_again(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        spoil_remove_folder(clip_file(folder, clip(0)))
    assert_heals(folder, others=0)


def test_a_folder_in_place_of_a_clip_file_is_a_miss(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        path = clip_file(folder, clip(0))
        path.unlink()
        path.mkdir()
        tag = json.dumps({"size": path.stat().st_size, "sha256": "", "source": "test", "stored_at": 0.0})
        change_row(folder, clip(0), tag=tag, size=path.stat().st_size)
        assert store.open(clip(0)) is None
        keep(store, clip(0))
        assert is_whole(store, clip(0))


# Rows


@pytest.mark.parametrize("mode", [RAW, TEXT, PICKLE, 0, -1, 99, "2; DROP TABLE Cache", None])
def test_a_row_of_another_mode_is_a_miss(folder: Path, mode: object) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    change_row(folder, clip(0), mode=mode)
    assert_heals(folder)


def test_nothing_is_unpickled_from_a_row(folder: Path, payload: bytes, proof: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    clip_file(folder, clip(0)).unlink()
    change_row(folder, clip(0), mode=PICKLE, filename=None, value=payload)
    assert_heals(folder)
    assert not proof.exists()


def test_nothing_is_unpickled_from_a_file(folder: Path, payload: bytes, proof: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    path = clip_file(folder, clip(0))
    path.chmod(0o600)
    path.write_bytes(payload)
    change_row(folder, clip(0), mode=PICKLE)
    assert_heals(folder)
    assert not proof.exists()


@pytest.mark.parametrize("key", ["a pickle", "../../etc/passwd", "", 7, None, "a" * 25])
@pytest.mark.parametrize("raw", [0, 1])
def test_a_row_under_a_key_that_is_no_clip_does_no_harm(
    folder: Path, payload: bytes, proof: Path, key: object, raw: int
) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    change_row(folder, clip(0), key=payload if key == "a pickle" else key, raw=raw)
    lose(CacheLayout(folder).state_database)  # so that the rows are gone through
    with Store(folder) as store:
        assert is_absent(store, clip(0))
        assert is_whole(store, clip(1))
        keep(store, clip(0))
        assert is_whole(store, clip(0))
    assert not proof.exists()


@pytest.mark.parametrize("relative", ["../../outside.mp4", "../state.sqlite", "cache.db", "", ".", "\0", "/dev/zero"])
def test_a_row_that_names_a_file_elsewhere_opens_and_removes_nothing(
    folder: Path, outside: Path, relative: str
) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    clip_file(folder, clip(0)).unlink()
    change_row(folder, clip(0), filename=relative)
    assert_heals(folder)
    assert outside.read_bytes() == b"s" * UNIT


def test_a_row_that_names_an_absolute_file_opens_and_removes_nothing(folder: Path, outside: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    clip_file(folder, clip(0)).unlink()
    change_row(folder, clip(0), filename=str(outside))
    assert_heals(folder)
    assert outside.exists()


def test_a_row_that_names_the_file_of_another_clip_is_a_miss_and_the_other_stays(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    own, other = clip_file(folder, clip(0)), clip_file(folder, clip(1))
    own.unlink()
    change_row(folder, clip(0), filename=str(other.relative_to(CacheLayout(folder).clips)))
    assert_heals(folder)


def test_a_folder_of_clips_that_leads_elsewhere_is_not_followed(folder: Path, fast_tmp_path: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
    path = clip_file(folder, clip(0))
    elsewhere = path.parent.rename(fast_tmp_path / "elsewhere")
    path.parent.symlink_to(elsewhere)
    with Store(folder) as store:
        assert is_absent(store, clip(0))
    assert (elsewhere / path.name).exists(), "removed a file that is outside of the cache directory"


GOOD: dict[str, object] = {"size": UNIT, "sha256": "0" * 64, "source": "test", "stored_at": 1.0}

TAGS: dict[str, object] = {
    "none": None,
    "empty": "",
    "number": 7,
    "bytes": b"\xff\x00",
    "not json": "{",
    "other json": "[1, 2]",
    "nothing in it": "{}",
    "wrong size": json.dumps({**GOOD, "size": UNIT - 1}),
    "size in words": json.dumps({**GOOD, "size": str(UNIT)}),
    "negative size": json.dumps({**GOOD, "size": -1}),
    "huge size": json.dumps({**GOOD, "size": 10**30}),
    "no digest": json.dumps({**GOOD, "sha256": None}),
    "time in words": json.dumps({**GOOD, "stored_at": "yesterday"}),
    "no time": json.dumps({**GOOD, "stored_at": None}),
    "time not a number": json.dumps({**GOOD, "stored_at": float("nan")}),
    "huge time": json.dumps({**GOOD, "stored_at": 10**400}),
    "half a character": json.dumps({**GOOD, "source": "\ud800"}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("database", ["as it was", "lost"])
def test_a_row_with_a_garbage_tag_is_a_miss(folder: Path, tag: object, database: str) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    change_row(folder, clip(0), tag=tag)
    if database == "lost":
        lose(CacheLayout(folder).state_database)
    assert_heals(folder)


def test_a_row_that_has_expired_is_no_exception(folder: Path) -> None:
    """The store writes no row that expires."""
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    change_row(folder, clip(0), expire_time=1.0)
    with Store(folder) as store:
        assert is_whole(store, clip(0))
        keep(store, clip(0))
        assert is_whole(store, clip(0))
        assert_in_step(folder)


# Settings of the table, and the state database


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_directory", "elsewhere"),
        ("_disk", "nothing"),
        ("disk_nonsense", 1),
        ("get", "not a function"),
        ("statistics", 1),
        ("cull_limit", 1000),
        ("size_limit", 1),
        ("eviction_policy", "least-recently-used"),
        ("disk_min_file_size", 2**40),
    ],
)
def test_settings_in_the_table_of_files_change_nothing(
    folder: Path, fast_tmp_path: Path, name: str, value: object
) -> None:
    elsewhere = fast_tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    query(
        CacheLayout(folder).clip_table,
        "INSERT OR REPLACE INTO Settings VALUES (?, ?)",
        name,
        str(elsewhere) if value == "elsewhere" else value,
    )
    with Store(folder) as store:
        assert is_whole(store, clip(0))
        keep(store, clip(2))
        assert all(is_whole(store, clip(number)) for number in range(3))
        assert_in_step(folder)
    assert list(elsewhere.iterdir()) == []


def test_a_total_that_is_wrong_does_not_lift_the_limit(folder: Path) -> None:
    with Store(folder) as store:
        keep_clips(store, 3)
    query(CacheLayout(folder).clip_table, "UPDATE Settings SET value = 0 WHERE key = 'size'")
    with Store(folder, limit=3 * UNIT) as store:
        keep(store, clip(3))
        assert len(clip_files(folder)) == 3
        assert cached_numbers(store, 4) == [1, 2, 3]


@pytest.mark.parametrize(
    ("key", "token", "owner"),
    [
        ("../../../outside", "0" * 32, "0" * 32),
        ("", "0" * 32, ""),
        (clip(0).key, "../../outside", "../../outside.mp4"),
        (clip(0).key, "", "0" * 32),
        (clip(0).key, "0" * 32, "/dev/zero"),
    ],
)
def test_an_invented_row_of_a_fetch_does_no_harm(folder: Path, outside: Path, key: str, token: str, owner: str) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
    query(CacheLayout(folder).state_database, "INSERT INTO fetch VALUES (?, ?, ?, ?)", key, token, owner, 1)
    with Store(folder) as store:
        assert is_whole(store, clip(0))
        assert_in_step(folder)
    assert outside.exists()


def test_an_invented_row_of_a_cached_clip_does_no_harm(folder: Path) -> None:
    with Store(folder, limit=2 * UNIT) as store:
        keep(store, clip(0))
        query(
            CacheLayout(folder).state_database, "INSERT INTO clip VALUES ('../x', '../y', 1, '', '', 0, 0, 1, 0, NULL)"
        )
        keep(store, clip(1))
        keep(store, clip(2))
        assert cached_numbers(store, 3) == [1, 2]
