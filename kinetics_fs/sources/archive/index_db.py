"""The archive index database: which archives contain a clip, and where in them.

It is one SQLite file that all workers share. Passes over archives and imported index files fill it. All its content can
be built or imported again, so a damaged file may be deleted.

An index is confirmed if this machine has read all clips of the archive: it built the index, or verified every clip. An
imported index is a hint at best. It says where to look for a clip, which is checked when the clip is read; it proves
neither the size of a clip nor that an archive lacks one.
"""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich import filesize

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import UNUSABLE, ArchiveIndex, Record, check_record
from kinetics_fs.store.layout import newer_format
from kinetics_fs.util.disk import UNWRITABLE, DiskFault
from kinetics_fs.util.sqlite import Database

_VERSION = 2
_KEYS_PER_QUERY = 500
_MAX_COPY = 200_000_000
"""Bytes of a file on a disk that cannot be written, which is copied into memory. All archives have about 120 MB."""
_ROW_BYTES = 200
"""Bytes of a clip without its window: about 150, and unused space in the pages."""
_HAS_CLIPS = "EXISTS (SELECT 1 FROM clip WHERE clip.archive = archive.id)"

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS archive (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,  -- 600/val/abseiling.tar.gz
    size    INTEGER NOT NULL,      -- bytes
    etag    TEXT,                  -- of the version that was indexed; NULL from a disk
    gzipped INTEGER NOT NULL,
    confirmed INTEGER NOT NULL     -- this machine has read all clips; 0 for an imported index
);
CREATE TABLE IF NOT EXISTS clip (
    key     TEXT NOT NULL,         -- <youtube id>_<start>_<end>
    archive INTEGER NOT NULL REFERENCES archive (id),
    bit     INTEGER NOT NULL,      -- and the rest of a Record
    skip    INTEGER NOT NULL,
    size    INTEGER NOT NULL,
    "end"   INTEGER NOT NULL,
    crc     INTEGER NOT NULL,
    window  BLOB NOT NULL,
    PRIMARY KEY (key, archive)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS clip_of_archive ON clip (archive);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class ClipLocation(NamedTuple):
    """The location of a clip in an archive."""

    archive: str
    version: Version
    gzipped: bool
    record: Record


class IndexedArchive(NamedTuple):
    """An archive in the database."""

    archive: str
    version: Version
    clips: int
    confirmed: bool


def check_import(index: ArchiveIndex, folder: Path) -> ArchiveIndex:
    """Return the part of an untrusted index to import.

    Args:
        index: the index.
        folder: folder of the database.

    Raises:
        ArchiveError: it has no clips, or does not fit on the disk.
    """
    usable = {clip: record for clip, record in index.records.items() if record != UNUSABLE}
    index = dataclasses.replace(index, records=usable)
    if not index.records:
        raise ArchiveError("it has no clips, so its archive was incomplete")
    # In the file and in its log, while it is added.
    needed = 2 * sum(_ROW_BYTES + len(record.window) for record in index.records.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArchiveError(
            f"the index of {index.archive} needs about {filesize.decimal(needed)}, and the disk of {folder} has space"
            f" for {filesize.decimal(free)}; free some, or give a --cache-dir on another disk"
        )
    return index


class ArchiveIndexDB:
    """The archive index database. Safe for threads and processes, but not across a fork.

    Its methods raise:
        ArchiveError: the file is damaged.

    Args:
        path: path of the file; it is created if it does not exist.

    Raises:
        ArchiveError: the file cannot be opened, or a later version of kinetics-fs wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(
            path,
            translate=self._error,
            if_damaged=f"remove {path}*, then build or import the indexes again (kinetics-fs index)",
            synchronous="NORMAL",
        )
        self._fault: DiskFault | None = None
        """The fault of the last error."""
        try:
            self._open()
        except ArchiveError:
            if self._fault is None or self._fault.errno not in UNWRITABLE or not path.exists():
                raise
            self._database.use_copy(self._fault, self._upgrade, max_bytes=_MAX_COPY)

    def _open(self) -> None:
        with self._database.connection() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(_SCHEMA)
                return
        if version != _VERSION:
            with self._database.exclusive() as db:
                self._upgrade(db)

    def _upgrade(self, db: sqlite3.Connection) -> None:
        """Convert a file of version 1, which does not say which indexes are confirmed: nearly all were built here."""
        (version,) = db.execute("PRAGMA user_version").fetchone()  # another process may have done it meanwhile
        if version == 1:
            db.execute("ALTER TABLE archive ADD COLUMN confirmed INTEGER NOT NULL DEFAULT 1")
            db.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise ArchiveError(newer_format(self._path, version, _VERSION, "move it away and build the indexes again"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The object cannot be used afterwards."""
        self._database.close()

    def find(self, clip: Clip) -> list[ClipLocation]:
        """Return all locations of a clip, those in archives of replacements first."""
        with self._database.connection() as db:
            rows = db.execute(
                """
                SELECT name, archive.size, etag, gzipped, bit, skip, clip.size, "end", crc, window
                FROM clip JOIN archive ON archive.id = clip.archive
                WHERE key = ? ORDER BY name LIKE '%replacement%' DESC, name
                """,
                (clip.key,),
            ).fetchall()
        locations = []
        for name, size, etag, gzipped, *record in rows:
            location = ClipLocation(name, Version(size, etag), bool(gzipped), Record(*record))
            check_record(location.record, size, gzipped=location.gzipped)
            locations.append(location)
        return locations

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the exact sizes in bytes of those clips among `keys`, by `Clip.key`, that a confirmed index has."""
        return dict(self._select(keys, "key, clip.size", "confirmed AND clip.size > 0"))

    def listed(self, keys: Sequence[str], *, usable: bool = True) -> set[str]:
        """Return those of `keys`, by `Clip.key`, that any index has.

        Args:
            keys: the clips.
            usable: without clips of which an archive has only an empty file, a link or the like.
        """
        return {key for (key,) in self._select(keys, "key", "clip.size > 0" if usable else "1")}

    def _select(self, keys: Sequence[str], columns: str, condition: str) -> Iterator[tuple[Any, ...]]:
        """Yield a row for each index that has a clip; of several for one clip, that of a replacement comes last."""
        with self._database.connection() as db:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                yield from db.execute(
                    f"""
                    SELECT {columns} FROM clip JOIN archive ON archive.id = clip.archive
                    WHERE key IN ({marks}) AND {condition} ORDER BY name LIKE '%replacement%', name DESC
                    """,
                    some,
                )

    def version(self, archive: str) -> Version | None:
        """Return the version of an archive of which there is a confirmed index; None if there is none with clips."""
        return self.versions(confirmed=True).get(archive)

    def versions(self, *, confirmed: bool = False) -> dict[str, Version]:
        """Return the versions of all indexed archives, by name. An index without clips is none.

        Args:
            confirmed: only those with a confirmed index.
        """
        with self._database.connection() as db:
            rows = db.execute(
                f"SELECT name, size, etag FROM archive WHERE {_HAS_CLIPS} AND confirmed >= ?", (confirmed,)
            ).fetchall()
        return {name: Version(size, etag) for name, size, etag in rows}

    def archives(self) -> list[IndexedArchive]:
        """Return the indexed archives, by name."""
        with self._database.connection() as db:
            rows = db.execute(
                """
                SELECT name, archive.size, etag, count(nullif(clip.size, 0)), confirmed FROM archive
                LEFT JOIN clip ON clip.archive = archive.id GROUP BY archive.id ORDER BY name
                """
            ).fetchall()
        return [
            IndexedArchive(name, Version(size, etag), clips, bool(confirmed))
            for name, size, etag, clips, confirmed in rows
        ]

    def add(self, index: ArchiveIndex, *, confirmed: bool = True) -> None:
        """Store an index. It replaces an earlier one of the same archive.

        Args:
            index: the index.
            confirmed: this machine has read all clips of the archive.
        """
        with self._database.exclusive() as db:
            self._remove(db, index.archive)
            archive_id = db.execute(
                "INSERT INTO archive (name, size, etag, gzipped, confirmed) VALUES (?, ?, ?, ?, ?)",
                (index.archive, index.size, index.etag, index.gzipped, confirmed),
            ).lastrowid
            db.executemany(
                "INSERT INTO clip VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((clip.key, archive_id, *record) for clip, record in index.records.items()),
            )

    def confirm(self, archive: str) -> None:
        """Note that all clips of an indexed archive were read by its index."""
        with self._database.connection() as db:
            db.execute("UPDATE archive SET confirmed = 1 WHERE name = ?", (archive,))

    def update_etag(self, archive: str, etag: str | None) -> None:
        """Set the entity tag of an indexed archive, because a server gives the same version another tag."""
        with self._database.connection() as db:
            db.execute("UPDATE archive SET etag = ? WHERE name = ?", (etag, archive))

    def remove(self, archive: str) -> bool:
        """Remove the index of an archive. Return whether there was one."""
        with self._database.exclusive() as db:
            return self._remove(db, archive)

    def indexes(self, archives: Sequence[str] | None = None) -> Iterator[ArchiveIndex]:
        """Yield the indexes of these archives, or of all. Archives without an index are skipped."""
        wanted = None if archives is None else set(archives)
        for indexed in self.archives():
            if wanted is None or indexed.archive in wanted:
                yield self._index(indexed.archive)

    def clips(self, archive: str) -> list[Clip]:
        """Return the indexed clips of an archive."""
        with self._database.connection() as db:
            rows = db.execute(
                "SELECT key FROM clip WHERE size > 0 AND archive = (SELECT id FROM archive WHERE name = ?)", (archive,)
            ).fetchall()
        return [self._clip(key) for (key,) in rows]

    def _clip(self, key: str) -> Clip:
        clip = parse_clip_name(f"{key}.mp4")
        if clip is None:
            raise ArchiveError(f"cannot use the archive indexes in {self._path}: the file is damaged; remove it")
        return clip

    def _index(self, archive: str) -> ArchiveIndex:
        with self._database.connection() as db:
            archive_id, size, etag, gzipped = db.execute(
                "SELECT id, size, etag, gzipped FROM archive WHERE name = ?", (archive,)
            ).fetchone()
            rows = db.execute(
                'SELECT key, bit, skip, size, "end", crc, window FROM clip WHERE archive = ?', (archive_id,)
            ).fetchall()
        records = {self._clip(key): Record(*record) for key, *record in rows}
        return ArchiveIndex(archive, size, etag, bool(gzipped), records)

    @staticmethod
    def _remove(db: sqlite3.Connection, archive: str) -> bool:
        db.execute("DELETE FROM clip WHERE archive = (SELECT id FROM archive WHERE name = ?)", (archive,))
        return db.execute("DELETE FROM archive WHERE name = ?", (archive,)).rowcount > 0

    def _error(self, fault: DiskFault) -> ArchiveError:
        self._fault = fault
        return ArchiveError(f"cannot use the archive indexes in {self._path}: {fault.cause}; {fault.cure}")
