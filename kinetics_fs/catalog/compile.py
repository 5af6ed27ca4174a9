"""Compilation of annotation files into a catalog.

Rows are streamed from the parser into a table on the disk, where SQLite sorts and merges them, so that memory does not
grow with their number.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Protocol

from kinetics_fs.catalog.annotations import needs_split, read_annotations
from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.containers import readable
from kinetics_fs.catalog.database import (
    CLIP_PATH,
    catalog_path,
    latest_labels,
    new_database,
    path_to_build,
    possible_paths,
    remove_predecessors,
    touch,
)
from kinetics_fs.catalog.inodes import directory_ino
from kinetics_fs.catalog.labels import warn_of_moved_indexes, warn_of_similar_labels
from kinetics_fs.catalog.naming import SPLITS, UNLABELED, ClassNames, class_name, split_of_file_name
from kinetics_fs.catalog.progress import CatalogProgress
from kinetics_fs.catalog.releases import Release
from kinetics_fs.catalog.rows import Refusal
from kinetics_fs.errors import CatalogError

MAX_REFUSALS = 1000
"""Number of refused rows that are stored with their text. All are counted."""
MAX_CLASSES = 1 << 16
"""Maximum number of classes in all splits together. They are kept in memory; the largest release has 2,101."""

_PAGE_SIZE = 4096
"""Rows that are written at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnnotationList:
    """A file of annotations.

    Attributes:
        path: the file.
        known_labels: labels that no earlier list has are no labels. For lists in an undocumented format.
    """

    path: Path
    known_labels: bool = False


class ArchiveClips(Protocol):
    """The clips in archives of whole classes."""

    @property
    def stamp(self) -> str:
        """A text that changes when there are other clips."""
        ...

    def clips(self, labels: Sequence[str]) -> Iterator[tuple[str, str, str, Clip]]:
        """Yield the archive, split, label and clip of each.

        Args:
            labels: labels of the release, sorted. No clip has another label.
        """
        ...


def compile_catalog(
    lists: Sequence[AnnotationList | Path],
    release: Release,
    folder: Path,
    *,
    split: str | None = None,
    union: bool = False,
    archives: ArchiveClips | None = None,
    progress: CatalogProgress | None = None,
) -> Path:
    """Return the path of the catalog of annotations: the one in `folder` if it exists, else a new one.

    The name of the catalog is a hash of the contents of the files in their order, of the splits of those whose rows
    name none, of the release, of the archives and of the version of the schema, so it is built again exactly when one
    of these changes. Equal rows (split, label, clip) are merged and counted. A row without a label is dropped if the
    clip has a label in the same split.

    Args:
        lists: the annotation files.
        release: the release; gives the catalog its name and date.
        folder: the folder of the catalogs.
        split: the split (one of `SPLITS`) of rows that name none, in files whose names mention none.
        union: the lists are editions of one list: the first that labels a clip of a split decides its label, and those
            that cannot be read are skipped with a warning. Otherwise a clip may have several labels.
        archives: more clips. Those that a list has in the same split keep the label of the list.
        progress: receives the progress.

    Raises:
        CatalogError: a file (of a union: every file) cannot be read or has no valid row, or the catalog cannot be
            written.
    """
    files = [AnnotationList(one) if isinstance(one, Path) else one for one in lists]
    splits = [_split_of(one, split, union=union) for one in files]
    annotations_digest = _digest(files, splits, release, union=union)
    key = annotations_digest
    if archives is not None:
        key = hashlib.sha256(f"archives {annotations_digest} {archives.stamp}".encode()).hexdigest()
    path = catalog_path(folder, annotations_digest, key)
    if (existing := find_catalog(path, key)) is not None:
        return existing

    path = path_to_build(path, sum(one.path.stat().st_size for one in files if one.path.exists()))
    started = time.monotonic()
    refusals = _RefusalCounter()
    # Of different editions of the same lists, and of no others.
    source = "\n".join([release.name, *([] if union else [str(one.path.absolute()) for one in files])])
    labels_before = latest_labels(folder, source)
    info = {
        "release": release.name,
        "published": release.published.isoformat(),
        "key": key,
        "annotations_digest": annotations_digest,
        "source": source,
    }
    with new_database(path, info) as connection:
        staging = _Staging(connection, refusals, progress or CatalogProgress())
        failed: list[CatalogError] = []
        for one, split_of_rows in zip(files, splits, strict=True):
            try:
                staging.add_list(one, split_of_rows)
            except CatalogError as error:
                failed.append(error)
        if failed and (not union or len(failed) == len(files)):
            raise failed[0]
        for reason in failed:
            _log.warning("%s; clips that no other list names are left out", reason)
        if archives is not None:
            staging.add_archives(archives)
        staging.merge(union=union)
        staging.sort()
        refusals.write(connection)
        [(clips,)] = connection.execute("SELECT count(*) FROM clip")
        more = {"duplicates": str(staging.rows - clips), "digest": _content_digest(connection, annotations_digest)}
        connection.executemany("INSERT INTO info VALUES (?, ?)", more.items())
        _file_digest.cache_clear()
        if _digest(files, splits, release, union=union) != annotations_digest:
            raise CatalogError("cannot compile the annotations: the files changed while they were read; try again")
    if key != annotations_digest:
        remove_predecessors(path, annotations_digest)
    _log.info("compiled %s clips of Kinetics-%s in %.1f s", f"{clips:,}", release.name, time.monotonic() - started)
    refusals.report()
    warn_of_similar_labels(staging.labels())
    warn_of_moved_indexes(release.name, labels_before, staging.labels())
    return path


def find_catalog(path: Path, key: str) -> Path | None:
    """Return the path of the catalog with this key if it exists and is valid, and mark it as used; else None."""
    for possible in possible_paths(path):
        with suppress(CatalogError), Catalog(possible) as catalog:
            if catalog.key == key:
                touch(possible)
                return possible
    return None


def _split_of(one: AnnotationList, split: str | None, *, union: bool) -> str | None:
    """Return the split of rows that name none; None if every row names one."""
    try:
        return (split_of_file_name(one.path.name) or split) if needs_split(one.path) else None
    except CatalogError:
        if not union:
            raise
        return None


def _digest(files: Sequence[AnnotationList], splits: Sequence[str | None], release: Release, *, union: bool) -> str:
    total = hashlib.sha256(f"catalog 1 {release.name}\n".encode())
    if union and len(files) > 1:
        total.update(b"union\n")
    for one, split in zip(files, splits, strict=True):
        total.update(f"{split}\n".encode() if split else b"")
        if one.known_labels:
            total.update(b"known labels\n")
        with readable(one.path):
            found = one.path.stat()
            total.update(_file_digest(one.path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return total.hexdigest()


@functools.lru_cache(maxsize=32)
def _file_digest(path: Path, *state: int) -> bytes:
    """Return the digest of a file, once for each state: several catalogs of the same lists are opened at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _content_digest(connection: sqlite3.Connection, annotations_digest: str) -> str:
    """Return a digest of the annotations and of the clips that only archives name."""
    total = hashlib.sha256(f"{annotations_digest}\n".encode())
    more = 0
    for (clip,) in connection.execute(
        f"""
        SELECT {CLIP_PATH} FROM clip JOIN directory ON directory.id = clip.directory
        WHERE origin IN (SELECT id FROM origin WHERE kind = 'archive') ORDER BY row
        """
    ):
        total.update(f"{clip}\n".encode())
        more += 1
    return total.hexdigest() if more else annotations_digest


class _RefusalCounter:
    """Counts refused rows and keeps the first of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: list[Refusal] = []

    def add(self, refusal: Refusal) -> None:
        self._counts[refusal.reason] += 1
        if len(self._first) < MAX_REFUSALS:
            self._first.append(refusal)

    def update(self, other: _RefusalCounter) -> None:
        self._counts.update(other._counts)
        self._first += other._first[: MAX_REFUSALS - len(self._first)]

    def write(self, connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO refusal VALUES (?, ?, ?, ?)", self._first)
        connection.executemany("INSERT INTO refusal_count VALUES (?, ?)", self._counts.items())

    def report(self) -> None:
        if self._first:
            first = self._first[0]
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in self._counts.most_common())
            _log.warning("refused rows of annotations: %s; the first is %s:%d", reasons, first.file, first.line)


class _Staging:
    """Rows of lists and archives on their way into a catalog.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(self, connection: sqlite3.Connection, refusals: _RefusalCounter, progress: CatalogProgress) -> None:
        self.rows = 0
        self._progress = progress
        self._connection = connection
        self._refusals = refusals
        self._class_ids: dict[tuple[str, str], int] = {}
        self._lists = 0
        self._origins = count()
        connection.execute(
            'CREATE TEMP TABLE staged (class_id INTEGER, youtube_id TEXT, start INTEGER, "end" INTEGER, origin INTEGER)'
        )

    def add_list(self, one: AnnotationList, split_of_rows: str | None) -> None:
        """Add all valid rows of a list, in file order.

        Args:
            one: the list.
            split_of_rows: split of the rows that name none.

        Raises:
            CatalogError: the list cannot be read. Nothing of it is added.
        """
        classes_before, labels = len(self._class_ids), _LabelTable(self.labels() if one.known_labels else [])
        refusals = _RefusalCounter()
        origin = next(self._origins)
        self._lists += 1
        class_ids: dict[tuple[str, str], int] = {}

        def rows() -> Iterator[tuple[int, str, int, int, int]]:
            for row in read_annotations(one.path, split=split_of_rows):
                if isinstance(row, Refusal):
                    refusals.add(row)
                    continue
                split, label, clip = row
                class_id = class_ids.get((split, label))
                if class_id is None:
                    class_id = class_ids[split, label] = self._class_id(split, labels.known(label), one.path.name)
                yield class_id, *clip, origin

        self._connection.execute("SAVEPOINT list")
        try:
            self._stage(rows())
        except CatalogError:
            self._connection.execute("ROLLBACK TO list")
            for name in list(self._class_ids)[classes_before:]:  # its labels must not move the class indexes of others
                del self._class_ids[name]
            self._connection.execute("RELEASE list")
            raise
        self._connection.execute("RELEASE list")
        self._connection.execute("INSERT INTO origin VALUES (?, 'list', ?)", (origin, one.path.name))
        self._refusals.update(refusals)

    def add_archives(self, archives: ArchiveClips) -> None:
        """Add the clips of archives."""
        origins: dict[str, int] = {}

        def rows() -> Iterator[tuple[int, str, int, int, int]]:
            for archive, split, label, clip in archives.clips(self.labels()):
                if archive not in origins:
                    origins[archive] = next(self._origins)
                yield self._class_id(split, label, archive), *clip, origins[archive]

        self._stage(rows())
        self._connection.executemany(
            "INSERT INTO origin VALUES (?, 'archive', ?)", ((origin, archive) for archive, origin in origins.items())
        )

    def labels(self) -> list[str]:
        """Return all labels so far, sorted."""
        return sorted({label for _, label in self._class_ids} - {UNLABELED})

    def _class_id(self, split: str, label: str, name: str) -> int:
        if (split, label) not in self._class_ids:
            if len(self._class_ids) == MAX_CLASSES:
                raise CatalogError(
                    f"cannot compile {name}: it has more than {MAX_CLASSES:,} classes, too many for a release of"
                    " Kinetics"
                )
            self._class_ids[split, label] = len(self._class_ids)
        return self._class_ids[split, label]

    def _stage(self, rows: Iterator[tuple[int, str, int, int, int]]) -> None:
        while page := list(islice(rows, _PAGE_SIZE)):
            self._connection.executemany("INSERT INTO staged VALUES (?, ?, ?, ?, ?)", page)
            self.rows += len(page)
            self._progress.compiling(self.rows)

    def merge(self, *, union: bool) -> None:
        """Drop rows without a label of clips that have one, and rows whose label an earlier list overrules."""
        connection = self._connection
        connection.execute("CREATE TEMP TABLE class (id INTEGER PRIMARY KEY, split TEXT, labeled INTEGER)")
        connection.executemany(
            "INSERT INTO class VALUES (?, ?, ?)",
            ((number, split, label != UNLABELED) for (split, label), number in self._class_ids.items()),
        )
        overruled_from = 1 if union else self._lists
        mixed = {split for split, label in self._class_ids if label == UNLABELED} & {
            split for split, label in self._class_ids if label != UNLABELED
        }
        [(later,)] = connection.execute("SELECT EXISTS (SELECT 1 FROM staged WHERE origin >= ?)", (overruled_from,))
        if not (mixed or later):
            return
        connection.execute('CREATE INDEX temp.staged_by_clip ON staged (youtube_id, start, "end")')
        labeled_elsewhere = """
            EXISTS (
                SELECT 1 FROM staged AS other JOIN class AS other_class ON other_class.id = other.class_id
                WHERE other.youtube_id = staged.youtube_id AND other.start = staged.start
                AND other."end" = staged."end" AND other_class.labeled
                AND other_class.split = (SELECT split FROM class WHERE id = staged.class_id)
        """
        connection.execute(
            "DELETE FROM staged WHERE origin >= ? AND (SELECT labeled FROM class WHERE id = staged.class_id)"
            f" AND {labeled_elsewhere} AND other.origin < staged.origin)",
            (overruled_from,),
        )
        connection.execute(
            "DELETE FROM staged WHERE NOT (SELECT labeled FROM class WHERE id = staged.class_id)"
            f" AND {labeled_elsewhere})"
        )

    def sort(self) -> None:
        """Write the directories, and the staged rows in their final order."""
        connection, class_ids = self._connection, self._class_ids
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
        connection.executemany("INSERT INTO label VALUES (?, ?)", enumerate(self.labels()))
        connection.execute(
            f"""
            INSERT INTO clip (directory, youtube_id, start, "end", ino, origin)
            SELECT sorted.directory, youtube_id, start, "end", clip_ino({CLIP_PATH}, 0), origin
            FROM (
                SELECT directory, youtube_id, start, "end", min(origin) AS origin
                FROM staged JOIN directory_of USING (class_id)
                GROUP BY directory, youtube_id, start, "end"
                ORDER BY directory, youtube_id, start, "end"
            ) AS sorted
            CROSS JOIN directory ON directory.id = sorted.directory
            """
        )


class _LabelTable:
    """The labels that a list in an undocumented format may use, in any style of folder names.

    Args:
        labels: the labels; empty if every label is accepted.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels: dict[str, str] = {}
        for style in ClassNames:
            for label in labels:
                self._labels.setdefault(class_name(label, style), label)

    def known(self, label: str) -> str:
        """Return the label that is meant; `UNLABELED` if there is none."""
        return self._labels.get(label, UNLABELED) if self._labels else label


def _new_ino(path: str, taken: set[int]) -> int:
    """Return an inode number for a directory; the hash is repeated in the unlikely case that another one has it."""
    tries = (directory_ino(path, attempt) for attempt in count())
    ino = next(ino for ino in tries if ino not in taken)
    taken.add(ino)
    return ino
