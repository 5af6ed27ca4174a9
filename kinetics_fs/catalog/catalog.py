"""A compiled catalog, open for reading."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.database import APPLICATION_ID, SCHEMA_VERSION, in_use
from kinetics_fs.catalog.releases import find_release
from kinetics_fs.catalog.rows import Refusal
from kinetics_fs.errors import CatalogError
from kinetics_fs.util.disk import DiskFault, fault_of
from kinetics_fs.util.sqlite import Database

_PAGE_SIZE = 4096
_MAX_KNOWN_ENTRIES = 16384
"""Entries that are kept in memory, about 4 MB: a process that has listed a class usually opens its clips next."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A split, or a class in a split.

    Attributes:
        ino: inode number, the same in every catalog that has this split and label.
        parent: `ino` of the split; 0 for a split itself.
        split: `train`, `validation` or `test`.
        label: label of the class; `UNLABELED` for clips without one; None for a split.
        clips: number of clips in it.
    """

    ino: int
    parent: int
    split: str
    label: str | None
    clips: int
    _id: int = field(repr=False)
    _first_row: int = field(repr=False)


class Entry(NamedTuple):
    """A clip in a class directory: its inode number, the clip, and the inode number of the directory."""

    ino: int
    clip: Clip
    directory: int


class ClipPosition(NamedTuple):
    """The position of a clip: its key, the inode number of its class directory, and its index in the listing of it."""

    key: str
    directory: int
    position: int


@dataclass(frozen=True)
class Origin:
    """A list or an archive that names clips.

    Attributes:
        kind: `list`; `archive` for the archive of a class with clips that no list names.
        name: base name of the list; name of the archive.
        clips: split → number of clips that it is the first to name.
    """

    kind: str
    name: str
    clips: dict[str, int]


def origins_to_json(release: str, origins: Sequence[Origin]) -> dict[str, Any]:
    """Return the origins of clips, and the published numbers of clips of the release, as `--json` prints them."""
    return {
        "origins": [asdict(origin) for origin in origins],
        "published": [count._asdict() for count in find_release(release).counts],
    }


@dataclass(frozen=True)
class Refusals:
    """The refused rows of the annotations: their number, the number for each reason, and the first of them."""

    total: int
    by_reason: dict[str, int]
    first: list[Refusal]


class Catalog:
    """The clips of a release, or of a selection from one. Read-only.

    Directories are kept in memory (about 2,100 of them for 700 classes), clips are not. Safe for threads, but not
    across a fork. `close` the object when no thread uses it any more, or use it as a context manager.

    Attributes:
        path: the file.
        release: name of the release.
        published: modification date of all clips.
        key: hash (hexadecimal) of everything that the catalog was compiled from.
        digest: hash (hexadecimal) that identifies the clips: equal digests mean equal catalogs.
        annotations_digest: the digest that it would have without the clips that only archives name.
        clip_count: number of entries in all splits.
        duplicates: number of rows of the annotations that repeated another row.

    Args:
        path: a file that `compile_catalog` or `select` wrote.

    Raises:
        CatalogError: the file is missing, damaged, or not a catalog of this version. Any method may raise it if the
            file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(
            path, translate=self._error, if_damaged="remove it: it is compiled again", immutable=True
        )
        self._closing = ExitStack()
        self._known: dict[int, Entry] = {}
        try:
            self._closing.enter_context(in_use(path))
        except OSError as error:
            raise self._error(fault_of(error, path)) from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        header = [self._query(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")]
        if header != [APPLICATION_ID, SCHEMA_VERSION]:
            raise CatalogError(
                f"cannot read the catalog {self.path}: it is not a catalog of this version of kinetics-fs"
            )
        [(expected_size,)] = self._query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        if self.path.stat().st_size != expected_size:
            raise CatalogError(f"cannot read the catalog {self.path}: it is incomplete")
        info = dict(self._query("SELECT key, value FROM info"))
        try:
            self.release = info["release"]
            self.published = date.fromisoformat(info["published"])
            self.key = info["key"]
            self.digest = info["digest"]
            self.annotations_digest = info["annotations_digest"]
            self.duplicates = int(info["duplicates"])
        except (KeyError, ValueError) as error:
            raise CatalogError(f"cannot read the catalog {self.path}: it is damaged ({error})") from error
        self._labels: list[str] = [label for (label,) in self._query("SELECT label FROM label ORDER BY position")]
        directories = [
            Directory(*row)
            for row in self._query("SELECT ino, parent, split, label, clips, id, first_row FROM directory ORDER BY id")
        ]
        self._by_ino = {directory.ino: directory for directory in directories}
        self._ino_of = {directory._id: directory.ino for directory in directories}
        self._inside: dict[int, list[Directory]] = {}
        for directory in directories:
            self._inside.setdefault(directory.parent, []).append(directory)
        self.clip_count: int = sum(split.clips for split in self.splits())

    # Listing ------------------------------------------------------------------------------------------------

    def labels(self) -> list[str]:
        """Return every class of the release, sorted. The index in the list is the class index, whatever is selected."""
        return list(self._labels)

    def splits(self) -> list[Directory]:
        """Return the splits that have clips, in the order train, validation, test."""
        return list(self._inside.get(0, ()))

    def classes(self, split: Directory) -> list[Directory]:
        """Return the classes that have clips in a split, sorted by label."""
        return list(self._inside.get(split.ino, ()))

    def directory(self, ino: int) -> Directory | None:
        """Return the split or class with this inode number; None if there is none."""
        return self._by_ino.get(ino)

    def entries(self, directory: Directory, offset: int = 0, limit: int | None = None) -> list[Entry]:
        """Return the clips of a class in the order of their names: `limit` of them (None for all) from `offset` on."""
        rows = self._rows(directory, offset, limit)
        return [Entry(ino, Clip(youtube_id, start, end), directory.ino) for ino, youtube_id, start, end in rows]

    def listing(self, directory: Directory, offset: int, limit: int) -> list[tuple[str, int, int]]:
        """Return file name, inode number and seconds of the same clips as `entries`, in half the time."""
        return [
            ("%s_%06d_%06d.mp4" % (youtube_id, start, end), ino, end - start)  # noqa: UP031  # faster than an f-string
            for ino, youtube_id, start, end in self._rows(directory, offset, limit)
        ]

    def _rows(self, directory: Directory, offset: int, limit: int | None) -> list[tuple[int, str, int, int]]:
        if directory.label is None:
            raise ValueError(f"the split {directory.split} has classes, not clips")
        end = directory.clips if limit is None else min(offset + limit, directory.clips)
        return self._query(
            'SELECT ino, youtube_id, start, "end" FROM clip WHERE row >= ? AND row < ?',
            directory._first_row + offset,
            directory._first_row + end,
        )

    def clips(self) -> Iterator[Entry]:
        """Yield every clip, in the order of splits, classes and names. Reads a page at a time."""
        for split in self.splits():
            for directory in self.classes(split):
                for offset in range(0, directory.clips, _PAGE_SIZE):
                    yield from self.entries(directory, offset, _PAGE_SIZE)

    # Looking up -------------------------------------------------------------------------------------------

    def find(self, directory: Directory, clip: Clip) -> int | None:
        """Return the inode number of a clip in a class; None if the class does not have the clip."""
        found = self._query(
            'SELECT ino FROM clip WHERE youtube_id = ? AND start = ? AND "end" = ? AND directory = ?',
            *clip,
            directory._id,
        )
        return found[0][0] if found else None

    def entry(self, ino: int) -> Entry | None:
        """Return the clip with this inode number; None if there is none."""
        if (known := self._known.get(ino)) is not None:
            return known
        found = self._entries('SELECT ino, youtube_id, start, "end", directory FROM clip WHERE ino = ?', ino)
        if not found:
            return None
        if len(self._known) >= _MAX_KNOWN_ENTRIES:
            self._known.clear()
        self._known[ino] = found[0]
        return found[0]

    def position(self, entry: Entry) -> int:
        """Return the index of a clip in the listing of its class."""
        ((row,),) = self._query("SELECT row FROM clip WHERE ino = ?", entry.ino)
        return int(row) - self._by_ino[entry.directory]._first_row

    def locate(self, clip: Clip) -> list[Entry]:
        """Return all entries of a clip: it may be in several splits or classes."""
        return self._entries(
            """
            SELECT ino, youtube_id, start, "end", directory FROM clip
            WHERE youtube_id = ? AND start = ? AND "end" = ? ORDER BY row
            """,
            *clip,
        )

    def positions(self, keys: Iterable[str]) -> list[ClipPosition]:
        """Return the positions of all entries of many clips, in the order of the catalog, by a single query.

        Args:
            keys: `Clip.key` of each clip. Keys of clips that the catalog does not have are ignored.
        """
        rows = self._query(
            """
            SELECT wanted.value, directory, row FROM json_each(?) AS wanted CROSS JOIN clip
            WHERE youtube_id = substr(wanted.value, 1, 11)
            AND printf('%s_%06d_%06d', youtube_id, start, "end") = wanted.value ORDER BY row
            """,
            json.dumps(sorted(keys)),  # the order of the index, which is faster
        )
        first_rows = {directory._id: directory._first_row for directory in self._by_ino.values()}
        return [
            ClipPosition(key, self._ino_of[directory_id], row - first_rows[directory_id])
            for key, directory_id, row in rows
        ]

    def clips_of_videos(self, youtube_ids: Iterable[str]) -> dict[str, list[Clip]]:
        """Return the clips of many videos, sorted, by a single query. A clip in several classes is returned once.

        Args:
            youtube_ids: the videos. Those that have no clips in the catalog are not in the result.
        """
        rows = self._query(
            """
            SELECT DISTINCT youtube_id, start, "end" FROM json_each(?) AS wanted CROSS JOIN clip
            WHERE youtube_id = wanted.value ORDER BY youtube_id, start, "end"
            """,
            json.dumps(sorted(youtube_ids)),
        )
        found: dict[str, list[Clip]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(Clip(*row))
        return found

    # Annotations ----------------------------------------------------------------------------------------------

    def refusals(self) -> Refusals:
        """Return the refused rows of the annotations."""
        by_reason = dict(self._query("SELECT reason, rows FROM refusal_count ORDER BY rows DESC, reason"))
        first = [Refusal(*row) for row in self._query("SELECT file, line, reason, text FROM refusal ORDER BY rowid")]
        return Refusals(sum(by_reason.values()), by_reason, first)

    def origins(self) -> list[Origin]:
        """Return the lists and archives that name the clips, in their order of precedence."""
        origins: dict[int, Origin] = {}
        for number, kind, name, split, clips in self._query(
            """
            SELECT origin.id, kind, name, split, clips FROM origin JOIN origin_count ON origin_count.origin = origin.id
            ORDER BY origin.id
            """
        ):
            origins.setdefault(number, Origin(kind, name, {})).clips[split] = clips
        return list(origins.values())

    # The database --------------------------------------------------------------------------------------------------

    def _entries(self, sql: str, *parameters: object) -> list[Entry]:
        return [
            Entry(ino, Clip(youtube_id, start, end), self._ino_of[directory])
            for ino, youtube_id, start, end, directory in self._query(sql, *parameters)
        ]

    def _query(self, sql: str, *parameters: object) -> list[Any]:
        return self._database.query(sql, parameters)

    def _error(self, fault: DiskFault) -> CatalogError:
        return CatalogError(f"cannot read the catalog {self.path}: {fault.cause}; {fault.cure}")

    def close(self) -> None:
        """Close the file. The object cannot be used afterwards."""
        self._database.close()
        self._closing.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
