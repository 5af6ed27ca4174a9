"""Fixtures of the tests of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Catalog, Release, compile_catalog
from tests.support.annotations import HEADER, csv_text
from tests.support.annotations import release as release


@pytest.fixture
def catalog_of(tmp_path: Path, release: Release) -> Callable[..., Catalog]:
    """Compile rows (`label,id,start,end,split`) and open the catalog."""

    def make(*rows: str, header: str = HEADER) -> Catalog:
        source = tmp_path / "rows.csv"
        source.write_text(csv_text(rows, header))
        return Catalog(compile_catalog([source], release, tmp_path / "catalogs"))

    return make
