"""Turns annotation files into one catalog.

Rows stream from the parser into a table on disk, and SQLite sorts and merges them from there, so that memory does not
grow with their number.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.annotations import Refusal, read_annotations
from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.containers import readable
from kinetics_fs.catalog.database import CLIP_PATH, SCHEMA_VERSION, catalog_path, new_database, touch
from kinetics_fs.catalog.inodes import directory_number
from kinetics_fs.catalog.naming import SPLITS, UNLABELED
from kinetics_fs.catalog.releases import Release
from kinetics_fs.errors import CatalogError

KEPT_REFUSALS = 1000
"""So many refused rows are kept with their text; all are counted."""
MAX_PLACES = 1 << 16
"""The most classes, counted once for each split. They are held in memory; the largest release has 2,101."""

_log = logging.getLogger(__name__)


def compile_catalog(files: Sequence[Path], release: Release, folder: Path) -> Path:
    """The catalog of these annotation files: the one in `folder` if it is there, else a new one.

    The name of the catalog is a hash of the files' contents in their order, of the release and of our schema, so it is
    built again exactly when one of these changes. Rows that say the same (split, label, clip) are merged and counted.

    Raises:
        CatalogError: a file cannot be read or has no good row; or the catalog cannot be written.
    """
    digest = _digest(files, release)
    path = catalog_path(folder, digest)
    if reuse(path, digest):
        return path

    started = time.monotonic()
    refusals = _RefusalBook()
    info = {"release": release.name, "published": release.published.isoformat(), "digest": digest}
    with new_database(path, info) as connection:
        staged = _stage(connection, files, refusals)
        _fill(connection, staged.places)
        refusals.write(connection)
        [(clips,)] = connection.execute("SELECT count(*) FROM clip")
        connection.execute("INSERT INTO info VALUES ('duplicates', ?)", (str(staged.rows - clips),))
        if _digest(files, release) != digest:
            raise CatalogError("the annotation files changed while they were read; try again")
    _log.info("compiled %s clips of Kinetics-%s in %.1f s", f"{clips:,}", release.name, time.monotonic() - started)
    refusals.report()
    return path


def reuse(path: Path, digest: str) -> bool:
    """Whether the catalog with this digest is at `path` and sound; if so it is marked as used."""
    try:
        with Catalog(path) as catalog:
            if catalog.digest != digest:
                return False
    except CatalogError:
        return False
    touch(path)
    return True


def _digest(files: Sequence[Path], release: Release) -> str:
    total = hashlib.sha256(f"catalog {SCHEMA_VERSION} {release.name}\n".encode())
    for path in files:
        with readable(path), path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


class _RefusalBook:
    """Counts what was refused, and keeps the first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: list[Refusal] = []

    def add(self, refusal: Refusal) -> None:
        self._counts[refusal.reason] += 1
        if len(self._first) < KEPT_REFUSALS:
            self._first.append(refusal)

    def write(self, connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO refusal VALUES (?, ?, ?, ?)", self._first)
        connection.executemany("INSERT INTO refusal_count VALUES (?, ?)", self._counts.items())

    def report(self) -> None:
        if self._first:
            first = self._first[0]
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in self._counts.most_common())
            _log.warning("refused rows of annotations: %s; the first is %s:%d", reasons, first.file, first.line)


class _Staged(NamedTuple):
    """How many rows were staged, and the number that stands in them for each (split, label)."""

    rows: int
    places: dict[tuple[str, str], int]


def _stage(connection: sqlite3.Connection, files: Iterable[Path], refusals: _RefusalBook) -> _Staged:
    """Puts all good rows, as they come, into a temporary table."""
    connection.execute('CREATE TEMP TABLE staged (place INTEGER, youtube_id TEXT, start INTEGER, "end" INTEGER)')
    places: dict[tuple[str, str], int] = {}

    def rows() -> Iterator[tuple[int, str, int, int]]:
        for path in files:
            for row in read_annotations(path):
                if isinstance(row, Refusal):
                    refusals.add(row)
                    continue
                split, label, clip = row
                place = split, label
                if place not in places:
                    if len(places) == MAX_PLACES:
                        raise CatalogError(f"{path.name} names too many classes to be a release of Kinetics")
                    places[place] = len(places)
                yield places[place], *clip

    rows_staged = connection.executemany("INSERT INTO staged VALUES (?, ?, ?, ?)", rows()).rowcount
    return _Staged(rows_staged, places)


def _fill(connection: sqlite3.Connection, places: dict[tuple[str, str], int]) -> None:
    """Sorts what was staged into place."""
    taken: set[int] = set()
    parents = {split: _new_number(split, taken) for split in SPLITS}
    for split, number in parents.items():
        connection.execute("INSERT INTO directory VALUES (NULL, ?, 0, ?, NULL, 0, 0)", (number, split))
    connection.execute("CREATE TEMP TABLE directory_of (place INTEGER PRIMARY KEY, directory INTEGER)")
    for split, label in sorted(places, key=lambda place: (SPLITS.index(place[0]), place[1])):
        number = _new_number(f"{split}/{label}", taken)
        directory = connection.execute(
            "INSERT INTO directory VALUES (NULL, ?, ?, ?, ?, 0, 0)", (number, parents[split], split, label)
        ).lastrowid
        connection.execute("INSERT INTO directory_of VALUES (?, ?)", (places[split, label], directory))
    labels = sorted({label for _, label in places} - {UNLABELED})
    connection.executemany("INSERT INTO label VALUES (?, ?)", enumerate(labels))
    connection.execute(
        f"""
        INSERT INTO clip (directory, youtube_id, start, "end", ino)
        SELECT sorted.directory, youtube_id, start, "end", clip_number({CLIP_PATH}, 0)
        FROM (
            SELECT directory, youtube_id, start, "end" FROM staged JOIN directory_of USING (place)
            GROUP BY directory, youtube_id, start, "end"
            ORDER BY directory, youtube_id, start, "end"
        ) AS sorted
        CROSS JOIN directory ON directory.id = sorted.directory
        """
    )


def _new_number(path: str, taken: set[int]) -> int:
    """The inode number of a directory, hashed again in the unlikely case that another has it."""
    tries = (directory_number(path, attempt) for attempt in count())
    number = next(number for number in tries if number not in taken)
    taken.add(number)
    return number
