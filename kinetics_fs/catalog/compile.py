"""Compilation of annotation files into a catalog.

Rows are streamed from the parser into a table on the disk, where SQLite sorts and merges them, so that memory does not
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

from kinetics_fs.catalog.annotations import Refusal, needs_split, read_annotations
from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.containers import readable
from kinetics_fs.catalog.database import CLIP_PATH, SCHEMA_VERSION, catalog_path, new_database, touch
from kinetics_fs.catalog.inodes import directory_ino
from kinetics_fs.catalog.naming import SPLITS, UNLABELED, split_of_file_name
from kinetics_fs.catalog.releases import Release
from kinetics_fs.errors import CatalogError

MAX_REFUSALS = 1000
"""Number of refused rows that are stored with their text. All are counted."""
MAX_CLASSES = 1 << 16
"""Maximum number of classes in all splits together. They are kept in memory; the largest release has 2,101."""

_log = logging.getLogger(__name__)

_List = tuple[Path, str | None]
"""An annotation file, and the split of its rows if they name none."""


def compile_catalog(files: Sequence[Path], release: Release, folder: Path, *, split: str | None = None) -> Path:
    """Return the path of the catalog of annotation files: the one in `folder` if it exists, else a new one.

    The name of the catalog is a hash of the contents of the files in their order, of the splits of those whose rows
    name none, of the release and of the version of the schema, so it is built again exactly when one of these changes.
    Equal rows (split, label, clip) are merged and counted.

    Args:
        files: the annotation files.
        release: the release; gives the catalog its name and date.
        folder: folder of the catalogs.
        split: the split (one of `SPLITS`) of rows that name none, in files whose names mention none.

    Raises:
        CatalogError: a file cannot be read or has no valid row, or the catalog cannot be written.
    """
    lists = [(path, (split_of_file_name(path.name) or split) if needs_split(path) else None) for path in files]
    digest = _digest(lists, release)
    path = catalog_path(folder, digest)
    if reuse(path, digest):
        return path

    started = time.monotonic()
    refusals = _RefusalCounter()
    info = {"release": release.name, "published": release.published.isoformat(), "digest": digest}
    with new_database(path, info) as connection:
        staged = _stage(connection, lists, refusals)
        _sort(connection, staged.class_ids)
        refusals.write(connection)
        [(clips,)] = connection.execute("SELECT count(*) FROM clip")
        connection.execute("INSERT INTO info VALUES ('duplicates', ?)", (str(staged.rows - clips),))
        if _digest(lists, release) != digest:
            raise CatalogError("cannot compile the annotations: the files changed while they were read; try again")
    _log.info("compiled %s clips of Kinetics-%s in %.1f s", f"{clips:,}", release.name, time.monotonic() - started)
    refusals.report()
    return path


def reuse(path: Path, digest: str) -> bool:
    """Return whether the catalog with this digest exists at `path` and is valid; if so, mark it as used."""
    try:
        with Catalog(path) as catalog:
            if catalog.digest != digest:
                return False
    except CatalogError:
        return False
    touch(path)
    return True


def _digest(lists: Sequence[_List], release: Release) -> str:
    total = hashlib.sha256(f"catalog {SCHEMA_VERSION} {release.name}\n".encode())
    for path, split in lists:
        total.update(f"{split}\n".encode() if split else b"")
        with readable(path), path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


class _RefusalCounter:
    """Counts refused rows and keeps the first of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: list[Refusal] = []

    def add(self, refusal: Refusal) -> None:
        self._counts[refusal.reason] += 1
        if len(self._first) < MAX_REFUSALS:
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
    """The number of staged rows, and the id that they have for each (split, label)."""

    rows: int
    class_ids: dict[tuple[str, str], int]


def _stage(connection: sqlite3.Connection, lists: Iterable[_List], refusals: _RefusalCounter) -> _Staged:
    """Write all valid rows, in file order, to a temporary table."""
    connection.execute('CREATE TEMP TABLE staged (class_id INTEGER, youtube_id TEXT, start INTEGER, "end" INTEGER)')
    class_ids: dict[tuple[str, str], int] = {}

    def rows() -> Iterator[tuple[int, str, int, int]]:
        for path, split_of_list in lists:
            for row in read_annotations(path, split=split_of_list):
                if isinstance(row, Refusal):
                    refusals.add(row)
                    continue
                split, label, clip = row
                if (split, label) not in class_ids:
                    if len(class_ids) == MAX_CLASSES:
                        raise CatalogError(
                            f"cannot compile {path.name}: it has more than {MAX_CLASSES:,} classes, too many for a"
                            " release of Kinetics"
                        )
                    class_ids[split, label] = len(class_ids)
                yield class_ids[split, label], *clip

    rows_staged = connection.executemany("INSERT INTO staged VALUES (?, ?, ?, ?)", rows()).rowcount
    return _Staged(rows_staged, class_ids)


def _sort(connection: sqlite3.Connection, class_ids: dict[tuple[str, str], int]) -> None:
    """Write the directories, and the staged rows in their final order."""
    taken: set[int] = set()
    parents = {split: _new_ino(split, taken) for split in SPLITS}
    for split, ino in parents.items():
        connection.execute("INSERT INTO directory VALUES (NULL, ?, 0, ?, NULL, 0, 0)", (ino, split))
    connection.execute("CREATE TEMP TABLE directory_of (class_id INTEGER PRIMARY KEY, directory INTEGER)")
    for split, label in sorted(class_ids, key=lambda one: (SPLITS.index(one[0]), one[1])):
        ino = _new_ino(f"{split}/{label}", taken)
        directory = connection.execute(
            "INSERT INTO directory VALUES (NULL, ?, ?, ?, ?, 0, 0)", (ino, parents[split], split, label)
        ).lastrowid
        connection.execute("INSERT INTO directory_of VALUES (?, ?)", (class_ids[split, label], directory))
    labels = sorted({label for _, label in class_ids} - {UNLABELED})
    connection.executemany("INSERT INTO label VALUES (?, ?)", enumerate(labels))
    connection.execute(
        f"""
        INSERT INTO clip (directory, youtube_id, start, "end", ino)
        SELECT sorted.directory, youtube_id, start, "end", clip_ino({CLIP_PATH}, 0)
        FROM (
            SELECT directory, youtube_id, start, "end" FROM staged JOIN directory_of USING (class_id)
            GROUP BY directory, youtube_id, start, "end"
            ORDER BY directory, youtube_id, start, "end"
        ) AS sorted
        CROSS JOIN directory ON directory.id = sorted.directory
        """
    )


def _new_ino(path: str, taken: set[int]) -> int:
    """Return an inode number for a directory; the hash is repeated in the unlikely case that another one has it."""
    tries = (directory_ino(path, attempt) for attempt in count())
    ino = next(ino for ino in tries if ino not in taken)
    taken.add(ino)
    return ino
