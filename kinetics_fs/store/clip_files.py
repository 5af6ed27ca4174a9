"""The table of files: clip key → file, kept by diskcache. The only module that knows how it keeps it.

diskcache's own way of removing, row first and file after, would leave a file that nobody finds when its process dies
in between; and it believes whatever stands in its settings. Both are done here instead.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache.core import METADATA, MODE_BINARY

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.store.disk import ClipDisk, Staged, clip_filename, is_file_of, open_clip_file

_SETTINGS = {
    **diskcache.DEFAULT_SETTINGS,
    # Eviction is the store's alone: it must count what is being fetched, too.
    "eviction_policy": "none",
    "cull_limit": 0,
    "sqlite_synchronous": 2,  # every commit is on the disk when it returns
}

_MOST_PLACES = 16384
"""Of how many clips the row is remembered: some 10 MB."""


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """What is known of a clip that was ever here. `size` in bytes, `sha256` hexadecimal."""

    size: int
    sha256: str
    source: str
    stored_at: float
    cached: bool


class OpenClipFile(NamedTuple):
    """A clip's open file and its size in bytes, and what the table says of it. Whoever gets it closes `fd`."""

    fd: int
    size: int
    filename: str
    record: ClipRecord


class ClipFiles:
    """The files of one folder.

    Reading is safe from any thread and process; writing is for who holds the ledger's lock.

    Raises:
        sqlite3.DatabaseError: the table cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = str(folder)
        self._places: dict[str, tuple[str, ClipRecord]] = {}
        _remove_unknown_settings(folder / "cache.db")
        self._cache = diskcache.Cache(str(folder), disk=ClipDisk, **_SETTINGS)

    def close(self) -> None:
        self._cache.close()

    def find(self, key: str) -> OpenClipFile | None:
        """Opens a clip's file; None if there is none, or a row that is not of our making.

        Raises:
            Unreadable: the file is there, but cannot be opened now.
        """
        # In the path of every open. A file's name never comes again, so that what was once read of it holds as long as
        # it is there.
        if (known := self._places.get(key)) is not None:
            if (opened := open_clip_file(self._path, known[0])) is not None:
                return OpenClipFile(*opened, *known)
            self._places.pop(key, None)
        # Not by `Cache.get`, which takes twice the time of all the rest.
        rows = self._sql("SELECT mode, filename, tag FROM Cache WHERE key = ? AND raw = 1", key)
        for mode, filename, tag in rows:
            record = _parse_tag(tag)
            if mode == MODE_BINARY and isinstance(filename, str) and is_file_of(filename, key) and record is not None:
                opened = open_clip_file(self._path, filename)
                if opened is None:
                    return None
                if len(self._places) >= _MOST_PLACES:
                    self._places.clear()
                self._places[key] = filename, record
                return OpenClipFile(*opened, filename, record)
        return None

    def put(self, key: str, file: Staged, record: ClipRecord) -> None:
        """Moves a finished file in, and commits its row; what was there before goes."""
        self.remove(key)
        fields = {"size": record.size, "sha256": record.sha256, "source": record.source, "stored_at": record.stored_at}
        try:
            self._cache.set(key, file, tag=json.dumps(fields), retry=True)
        except BaseException:
            self.remove_file(key, file.token)
            raise

    def remove(self, key: str) -> bool:
        """Removes a clip; whether there was one.

        The file before its row: a process that dies between leaves a row without a file, which is a miss.
        """
        for (filename,) in self._sql("SELECT filename FROM Cache WHERE key = ? AND raw = 1", key):
            if isinstance(filename, str) and is_file_of(filename, key):
                self._cache.disk.remove(filename)
        with self._cache.transact(retry=True):
            return bool(self._sql("DELETE FROM Cache WHERE key = ? RETURNING 1", key))

    def remove_file(self, key: str, token: str) -> None:
        """Removes the file that a publication may have moved in without committing its row."""
        (self._folder / clip_filename(key, token)).unlink(missing_ok=True)

    def names(self, keys: Iterable[str]) -> set[str]:
        """The names of the files that these clips have."""
        rows = self._sql(
            "SELECT filename FROM Cache WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))",
            json.dumps(list(keys)),
        )
        return {filename for (filename,) in rows if isinstance(filename, str)}

    def remove_unknown(self, filename: str) -> None:
        """Removes what no row names, whatever it is, if it has a name that we give."""
        self._cache.disk.remove(filename)

    def totals(self) -> tuple[int, int]:
        """How many clips there are, and how many bytes: as diskcache counts them along."""
        return len(self._cache), int(self._cache.reset("size"))

    def counted(self) -> tuple[int, int]:
        """The same, counted anew."""
        [(rows, size)] = self._sql("SELECT count(*), coalesce(sum(size), 0) FROM Cache")
        return rows, size

    def mend(self) -> Iterator[tuple[str, ClipRecord]]:
        """Removes rows without a file and files without a row, and sets the totals right; yields what is left."""
        known, bad = set(), []
        for rowid, key, raw in self._sql("SELECT rowid, key, raw FROM Cache"):
            is_clip = isinstance(key, str) and raw == 1 and parse_clip_name(f"{key}.mp4") is not None
            found = self.find(key) if is_clip else None
            if found is None:
                bad.append(rowid)
            else:
                os.close(found.fd)
                known.add(found.filename)
                yield key, found.record
        with self._cache.transact(retry=True):
            for rowid in bad:
                self._sql("DELETE FROM Cache WHERE rowid = ?", rowid)
            rows, size = self.counted()
            self._sql("UPDATE Settings SET value = ? WHERE key = 'count'", rows)
            self._sql("UPDATE Settings SET value = ? WHERE key = 'size'", size)
        for path in self._folder.glob("*/*"):
            filename = str(path.relative_to(self._folder))
            if filename not in known:
                self.remove_unknown(filename)

    def _sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._cache._sql(statement, values).fetchall()
        return rows


def _remove_unknown_settings(database: Path) -> None:
    """Remove rows that diskcache would make attributes of itself."""
    names = sorted({*diskcache.DEFAULT_SETTINGS, *METADATA})
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as db, db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'Settings'").fetchone():
            db.execute(f"DELETE FROM Settings WHERE key NOT IN ({','.join('?' * len(names))})", names)


def _parse_tag(tag: object) -> ClipRecord | None:
    """The record in a row of the table, or None if it is not one that we wrote."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        fields = json.loads(tag)  # type: ignore[arg-type]  # whatever it is, a TypeError says so
        size, sha256, source, stored_at = (fields[name] for name in ("size", "sha256", "source", "stored_at"))
        (sha256 + source).encode()  # half a surrogate is no text
        if isinstance(size, int) and 0 <= size < 2**63 and math.isfinite(stored_at):
            return ClipRecord(size, sha256, source, float(stored_at), cached=True)
    return None
