"""Annotation files: their text, and fixtures that read them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from kinetics_fs.catalog import Annotation, Clip, Refusal, Release, find_release, read_annotations

HEADER = "label,youtube_id,time_start,time_end,split"


def youtube_id(number: int) -> str:
    """Return a valid id that is different for each number; about half of them begin with `-`."""
    return f"{'-' if number % 2 else 'a'}{number:010d}"


def csv_text(rows: Iterable[str], header: str = HEADER) -> str:
    """Return the text of an annotation file."""
    return "\n".join([header, *rows, ""])


class Labelled(NamedTuple):
    """A row of an annotation file."""

    label: str
    clip: Clip
    split: str


def write_annotations(path: Path, rows: Iterable[Labelled]) -> Path:
    """Write an annotation file in the format of the Kinetics crawlers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([row.label, *row.clip, row.split] for row in rows)
    return path


def write_and_read(path: Path, content: bytes | str) -> list[Annotation | Refusal]:
    """Write an annotation file, and read it."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_annotations(path))


@pytest.fixture
def release() -> Release:
    return find_release("600")
