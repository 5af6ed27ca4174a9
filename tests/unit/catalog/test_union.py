"""Catalogs of several lists and of archives: precedence, origins, and lists that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kinetics_fs.catalog import UNLABELED, AnnotationList, Catalog, Clip, Release, compile_catalog
from kinetics_fs.errors import CatalogError
from tests.support.annotations import csv_text
from tests.support.annotations import release as release

NO_LABEL = "youtube_id,time_start,time_end,split"


class Archives:
    """Class archives: rows of archive, split, label and id."""

    def __init__(self, *rows: tuple[str, str, str, str], stamp: str = "1") -> None:
        self.stamp = stamp
        self._rows = rows

    def clips(self, labels: Sequence[str]) -> Iterator[tuple[str, str, str, Clip]]:
        for archive, split, label, youtube_id in self._rows:
            if label in labels:
                yield archive, split, label, Clip(youtube_id, 0, 10)


@pytest.fixture
def lists(tmp_path: Path) -> Iterator[list[Path]]:
    """Two labelled lists, of which the second relabels a clip, and one without labels."""
    texts = [
        csv_text(["surfing,aaaaaaaaaaa,0,10,train", "diving,bbbbbbbbbbb,0,10,train", "diving,bbbbbbbbbbb,0,10,test"]),
        csv_text(["diving,aaaaaaaaaaa,0,10,train", "zumba,ccccccccccc,0,10,train"]),
        csv_text(["aaaaaaaaaaa,0,10,train", "ccccccccccc,0,10,test", "ddddddddddd,0,10,train"], NO_LABEL),
    ]
    paths = []
    for name, text in zip(("first.csv", "second.csv", "third.csv"), texts, strict=True):
        path = tmp_path / name
        path.write_text(text)
        paths.append(path)
    yield paths


def contents(path: Path) -> set[str]:
    """Return split/label/first letter of the id of each clip."""
    with Catalog(path) as catalog:
        found = set()
        for entry in catalog.clips():
            directory = catalog.directory(entry.directory)
            assert directory is not None
            found.add(f"{directory.split}/{directory.label}/{entry.clip.youtube_id[0]}")
        return found


def test_a_labelled_row_wins_over_one_without_a_label(lists: list[Path], release: Release, tmp_path: Path) -> None:
    expected = {
        *("train/surfing/a", "train/diving/a", "train/diving/b", "train/zumba/c", f"train/{UNLABELED}/d"),
        *("test/diving/b", f"test/{UNLABELED}/c"),
    }
    for order in (lists, lists[::-1]):
        assert contents(compile_catalog(order, release, tmp_path / "catalogs")) == expected


def test_the_first_list_of_a_union_decides_the_label(lists: list[Path], release: Release, tmp_path: Path) -> None:
    union = contents(compile_catalog(lists, release, tmp_path, union=True))
    assert union == {
        *("train/surfing/a", "train/diving/b", "train/zumba/c", f"train/{UNLABELED}/d"),
        *("test/diving/b", f"test/{UNLABELED}/c"),
    }
    other = contents(compile_catalog([lists[1], lists[2], lists[0]], release, tmp_path, union=True))
    assert other == union - {"train/surfing/a"} | {"train/diving/a"}


def test_two_labels_of_one_list_both_count_in_a_union(lists: list[Path], release: Release, tmp_path: Path) -> None:
    lists[0].write_text(csv_text(["surfing,aaaaaaaaaaa,0,10,train", "diving,aaaaaaaaaaa,0,10,train"]))
    union = contents(compile_catalog(lists, release, tmp_path, union=True))
    assert {"train/surfing/a", "train/diving/a"} <= union


def test_archives_add_the_clips_that_no_list_labels(lists: list[Path], release: Release, tmp_path: Path) -> None:
    archives = Archives(
        ("600/train/diving.tar.gz", "train", "diving", "aaaaaaaaaaa"),  # labelled by a list
        ("600/train/diving.tar.gz", "train", "diving", "bbbbbbbbbbb"),
        ("600/train/diving.tar.gz", "train", "diving", "ddddddddddd"),  # without a label in a list
        ("600/train/diving.tar.gz", "train", "diving", "eeeeeeeeeee"),  # in no list
        ("600/val/zumba.tar.gz", "validation", "zumba", "ccccccccccc"),  # in another split of the lists
        ("600/train/zumba.tar.gz", "train", "zumba", "eeeeeeeeeee"),  # in an earlier archive
        ("600/train/unknown.tar.gz", "train", "unknown", "fffffffffff"),
    )
    path = compile_catalog(lists, release, tmp_path, archives=archives)
    assert contents(path) == {
        *("train/surfing/a", "train/diving/a", "train/diving/b", "train/zumba/c", "train/diving/d", "train/diving/e"),
        *("test/diving/b", f"test/{UNLABELED}/c", "validation/zumba/c"),
    }
    with Catalog(path) as catalog:
        assert [(origin.kind, origin.name, origin.clips) for origin in catalog.origins()] == [
            ("list", "first.csv", {"train": 2, "test": 1}),
            ("list", "second.csv", {"train": 2}),
            ("list", "third.csv", {"test": 1}),
            ("archive", "600/train/diving.tar.gz", {"train": 2}),
            ("archive", "600/val/zumba.tar.gz", {"validation": 1}),
        ]


def test_archives_change_no_inode_and_no_class_index(lists: list[Path], release: Release, tmp_path: Path) -> None:
    archives = Archives(("600/train/diving.tar.gz", "train", "diving", "-eeeeeeeeee"))
    with (
        Catalog(compile_catalog(lists, release, tmp_path)) as before,
        Catalog(compile_catalog(lists, release, tmp_path, archives=archives)) as after,
    ):
        assert before.labels() == after.labels()
        assert set(before.clips()) < set(after.clips())
        inos = [
            {one.ino for split in catalog.splits() for one in catalog.classes(split)} for catalog in (before, after)
        ]
        assert inos[0] == inos[1]


def test_digests(lists: list[Path], release: Release, tmp_path: Path) -> None:
    def opened(archives: Archives | None) -> Catalog:
        with Catalog(compile_catalog(lists, release, tmp_path, archives=archives)) as catalog:
            return catalog

    row = ("600/train/diving.tar.gz", "train", "diving", "eeeeeeeeeee")
    other_archive = ("600/train/diving.tar", *row[1:])
    plain, more = opened(None), opened(Archives(row))
    assert plain.digest == plain.annotations_digest == more.annotations_digest != more.digest
    assert opened(Archives(other_archive, stamp="2")).digest == more.digest, "the clips count, not the archives"
    nothing_more = opened(Archives(("600/train/diving.tar.gz", "train", "diving", "bbbbbbbbbbb"), stamp="3"))
    assert nothing_more.digest == plain.digest


def test_catalogs_of_fewer_archives_are_removed(lists: list[Path], release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "catalogs"
    plain = compile_catalog(lists, release, folder)
    row = ("600/train/diving.tar.gz", "train", "diving", "eeeeeeeeeee")
    first = compile_catalog(lists, release, folder, archives=Archives(row, stamp="1"))
    with Catalog(first):
        second = compile_catalog(lists, release, folder, archives=Archives(row, stamp="2"))
        assert set(folder.iterdir()) == {plain, first, second}, "a catalog in use stays"
    third = compile_catalog(lists, release, folder, archives=Archives(row, stamp="3"))
    assert set(folder.iterdir()) == {plain, third}


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"label,something\nx,y\n", b"\x1f\x8bdamaged"])
def test_a_list_that_cannot_be_read_costs_only_its_clips(
    lists: list[Path], release: Release, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    expected = contents(compile_catalog(lists, release, tmp_path, union=True))
    bad = tmp_path / "val.txt"
    bad.write_bytes(content)
    caplog.set_level(logging.WARNING)
    path = compile_catalog([*lists, bad], release, tmp_path, union=True)
    assert contents(path) == expected
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("cannot read ") and warning.endswith("; clips that no other list names are left out")
    with pytest.raises(CatalogError):
        compile_catalog([*lists, bad], release, tmp_path)
    with pytest.raises(CatalogError):
        compile_catalog([bad], release, tmp_path, union=True)


def test_a_list_in_an_unknown_format_brings_no_labels_of_its_own(
    lists: list[Path], release: Release, tmp_path: Path
) -> None:
    extra = tmp_path / "train.txt"
    extra.write_text(csv_text(["Zumba_!,eeeeeeeeeee,0,10,train", "zumba,fffffffffff,0,10,train"]))
    path = compile_catalog([*lists, AnnotationList(extra, known_labels=True)], release, tmp_path, union=True)
    assert {f"train/{UNLABELED}/e", "train/zumba/f"} <= contents(path)
    with Catalog(path) as catalog:
        assert catalog.labels() == ["diving", "surfing", "zumba"]
