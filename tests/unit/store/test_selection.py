"""Pages of a selection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import Catalog, compile_catalog, find_release
from kinetics_fs.store import Store, selection, selection_pages
from tests.support.annotations import csv_text
from tests.support.store import UNIT, clip, keep

CLASSES = {"archery": range(5), "zumba": range(3, 8)}
"""Numbers of the clips of two classes. Clips 3 and 4 are in both."""


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    rows = [
        f"{label},{clip(number).youtube_id},{clip(number).start},{clip(number).end},train"
        for label, numbers in CLASSES.items()
        for number in numbers
    ]
    file = tmp_path / "rows.csv"
    file.write_text(csv_text(rows))
    with Catalog(compile_catalog([file], find_release("600"), tmp_path / "catalogs")) as catalog:
        yield catalog


def test_pages_have_every_clip_in_catalog_order(
    catalog: Catalog, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_PAGE_SIZE", 2)

    pages = list(selection_pages(catalog, store))

    assert [entry for page in pages for entry in page.entries] == list(catalog.clips())
    assert [len(page.entries) for page in pages] == [2, 2, 1, 2, 2, 1]
    assert all(entry.directory == page.directory.ino for page in pages for entry in page.entries)


def test_pages_tell_cached_clips_from_evicted_and_unknown_ones(catalog: Catalog, store: Store) -> None:
    keep(store, clip(3))
    keep(store, clip(4))
    store.remove(clip(4))

    archery, zumba = selection_pages(catalog, store)

    for page in (archery, zumba):
        assert page.sizes == {clip(3).key: (UNIT, True), clip(4).key: (UNIT, False)}
        assert [entry.clip for entry in page.entries if page.is_cached(entry)] == [clip(3)]
    assert archery.keys == [entry.clip.key for entry in archery.entries]
