from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinetics_fs.catalog import (
    UNLABELED,
    Catalog,
    Clip,
    Release,
    catalog,
    compile_catalog,
    database,
    find_release,
    read_annotations,
)
from kinetics_fs.catalog import compile as compiling
from kinetics_fs.catalog import inodes as numbers
from kinetics_fs.errors import CatalogError
from tests.support.annotations import csv_text, youtube_id

ROWS = [
    "surfing water,bbbbbbbbbbb,20,30,train",
    "abseiling,-aaaaaaaaaa,5,15,val",
    "surfing water,bbbbbbbbbbb,5,15,train",
    "Abseiling,ccccccccccc,1,11,train",
    ",ddddddddddd,1,11,test",
]


def tree(catalog: Catalog) -> dict[str, list[str]]:
    return {
        f"{split.split}/{directory.label}": [entry.clip.name for entry in catalog.entries(directory)]
        for split in catalog.splits()
        for directory in catalog.classes(split)
    }


def paths(catalog: Catalog) -> dict[str, int]:
    """Return canonical path → inode number for every entry."""
    found = {split.split: split.ino for split in catalog.splits()}
    for split in catalog.splits():
        for directory in catalog.classes(split):
            found[f"{split.split}/{directory.label}"] = directory.ino
            for entry in catalog.entries(directory):
                found[f"{split.split}/{directory.label}/{entry.clip.name}"] = entry.ino
    return found


# Content


def test_the_tree(catalog_of: Callable[..., Catalog], release: Release) -> None:
    with catalog_of(*ROWS) as catalog:
        assert tree(catalog) == {
            "train/Abseiling": ["ccccccccccc_000001_000011.mp4"],
            "train/surfing water": ["bbbbbbbbbbb_000005_000015.mp4", "bbbbbbbbbbb_000020_000030.mp4"],
            "validation/abseiling": ["-aaaaaaaaaa_000005_000015.mp4"],
            f"test/{UNLABELED}": ["ddddddddddd_000001_000011.mp4"],
        }
        assert [(split.split, split.label, split.parent, split.clips) for split in catalog.splits()] == [
            ("train", None, 0, 3),
            ("validation", None, 0, 1),
            ("test", None, 0, 1),
        ]
        assert catalog.labels() == ["Abseiling", "abseiling", "surfing water"]
        assert (catalog.release, catalog.published) == (release.name, release.published)
        assert catalog.clip_count == 5
        assert catalog.duplicates == 0


def test_names_are_in_byte_order(catalog_of: Callable[..., Catalog]) -> None:
    ids = ["_aaaaaaaaaa", "-aaaaaaaaaa", "0aaaaaaaaaa", "Aaaaaaaaaaa", "aaaaaaaaaaa"]
    with catalog_of(*(f"x,{name},{start},{start + 10},train" for name in ids for start in (100, 9))) as catalog:
        (names,) = tree(catalog).values()
        assert names == sorted(names, key=str.encode)
        assert len(names) == 10


def test_finding(catalog_of: Callable[..., Catalog]) -> None:
    with catalog_of(*ROWS, "surfing water,-aaaaaaaaaa,5,15,train", "x,bbbbbbbbbbb,5,15,train") as catalog:
        entries = list(catalog.clips())
        assert len(entries) == catalog.clip_count == 7
        for entry in entries:
            directory = catalog.directory(entry.directory)
            assert directory is not None
            assert catalog.find(directory, entry.clip) == entry.ino
            assert catalog.entry(entry.ino) == entry
        twice = Clip("-aaaaaaaaaa", 5, 15)
        assert catalog.locate(twice) == [entry for entry in entries if entry.clip == twice]
        assert len(catalog.locate(twice)) == 2

        train, validation, _ = catalog.splits()
        assert catalog.find(catalog.classes(train)[0], twice) is None
        assert catalog.find(validation, twice) is None
        assert catalog.locate(Clip("-aaaaaaaaaa", 5, 16)) == []
        assert catalog.entry(entries[0].ino + 1) is None
        assert catalog.entry(train.ino) is None
        assert catalog.directory(entries[0].ino) is None
        assert catalog.directory(1) is None
        assert catalog.directory(validation.ino) == validation
        with pytest.raises(ValueError, match="has classes"):
            catalog.entries(train)


def test_pages(catalog_of: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{label},{youtube_id(number)},0,10,train" for label in "ab" for number in range(10)]
    with catalog_of(*rows) as opened:
        first, second = opened.classes(opened.splits()[0])
        whole = opened.entries(second)
        assert opened.entries(second, 0, 4) + opened.entries(second, 4, 4) + opened.entries(second, 8) == whole
        assert opened.entries(first, 8, 4) == opened.entries(first)[8:]
        assert opened.entries(first, 10) == opened.entries(first, 99, 5) == opened.entries(first, 3, 0) == []
        monkeypatch.setattr(catalog, "_PAGE_SIZE", 3)
        assert list(opened.clips()) == opened.entries(first) + whole


def test_duplicates_are_merged_and_counted(catalog_of: Callable[..., Catalog]) -> None:
    with catalog_of(*ROWS, ROWS[0], "surfing water,bbbbbbbbbbb,020,30.0,train") as catalog:
        assert catalog.clip_count == 5
        assert catalog.duplicates == 2


def test_refusals_are_kept_and_counted(
    catalog_of: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "MAX_REFUSALS", 2)
    with (
        caplog.at_level(logging.WARNING),
        catalog_of("x,bad,1,2,train", *ROWS, "a/b,aaaaaaaaaaa,1,2,train", "x") as made,
    ):
        refusals = made.refusals()
    assert refusals.total == 3
    assert refusals.by_reason == {"bad YouTube id": 1, "label has a slash": 1, "wrong number of fields": 1}
    assert [(refusal.file, refusal.line, refusal.text) for refusal in refusals.first] == [
        ("rows.csv", 2, "x,bad,1,2,train"),
        ("rows.csv", 8, "a/b,aaaaaaaaaaa,1,2,train"),
    ]
    assert "the first is rows.csv:2" in caplog.text


def test_several_files_make_one_catalog(tmp_path: Path, release: Release) -> None:
    files = [tmp_path / "train.csv", tmp_path / "test.csv"]
    files[0].write_text(csv_text(ROWS[:4]))
    files[1].write_text(csv_text(["ddddddddddd,1,11,test"], header="youtube_id,time_start,time_end,split"))
    with Catalog(compile_catalog(files, release, tmp_path)) as catalog:
        assert [split.split for split in catalog.splits()] == ["train", "validation", "test"]


NO_SPLIT = csv_text(["x,ddddddddddd,1,11"], header="label,youtube_id,time_start,time_end")


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("k600_val.csv", None, "validation"),
        ("k600_val.csv", "train", "validation"),
        ("rows.csv", "test", "test"),
    ],
)
def test_rows_without_a_split_take_it_from_the_name_or_the_caller(
    tmp_path: Path, release: Release, name: str, split: str | None, expected: str
) -> None:
    file = tmp_path / name
    file.write_text(NO_SPLIT)
    with Catalog(compile_catalog([file], release, tmp_path, split=split)) as catalog:
        assert [split.split for split in catalog.splits()] == [expected]


def test_a_catalog_of_rows_with_a_split_depends_on_no_other(tmp_path: Path, release: Release) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(csv_text(ROWS))
    path = compile_catalog([file], release, tmp_path)
    assert compile_catalog([file.rename(tmp_path / "train.csv")], release, tmp_path, split="test") == path


def test_a_catalog_is_built_again_when_the_split_of_its_rows_changes(tmp_path: Path, release: Release) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(NO_SPLIT)
    assert compile_catalog([file], release, tmp_path, split="train") != compile_catalog(
        [file], release, tmp_path, split="test"
    )


def test_rows_without_any_split_are_an_error_that_names_the_cure(tmp_path: Path, release: Release) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(NO_SPLIT)
    with pytest.raises(CatalogError, match=r"rows\.csv: its rows have no split; add a column split, .* --split"):
        compile_catalog([file], release, tmp_path / "catalogs")


def test_too_many_classes_are_refused(catalog_of: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_CLASSES", 4)
    catalog_of(*ROWS).close()
    with pytest.raises(CatalogError, match="too many for a release"):
        catalog_of(*ROWS, "one more,eeeeeeeeeee,1,11,train")


# Inode numbers


def test_numbers_are_known_for_ever(catalog_of: Callable[..., Catalog]) -> None:
    """Programs store inode numbers (in archives, in lists of copied files), so they must never change."""
    with catalog_of(*ROWS) as catalog:
        found = paths(catalog)
    assert found["train"] == 5661189601110975161
    assert found["train/surfing water"] == 6351596404441629016
    assert found["train/surfing water/bbbbbbbbbbb_000005_000015.mp4"] == 2689945928668639481


def test_numbers_do_not_depend_on_company_or_order(catalog_of: Callable[..., Catalog]) -> None:
    with catalog_of(*ROWS) as catalog:
        few = paths(catalog)
    more = [f"{label},{youtube_id(number)},0,10,train" for label in ("aaa", "surfing water") for number in range(500)]
    with catalog_of(*more, *reversed(ROWS)) as catalog:
        many = paths(catalog)
    assert len(many) == len(set(many.values()))
    assert {path: many[path] for path in few} == few


def test_numbers_tell_what_they_stand_for(catalog_of: Callable[..., Catalog]) -> None:
    with catalog_of(*ROWS) as catalog:
        for path, number in paths(catalog).items():
            low, high = (2**32, 2**62) if path.endswith(".mp4") else (2**62, 2**63)
            assert low <= number < high


def test_colliding_numbers_are_parted_the_same_way_every_time(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"x{number % 40},{youtube_id(number)},0,10,train" for number in range(300)]
    real = numbers._hash
    monkeypatch.setattr(numbers, "_hash", lambda path, attempt: real(path, attempt) % 1000)
    (tmp_path / "one.csv").write_text(csv_text(rows))
    (tmp_path / "two.csv").write_text(csv_text(reversed(rows)))
    with (
        Catalog(compile_catalog([tmp_path / "one.csv"], release, tmp_path)) as one,
        Catalog(compile_catalog([tmp_path / "two.csv"], release, tmp_path)) as two,
    ):
        assert one.path != two.path
        assert paths(one) == paths(two)
        assert len({entry.ino for entry in one.clips()}) == 300
        assert len({directory.ino for directory in one.classes(one.splits()[0])}) == 40
        assert max(entry.ino for entry in one.clips()) < 2**32 + 1000


# When a catalog is built, and what it survives


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "rows.csv"
    source.write_text(csv_text(ROWS))
    return source


def test_a_catalog_is_built_again_only_when_its_input_changes(tmp_path: Path, source: Path, release: Release) -> None:
    folder = tmp_path / "catalogs"
    path = compile_catalog([source], release, folder)
    built = path.stat().st_ino
    os.utime(source, (0, 0))
    moved = source.rename(tmp_path / "elsewhere.csv")
    assert compile_catalog([moved], release, folder) == path
    assert path.stat().st_ino == built

    assert compile_catalog([moved], find_release("700"), folder) != path
    assert compile_catalog([moved, moved], release, folder) != path
    moved.write_text(csv_text(ROWS[1:]))
    assert compile_catalog([moved], release, folder) != path
    assert sorted(folder.glob("*")) == sorted(folder.glob("*.sqlite"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)  # less than a page: SQLite itself would not notice


def garble(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE clip (row)")


def outdate(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


def rename(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE info SET value = 'another' WHERE key = 'digest'")


@pytest.mark.parametrize("damage", [truncate, garble, empty, foreign, outdate, rename])
def test_a_damaged_catalog_is_built_again(
    tmp_path: Path, source: Path, release: Release, damage: Callable[[Path], None]
) -> None:
    path = compile_catalog([source], release, tmp_path)
    damage(path)
    if damage is not rename:
        with pytest.raises(CatalogError):
            Catalog(path)
    assert compile_catalog([source], release, tmp_path) == path
    with Catalog(path) as catalog:
        assert catalog.clip_count == 5


def test_damage_further_in_is_an_expected_error(catalog_of: Callable[..., Catalog]) -> None:
    made = catalog_of(*(f"x,{youtube_id(number)},0,10,train" for number in range(2000)))
    made.close()
    content = bytearray(made.path.read_bytes())
    content[len(content) // 4 : -4096] = b"\xff" * (len(content) * 3 // 4 - 4096)
    made.path.write_bytes(content)
    with pytest.raises(CatalogError, match="is damaged"), Catalog(made.path) as catalog:
        list(catalog.clips())


def test_there_is_no_catalog(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"cannot read .* does not exist"):
        Catalog(tmp_path / "none.sqlite")


@pytest.mark.parametrize("content", [csv_text(["bad"]), "x,y\n"])
def test_a_failed_build_leaves_nothing(tmp_path: Path, source: Path, release: Release, content: str) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(content)
    with pytest.raises(CatalogError, match=r"bad\.csv"):
        compile_catalog([source, bad], release, tmp_path / "catalogs")
    assert list((tmp_path / "catalogs").glob("*")) == []


def test_a_list_is_hashed_once_for_several_catalogs(
    tmp_path: Path, source: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_catalog([source], release, tmp_path / "catalogs")
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", None)
        assert compile_catalog([source], release, tmp_path / "catalogs") == first
    source.write_text(csv_text(ROWS[:2]))
    assert compile_catalog([source], release, tmp_path / "catalogs") != first


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, source: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path, *, split: str | None) -> Iterator[object]:
        path.write_text(csv_text(ROWS[:2]))
        return read_annotations(path, split=split)

    monkeypatch.setattr(compiling, "read_annotations", changing)
    with pytest.raises(CatalogError, match="changed while"):
        compile_catalog([source], release, tmp_path / "catalogs")
    assert list((tmp_path / "catalogs").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(source: Path, release: Release) -> None:
    with pytest.raises(CatalogError, match="cannot build a catalog in"):
        compile_catalog([source], release, source / "catalogs")
    with pytest.raises(CatalogError, match=r"cannot read .*: No such file"):
        compile_catalog([source.with_name("none.csv")], release, source)


def _compile_and_list(source: Path, folder: Path) -> list[str]:
    with Catalog(compile_catalog([source], find_release("600"), folder)) as catalog:
        return [entry.clip.key for entry in catalog.clips()]


def test_processes_that_compile_at_once_agree(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text(csv_text(f"x,{youtube_id(number)},0,10,train" for number in range(5000)))
    folder = tmp_path / "catalogs"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        listings = pool.starmap(_compile_and_list, [(source, folder)] * 8, chunksize=1)
    assert len(listings[0]) == 5000
    assert all(listing == listings[0] for listing in listings)
    assert len(list(folder.iterdir())) == 1


# Threads, age


def test_threads_share_a_catalog(catalog_of: Callable[..., Catalog]) -> None:
    with catalog_of(*(f"x,{youtube_id(number)},0,10,train" for number in range(500))) as catalog:
        entries = list(catalog.clips())
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda entry: catalog.entry(entry.ino), entries)) == entries


def test_a_closed_catalog_says_so(catalog_of: Callable[..., Catalog]) -> None:
    catalog = catalog_of(*ROWS)
    files = Path("/dev/fd")
    open_files = len(list(files.iterdir()))
    catalog.close()
    with pytest.raises(ValueError, match="is closed"):
        catalog.locate(Clip("bbbbbbbbbbb", 20, 30))
    assert len(list(files.iterdir())) == open_files - 2


def test_old_catalogs_are_pruned(
    tmp_path: Path, source: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MAX_CATALOGS", 2)
    now = time.time()

    def file(name: str, days: float) -> Path:
        path = tmp_path / name
        path.write_bytes(b"")
        os.utime(path, (now - days * 86_400,) * 2)
        return path

    used = compile_catalog([source], release, tmp_path)
    os.utime(used, (0, 0))
    assert compile_catalog([source], release, tmp_path) == used  # which is a use
    old = [file("a.sqlite", 2), file("b.sqlite", 3)]
    crashed = file(".c-0123.tmp", 2)
    building = file(".d-0123.tmp", 0.1)
    reserved = file("e.sqlite", 9)
    recent = file("f.sqlite", 0.5)
    with database.in_use(reserved):
        database.prune(tmp_path)
    assert not any(path.exists() for path in [*old, crashed])
    assert all(path.exists() for path in [used, building, reserved, recent])
    database.prune(tmp_path)
    assert not reserved.exists()
