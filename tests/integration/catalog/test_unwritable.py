"""Catalogs on a disk that cannot be written: those that exist are used, and others are built elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Catalog, Release, Selection, compile_catalog, select
from kinetics_fs.errors import CatalogError
from tests.support.annotations import csv_text, youtube_id
from tests.support.annotations import release as release
from tests.support.store import SmallDisk, fill
from tests.support.store_fixtures import make_read_only
from tests.support.store_fixtures import small_disk as small_disk

ROWS = [f"{label},{youtube_id(number)},0,10,val" for number, label in enumerate(["zumba", "yoga", "yoga"])]
YOGA = Selection(classes=("yoga",))

UNWRITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "read-only": (make_read_only, "the disk is mounted read-only; mount it for writing"),
    "full": (fill, "the disk is full; free space on it"),
}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(params=UNWRITABLE)
def damage(request: pytest.FixtureRequest) -> tuple[Callable[[Path], object], str]:
    return UNWRITABLE[request.param]


def test_a_catalog_that_exists_is_used_and_a_selection_is_built_elsewhere(
    small_disk: SmallDisk,
    tmp_path: Path,
    release: Release,
    temporary: Path,
    damage: tuple[Callable[[Path], object], str],
) -> None:
    source, disk = tmp_path / "rows.csv", small_disk(2_000_000)
    source.write_text(csv_text(ROWS))
    path = compile_catalog([source], release, disk / "catalogs")
    damage[0](disk)
    assert compile_catalog([source], release, disk / "catalogs") == path
    with Catalog(path) as whole, select(whole, YOGA, path.parent) as first, select(whole, YOGA, path.parent) as second:
        assert (whole.clip_count, first.clip_count) == (3, 2)
        assert first.path == second.path
        assert first.path.is_relative_to(temporary)
        assert first.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_catalog_that_can_be_built_nowhere_is_an_error_that_names_the_cause(
    small_disk: SmallDisk,
    tmp_path: Path,
    release: Release,
    temporary: Path,
    damage: tuple[Callable[[Path], object], str],
) -> None:
    source, disk = tmp_path / "rows.csv", small_disk(2_000_000)
    source.write_text(csv_text(ROWS))
    damage[0](disk)
    of_another_user = temporary / f"kinetics-fs-{os.geteuid()}-catalogs"
    of_another_user.mkdir()
    of_another_user.chmod(0o777)
    with pytest.raises(CatalogError, match=damage[1]):
        compile_catalog([source], release, disk)
    assert list(of_another_user.iterdir()) == []
    of_another_user.chmod(0o700)
    with Catalog(compile_catalog([source], release, disk)) as catalog:
        assert catalog.clip_count == 3
        assert catalog.path.parent == of_another_user
