from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Annotation, Catalog, Refusal, Release, compile_catalog, find_release, read_annotations

HEADER = "label,youtube_id,time_start,time_end,split"


def youtube_id(number: int) -> str:
    """Return a valid id that is different for each number; about half of them begin with `-`."""
    return f"{'-' if number % 2 else 'a'}{number:010d}"


def csv_text(rows: Iterable[str], header: str = HEADER) -> str:
    return "\n".join([header, *rows, ""])


def write_and_read(path: Path, content: bytes | str) -> list[Annotation | Refusal]:
    """Write an annotation file, and read it."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_annotations(path))


@pytest.fixture
def release() -> Release:
    return find_release("600")


@pytest.fixture
def catalog_of(tmp_path: Path, release: Release) -> Callable[..., Catalog]:
    """Compile rows (`label,id,start,end,split`) and open the catalog."""

    def make(*rows: str, header: str = HEADER) -> Catalog:
        source = tmp_path / "rows.csv"
        source.write_text(csv_text(rows, header))
        return Catalog(compile_catalog([source], release, tmp_path / "catalogs"))

    return make
