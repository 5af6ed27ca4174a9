"""A compiled catalog, open for reading."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from kinetics_fs.catalog.annotations import Refusal
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.database import APPLICATION_ID, SCHEMA_VERSION, held
from kinetics_fs.errors import CatalogError
from kinetics_fs.util.sqlite import Database

_PAGE = 4096  # clips read at once where all are read
_MOST_KNOWN = 16384
"""How many entries are remembered for who asks again, as everyone does who opens what was listed: some 4 MB."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A split, or a class in a split.

    Attributes:
        ino: inode number, the same in every catalog that has this split and label.
        parent: `ino` of the split; 0 for a split itself.
        split: `train`, `validation` or `test`.
        label: of the class, `UNLABELED` for the folder of clips without one; None for a split.
        clips: how many clips are in it.
    """

    ino: int
    parent: int
    split: str
    label: str | None
    clips: int
    _id: int = field(repr=False)
    _first_row: int = field(repr=False)


class Entry(NamedTuple):
    """A clip in its place: its inode number, what it is, and the inode number of its class directory."""

    ino: int
    clip: Clip
    directory: int


class ClipPosition(NamedTuple):
    """Where a clip stands: its key, the inode number of its class directory, and its place in that one's listing."""

    key: str
    directory: int
    position: int


@dataclass(frozen=True)
class Refusals:
    """The rows that were not taken: how many, why, and the first of them."""

    total: int
    by_reason: dict[str, int]
    first: list[Refusal]


class Catalog:
    """What a release, or a selection from one, consists of. Read-only.

    Directories are held in memory (about 2,100 of them for 700 classes), clips never are. Any number of threads may
    use one object, but not across a fork. `close` it when no thread is using it any more, or use it as a context
    manager.

    Attributes:
        path: the file.
        release: name of the release.
        published: the day that all its files are dated.
        digest: hash (hex) of all that the catalog was made of; equal digests mean equal catalogs.
        clip_count: number of entries, in all splits.
        duplicates: rows that said what another row had said already.

    Args:
        path: a file that `compile_catalog` or `select` made.

    Raises:
        CatalogError: it is not there, is damaged, or is not a catalog of this version. Any method may raise it if the
            file is damaged further in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, translate=self._error, immutable=True)
        self._closing = ExitStack()
        self._known: dict[int, Entry] = {}
        try:
            self._closing.enter_context(held(path))
        except OSError as error:
            raise CatalogError(f"catalog {path} cannot be read: {error.strerror}") from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        header = [self._query(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")]
        if header != [APPLICATION_ID, SCHEMA_VERSION]:
            raise CatalogError(f"{self.path} is not a catalog of this version of kinetics-fs")
        [(expected_size,)] = self._query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        if self.path.stat().st_size != expected_size:
            raise CatalogError(f"catalog {self.path} is cut short")
        info = dict(self._query("SELECT key, value FROM info"))
        try:
            self.release = info["release"]
            self.published = date.fromisoformat(info["published"])
            self.digest = info["digest"]
            self.duplicates = int(info["duplicates"])
        except (KeyError, ValueError) as error:
            raise CatalogError(f"catalog {self.path} is damaged: {error}") from error
        self._labels: list[str] = [label for (label,) in self._query("SELECT label FROM label ORDER BY position")]
        directories = [
            Directory(*row)
            for row in self._query("SELECT ino, parent, split, label, clips, id, first_row FROM directory ORDER BY id")
        ]
        self._by_number = {directory.ino: directory for directory in directories}
        self._number_of = {directory._id: directory.ino for directory in directories}
        self._inside: dict[int, list[Directory]] = {}
        for directory in directories:
            self._inside.setdefault(directory.parent, []).append(directory)
        self.clip_count: int = sum(split.clips for split in self.splits())

    # What there is ------------------------------------------------------------------------------------------------

    def labels(self) -> list[str]:
        """Every class of the release, sorted; the position is the class index. Not reduced by a selection."""
        return list(self._labels)

    def splits(self) -> list[Directory]:
        """The splits that have clips: train, validation, test."""
        return list(self._inside.get(0, ()))

    def classes(self, split: Directory) -> list[Directory]:
        """The classes that have clips in a split, sorted by label."""
        return list(self._inside.get(split.ino, ()))

    def directory(self, ino: int) -> Directory | None:
        """The split or class that has this inode number."""
        return self._by_number.get(ino)

    def entries(self, directory: Directory, offset: int = 0, limit: int | None = None) -> list[Entry]:
        """The clips of a class in the order of their names, `limit` of them from `offset` on (all: None)."""
        number = directory.ino
        rows = self._rows(directory, offset, limit)
        return [Entry(ino, Clip(youtube_id, start, end), number) for ino, youtube_id, start, end in rows]

    def listing(self, directory: Directory, offset: int, limit: int) -> list[tuple[str, int, int]]:
        """The same as file name, inode number and seconds: half the time of `entries`, where only listing is meant."""
        return [
            ("%s_%06d_%06d.mp4" % (youtube_id, start, end), ino, end - start)  # noqa: UP031  # quicker than an f-string
            for ino, youtube_id, start, end in self._rows(directory, offset, limit)
        ]

    def _rows(self, directory: Directory, offset: int, limit: int | None) -> list[tuple[int, str, int, int]]:
        if directory.label is None:
            raise ValueError(f"the split {directory.split} holds classes, not clips")
        end = directory.clips if limit is None else min(offset + limit, directory.clips)
        return self._query(
            'SELECT ino, youtube_id, start, "end" FROM clip WHERE row >= ? AND row < ?',
            directory._first_row + offset,
            directory._first_row + end,
        )

    def clips(self) -> Iterator[Entry]:
        """Every clip, in the order of splits, classes and names, a page at a time."""
        for split in self.splits():
            for directory in self.classes(split):
                for offset in range(0, directory.clips, _PAGE):
                    yield from self.entries(directory, offset, _PAGE)

    # Where something is -------------------------------------------------------------------------------------------

    def find(self, directory: Directory, clip: Clip) -> int | None:
        """The inode number of a clip in a class, or None if it is not there."""
        found = self._query(
            'SELECT ino FROM clip WHERE youtube_id = ? AND start = ? AND "end" = ? AND directory = ?',
            *clip,
            directory._id,
        )
        return found[0][0] if found else None

    def entry(self, ino: int) -> Entry | None:
        """The clip that has this inode number."""
        if (known := self._known.get(ino)) is not None:
            return known
        found = self._entries('SELECT ino, youtube_id, start, "end", directory FROM clip WHERE ino = ?', ino)
        if not found:
            return None
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[ino] = found[0]
        return found[0]

    def position(self, entry: Entry) -> int:
        """The place of a clip in the listing of its class."""
        ((row,),) = self._query("SELECT row FROM clip WHERE ino = ?", entry.ino)
        return int(row) - self._by_number[entry.directory]._first_row

    def locate(self, clip: Clip) -> list[Entry]:
        """Everywhere a clip stands: it may be in several splits or classes."""
        return self._entries(
            """
            SELECT ino, youtube_id, start, "end", directory FROM clip
            WHERE youtube_id = ? AND start = ? AND "end" = ? ORDER BY row
            """,
            *clip,
        )

    def positions(self, keys: Iterable[str]) -> list[ClipPosition]:
        """Everywhere these clips (`Clip.key`) stand, in the order of the catalog; in one query, for there may be many.

        What is no key of a clip here is found nowhere.
        """
        rows = self._query(
            """
            SELECT wanted.value, directory, row FROM json_each(?) AS wanted CROSS JOIN clip
            WHERE youtube_id = substr(wanted.value, 1, 11)
            AND printf('%s_%06d_%06d', youtube_id, start, "end") = wanted.value ORDER BY row
            """,
            json.dumps(sorted(keys)),  # in the order of the index, which is quicker
        )
        first_rows = {directory._id: directory._first_row for directory in self._by_number.values()}
        return [ClipPosition(key, self._number_of[number], row - first_rows[number]) for key, number, row in rows]

    # How it was made ----------------------------------------------------------------------------------------------

    def refusals(self) -> Refusals:
        """What was wrong with the annotations."""
        by_reason = dict(self._query("SELECT reason, rows FROM refusal_count ORDER BY rows DESC, reason"))
        first = [Refusal(*row) for row in self._query("SELECT file, line, reason, text FROM refusal ORDER BY rowid")]
        return Refusals(sum(by_reason.values()), by_reason, first)

    # Connections --------------------------------------------------------------------------------------------------

    def _entries(self, sql: str, *parameters: object) -> list[Entry]:
        return [
            Entry(ino, Clip(youtube_id, start, end), self._number_of[directory])
            for ino, youtube_id, start, end, directory in self._query(sql, *parameters)
        ]

    def _query(self, sql: str, *parameters: object) -> list[Any]:
        return self._database.query(sql, parameters)

    def _error(self, error: sqlite3.Error) -> CatalogError:
        return CatalogError(f"catalog {self.path} is damaged: {error}")

    def close(self) -> None:
        """Closes the file. The object is of no use afterwards."""
        self._database.close()
        self._closing.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
