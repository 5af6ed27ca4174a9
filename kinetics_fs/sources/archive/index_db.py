"""The indexes that are here: which archives have a clip, and where in them.

One SQLite file, looked into by all workers at once. It is filled by passes over archives and from index files of
others; whatever is in it can be had again in one of these ways, so a damaged one may simply be removed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex, Record, check_record
from kinetics_fs.util.sqlite import Database

_VERSION = 1
_KEYS_PER_QUERY = 500

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS archive (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,  -- 600/val/abseiling.tar.gz
    size    INTEGER NOT NULL,      -- bytes
    etag    TEXT,                  -- of the version that was indexed; NULL from a disk
    gzipped INTEGER NOT NULL
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
    """Where a clip is."""

    archive: str
    version: Version
    gzipped: bool
    record: Record


class Indexed(NamedTuple):
    """An archive whose index is here."""

    archive: str
    version: Version
    clips: int


class ArchiveIndexDB:
    """The indexes in one file. Safe for threads and processes, but not across a fork.

    Its methods raise:
        ArchiveError: the file is damaged.

    Args:
        path: of the file; made if it is not there.

    Raises:
        ArchiveError: it cannot be opened, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, translate=self._error, synchronous="NORMAL")
        with self._database.connection() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(_SCHEMA)
            elif version != _VERSION:
                raise ArchiveError(f"the indexes in {path} are of another version of kinetics-fs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. The object is of no use afterwards."""
        self._database.close()

    def find(self, clip: Clip) -> list[ClipLocation]:
        """Everywhere the clip is: archives that were published to replace broken clips first."""
        with self._database.connection() as db:
            rows = db.execute(
                """
                SELECT name, archive.size, etag, gzipped, bit, skip, clip.size, "end", crc, window
                FROM clip JOIN archive ON archive.id = clip.archive
                WHERE key = ? ORDER BY name LIKE '%replacement%' DESC, name
                """,
                (clip.key,),
            ).fetchall()
        places = []
        for name, size, etag, gzipped, *record in rows:
            place = ClipLocation(name, Version(size, etag), bool(gzipped), Record(*record))
            check_record(place.record, size, gzipped=place.gzipped)
            places.append(place)
        return places

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """The exact sizes in bytes of those clips that are indexed, both by `Clip.key`, without asking anyone."""
        found: dict[str, int] = {}
        with self._database.connection() as db:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                found.update(
                    db.execute(
                        f"""
                        SELECT key, clip.size FROM clip JOIN archive ON archive.id = clip.archive
                        WHERE key IN ({marks}) ORDER BY name LIKE '%replacement%', name DESC
                        """,
                        some,
                    )
                )
        return found

    def version(self, archive: str) -> Version | None:
        """The version of an archive that is indexed; None if none is."""
        with self._database.connection() as db:
            row = db.execute("SELECT size, etag FROM archive WHERE name = ?", (archive,)).fetchone()
        return None if row is None else Version(*row)

    def archives(self) -> list[Indexed]:
        """The archives whose indexes are here, by name."""
        with self._database.connection() as db:
            rows = db.execute(
                """
                SELECT name, archive.size, etag, count(clip.key) FROM archive
                LEFT JOIN clip ON clip.archive = archive.id GROUP BY archive.id ORDER BY name
                """
            ).fetchall()
        return [Indexed(name, Version(size, etag), clips) for name, size, etag, clips in rows]

    def add(self, index: ArchiveIndex) -> None:
        """Takes an index in, in place of an earlier one of the same archive."""
        with self._database.exclusive() as db:
            self._remove(db, index.archive)
            number = db.execute(
                "INSERT INTO archive (name, size, etag, gzipped) VALUES (?, ?, ?, ?)",
                (index.archive, index.size, index.etag, index.gzipped),
            ).lastrowid
            db.executemany(
                "INSERT INTO clip VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((clip.key, number, *record) for clip, record in index.records.items()),
            )

    def update_etag(self, archive: str, etag: str | None) -> None:
        """Notes that an index is good for what is called `etag` where it is asked for now."""
        with self._database.connection() as db:
            db.execute("UPDATE archive SET etag = ? WHERE name = ?", (etag, archive))

    def remove(self, archive: str) -> bool:
        """Gives up the index of an archive; whether there was one."""
        with self._database.exclusive() as db:
            return self._remove(db, archive)

    def indexes(self, archives: Sequence[str] | None = None) -> Iterator[ArchiveIndex]:
        """The indexes of these archives, or of all, to be written to a file; an unknown archive is left out."""
        wanted = None if archives is None else set(archives)
        for indexed in self.archives():
            if wanted is None or indexed.archive in wanted:
                yield self._index(indexed.archive)

    def _index(self, archive: str) -> ArchiveIndex:
        with self._database.connection() as db:
            number, size, etag, gzipped = db.execute(
                "SELECT id, size, etag, gzipped FROM archive WHERE name = ?", (archive,)
            ).fetchone()
            rows = db.execute(
                'SELECT key, bit, skip, size, "end", crc, window FROM clip WHERE archive = ?', (number,)
            ).fetchall()
        records: dict[Clip, Record] = {}
        for key, *record in rows:
            clip = parse_clip_name(f"{key}.mp4")
            if clip is None:
                raise ArchiveError(f"the indexes in {self._path} are damaged")
            records[clip] = Record(*record)
        return ArchiveIndex(archive, size, etag, bool(gzipped), records)

    @staticmethod
    def _remove(db: sqlite3.Connection, archive: str) -> bool:
        db.execute("DELETE FROM clip WHERE archive = (SELECT id FROM archive WHERE name = ?)", (archive,))
        return db.execute("DELETE FROM archive WHERE name = ?", (archive,)).rowcount > 0

    def _error(self, error: sqlite3.Error) -> ArchiveError:
        return ArchiveError(f"the indexes in {self._path} cannot be used: {error}")
