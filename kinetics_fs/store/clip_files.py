"""The files of the cached clips, and the table that maps the key of a clip and a profile to a file.

The key of a row is `<key of the clip>.<profile>`. The table is diskcache's; only this module knows how diskcache keeps
it. Files are moved in and never copied, and nothing is ever unpickled: diskcache would store any Python object, by
pickle if it must, but a cache directory can be moved from one machine to another, so its content is untrusted input. A
row is a clip file under a name that this module built, or it counts as missing.

Three things are not left to diskcache. It removes the row first and the file after it, so that a process that dies in
between leaves a file that nothing ever finds. It trusts any setting in its table. And its `get` takes twice the time
of all the rest of an open.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import sqlite3
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache.core import METADATA, MODE_BINARY

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import StoreError
from kinetics_fs.media.profile import SOURCE, UNKNOWN, is_profile
from kinetics_fs.store.database import PUBLISHERS, shown_profiles
from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.layout import CacheLayout, newer_format
from kinetics_fs.store.short_clips import is_short
from kinetics_fs.util.disk import DiskFault
from kinetics_fs.util.files import fsync
from kinetics_fs.util.sqlite import SQLITE_ERRORS, Database, transaction

_SETTINGS = {
    **diskcache.DEFAULT_SETTINGS,
    # The store evicts: it must also count the fetches in progress.
    "eviction_policy": "none",
    "cull_limit": 0,
    "sqlite_synchronous": 2,  # FULL: every commit is on the disk when it returns
}

VERSION = 2
"""The version of the table, as its `user_version`. Version 1 had no number, and the keys of its rows no profile."""

_MAX_KNOWN_FILES = 16384
"""Number of clips whose row is kept in memory: about 10 MB."""

IF_DAMAGED = "end all programs that use the cache and move {} away: the list of its clips is lost"
"""What to do if the table is damaged, for `str.format` with the cache directory."""

_FILE_NAME = re.compile(r"[0-9a-f]{2}/(?P<key>[A-Za-z0-9_-]{11}_[0-9]{6}_[0-9]{6})\.[0-9a-f]{32}\.mp4")
_TOKEN = re.compile(r"[0-9a-f]{32}")

_ROWS_OF_CLIP = "SELECT key, mode, filename, tag FROM Cache WHERE key > ? AND key < ? AND raw = 1"
"""The rows of a clip, of all profiles: between its key with "." and its key with "/", the next character."""

_MISSING_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO}
"""Errors of `open` that prove that a path is no clip file. Others, such as EMFILE, prove nothing about the file."""


class Unreadable(Exception):
    """A clip file exists but cannot be opened now."""

    def __init__(self, errno: int | None, *rest: object) -> None:
        super().__init__(errno, *rest)
        self.errno = errno


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """The metadata of a clip that is or was in the cache.

    Attributes:
        profile: how the bytes were made; see `kinetics_fs.media.profile`.
        size: bytes.
        sha256: digest of the whole file, hexadecimal.
        source: name of the source that delivered the clip.
        stored_at: when the clip was published, in seconds since the epoch.
        cached: whether the bytes are on the disk now.
        duration: seconds that the pictures cover; None if they were not measured.
    """

    profile: str
    size: int
    sha256: str
    source: str
    stored_at: float
    cached: bool
    duration: float | None = None


class OpenClipFile(NamedTuple):
    """An open clip file. The caller closes `fd`."""

    fd: int
    size: int
    """Bytes of the file; those of the record if the file is intact."""
    filename: str
    """The path below the clips folder."""
    record: ClipRecord


class MeasuredFile(NamedTuple):
    """The file of a cached clip, by the key of the clip and the profile, and the seconds that its pictures cover."""

    key: str
    profile: str
    filename: str
    """As in `OpenClipFile`."""
    duration: float


class StagedFile(NamedTuple):
    """A finished file that is to become a clip. It is moved, so it must be on the filesystem of the cache."""

    path: Path
    size: int
    token: str
    """32 hexadecimal digits that belong to one fetch: they make the final name unique, and findable after a crash."""


def clip_filename(key: str, token: str) -> str:
    """Return the path of a clip's file below the clips folder. 256 folders keep each one small at 650,000 clips."""
    return f"{zlib.crc32(key.encode()) % 256:02x}/{key}.{token}.mp4"


def key_of_filename(filename: str) -> str | None:
    """Return the key of the clip that a path below the clips folder belongs to; None if it is not a clip's path."""
    match = _FILE_NAME.fullmatch(filename)
    return match["key"] if match and _is_filename_of(filename, match["key"]) else None


def _is_filename_of(filename: object, key: str) -> bool:
    if not isinstance(filename, str):
        return False
    token = filename[-36:-4]
    return filename == clip_filename(key, token) and _TOKEN.fullmatch(token) is not None


def _row_key(key: str, profile: str) -> str:
    return f"{key}.{profile}"


def _parse_row_key(row_key: object) -> tuple[str, str] | None:
    """Return the key of the clip and the profile in the key of a row; None if it is none."""
    if not isinstance(row_key, str):
        return None
    key, _, profile = row_key.partition(".")
    return (key, profile) if parse_clip_name(f"{key}.mp4") is not None and is_profile(profile) else None


def _open_file(folder: str, filename: str) -> tuple[int, int] | None:
    """Open a clip file. Return its descriptor and its size; None if there is none.

    Only a regular file is opened, never through a symbolic link, and without waiting for the writer of a pipe.

    Raises:
        Unreadable: the file exists but cannot be opened now.
    """
    shard, _, name = filename.partition("/")
    try:
        shard_fd = os.open(f"{folder}/{shard}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=shard_fd)
        finally:
            os.close(shard_fd)
    except OSError as error:
        if error.errno in _MISSING_ERRNOS:
            return None
        raise Unreadable(error.errno, error.strerror, filename) from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    return None


class ClipFiles:
    """The clip files of one cache. Reading is safe from any thread and process.

    Call `open_table` or `use_copy` before any other method. A caller that writes must hold the lock of the state
    database (`StateDatabase.exclusive`).

    Args:
        layout: the paths of the cache. The clips folder must exist.
        faults: receives what is wrong with the table.
        profile: the profile whose clips `open` prefers.
    """

    def __init__(self, layout: CacheLayout, faults: CacheFaults, profile: str) -> None:
        self._folder = layout.clips
        self._path = str(layout.clips)
        self._profiles = shown_profiles(profile)
        self._known: dict[str, tuple[str, ClipRecord]] = {}
        # Reads the copy, if there is one; diskcache reads and writes the file.
        self._copy = Database(layout.clip_table, translate=faults.error, if_damaged=IF_DAMAGED.format(layout.root))
        self._table = self._copy.file
        self._cache: Any = None
        self._faults = faults
        self._thread = threading.local()

    def open_table(self) -> None:
        """Open the table, which is created if it is missing.

        Raises:
            StoreError: it cannot be read or written, or a later version made it. Any method may raise it later.
        """
        with self._translated_errors():
            _prepare_table(self._table.path)
            self._cache = diskcache.Cache(self._path, disk=_ClipDisk, **_SETTINGS)
        self._copy.use_file()

    def use_copy(self, fault: DiskFault) -> None:
        """Read a copy of the table in memory from now on, because the disk cannot be written.

        Args:
            fault: why it cannot.

        Raises:
            StoreError: the table cannot be read, or a later version made it.
        """
        self._copy.use_copy(fault, lambda db: _upgrade(db, self._table.path))

    def close(self) -> None:
        """Close the table."""
        self._copy.close()
        if self._cache is not None:
            self._cache.close()

    def check(self) -> None:
        """Check that the table is still the file that was opened.

        Raises:
            StoreError: it was removed, renamed or replaced.
        """
        self._table.check()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise a `StoreError` for an error of the table, or if it is no longer the file that was opened."""
        if self._cache is not None and self._cache._txn_id == threading.get_ident():
            yield  # the transaction does this
            return
        self._table.check()
        try:
            yield
        except (*SQLITE_ERRORS, diskcache.Timeout) as error:  # Timeout: for any error at the begin of a transaction
            if self._cache is not None:
                self._cache.close()  # the connection of this thread, which may remain read-only, for example
            raise self._table.error(error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if getattr(self._thread, "faults", 0) != self._faults.count:
            # The connection of this thread may have been opened while the disk was read-only, and remains so.
            self._cache.close()
            self._thread.faults = self._faults.count
        # Without `retry`, which would repeat a statement for ever that fails because the disk is full.
        with self._translated_errors(), self._cache.transact():
            yield

    def open(self, key: str) -> OpenClipFile | None:
        """Open the file of a clip, of the preferred profile; return None if there is no file, or its row is invalid.

        Raises:
            Unreadable: the file exists but cannot be opened now.
        """
        # Every open of a cached clip runs this. File names are never reused, so what was once read about a file holds
        # as long as the file exists.
        if (known := self._known.get(key)) is not None:
            if (opened := _open_file(self._path, known[0])) is not None:
                return OpenClipFile(*opened, *known)
            self._known.pop(key, None)
        found = self._rows(key, self._profiles)
        if not found or (opened := _open_file(self._path, found[0][0])) is None:
            return None
        filename, record = found[0]
        if not self._may_be_replaced(key, record):
            if len(self._known) >= _MAX_KNOWN_FILES:
                self._known.clear()
            self._known[key] = filename, record
        return OpenClipFile(*opened, filename, record)

    def open_profile(self, key: str, profile: str) -> OpenClipFile | None:
        """Open the file of a clip as `open` does, but of this profile only."""
        for filename, record in self._rows(key, (profile,)):
            if (opened := _open_file(self._path, filename)) is not None:
                return OpenClipFile(*opened, filename, record)
        return None

    def _rows(self, key: str, profiles: Sequence[str]) -> list[tuple[str, ClipRecord]]:
        """Return the files of a clip according to the table, in the order of the profiles."""
        found = {}
        for row_key, mode, filename, tag in self._sql(_ROWS_OF_CLIP, f"{key}.", f"{key}/"):
            profile = row_key[len(key) + 1 :]
            if profile not in profiles:
                continue
            record = _parse_tag(tag, profile)
            if record is not None and mode == MODE_BINARY and _is_filename_of(filename, key):
                found[profile] = filename, record
        return [found[profile] for profile in profiles if profile in found]

    def _may_be_replaced(self, key: str, record: ClipRecord) -> bool:
        """Return whether another process may store a clip that is preferred to this one: a longer one."""
        if record.profile == self._profiles[0] or record.duration is None:
            return False
        return is_short(Clip(key[:11], int(key[12:18]), int(key[19:])), record.duration)

    def put(self, key: str, file: StagedFile, record: ClipRecord) -> None:
        """Move a finished file in and commit its row, then remove an earlier file of the clip and profile.

        Raises:
            OSError: the file cannot be moved.
        """
        try:
            with self._translated_errors():  # not `_transaction`: the earlier file stays if the commit fails
                self._cache.set(_row_key(key, record.profile), file, tag=_make_tag(record))
        except BaseException:
            self.remove_file(key, file.token)
            raise

    def add_durations(self, measured: Iterable[MeasuredFile]) -> list[MeasuredFile]:
        """Add durations to the rows of clips, in one transaction; return those of clips that still have that file.

        Other processes may know the rows without them as long as they run.
        """
        added = []
        with self._transaction():
            for file in measured:
                opened = self.open_profile(file.key, file.profile)
                if opened is None:
                    continue
                os.close(opened.fd)
                if opened.filename == file.filename:
                    record = replace(opened.record, duration=file.duration)
                    row_key = _row_key(file.key, file.profile)
                    self._sql("UPDATE Cache SET tag = ? WHERE key = ? AND raw = 1", _make_tag(record), row_key)
                    self._known.pop(file.key, None)
                    added.append(file)
        return added

    def remove(self, key: str, profile: str) -> bool:
        """Remove a clip of one profile. Return whether it was in the table.

        The file is removed before its row: a process that dies in between leaves a row without a file, which is a miss.
        """
        row_key = _row_key(key, profile)
        for (filename,) in self._sql("SELECT filename FROM Cache WHERE key = ? AND raw = 1", row_key):
            if _is_filename_of(filename, key):
                self._cache.disk.remove(filename)
        with self._transaction():
            return bool(self._sql("DELETE FROM Cache WHERE key = ? RETURNING 1", row_key))

    def find(self, key: str, token: str) -> ClipRecord | None:
        """Return the record of the file of a clip that one fetch has published; None if the table has none."""
        profiles = [
            parsed[1]
            for row_key, *_ in self._sql(_ROWS_OF_CLIP, f"{key}.", f"{key}/")
            if (parsed := _parse_row_key(row_key)) is not None
        ]
        wanted = clip_filename(key, token)
        return next((record for filename, record in self._rows(key, profiles) if filename == wanted), None)

    def remove_file(self, key: str, token: str) -> None:
        """Remove the file that a publication may have moved in without committing its row."""
        (self._folder / clip_filename(key, token)).unlink(missing_ok=True)

    def remove_earlier_files(self, key: str) -> None:
        """Remove the files of a clip that no row names: a process may die before it removes a file that it replaced."""
        known, folder = self.filenames([key]), Path(clip_filename(key, "")).parent
        for path in (self._folder / folder).glob(f"{key}.*.mp4"):
            if (filename := f"{folder}/{path.name}") not in known:
                self.remove_unknown(filename)

    def filenames(self, keys: Iterable[str]) -> set[str]:
        """Return the file names that the table has for these clips, of all profiles."""
        rows = self._sql(
            "SELECT filename FROM json_each(?) AS clip JOIN Cache"
            " ON Cache.key > clip.value || '.' AND Cache.key < clip.value || '/' WHERE raw = 1",
            json.dumps(list(keys)),
        )
        return {filename for (filename,) in rows if isinstance(filename, str)}

    def remove_unknown(self, filename: str) -> None:
        """Remove a file that no row names, provided that its name is one that this module gives."""
        self._cache.disk.remove(filename)

    def totals(self) -> tuple[int, int]:
        """Return the number of clips and their bytes, as diskcache keeps count of them."""
        rows = dict(self._sql("SELECT key, value FROM Settings WHERE key IN ('count', 'size')"))
        return int(rows["count"]), int(rows["size"])

    def count(self) -> tuple[int, int]:
        """Return the number of clips and their bytes, counted row by row."""
        [(rows, size)] = self._sql("SELECT count(*), coalesce(sum(size), 0) FROM Cache")
        return rows, size

    def repair(self) -> Iterator[tuple[str, ClipRecord]]:
        """Remove rows without a file and files without a row, and correct the totals. Yield the remaining clips."""
        known, bad = set(), []
        for rowid, row_key, raw in self._sql("SELECT rowid, key, raw FROM Cache"):
            parsed = _parse_row_key(row_key) if raw == 1 else None
            opened = self.open_profile(*parsed) if parsed is not None else None
            if parsed is None or opened is None:
                bad.append(rowid)
            else:
                os.close(opened.fd)
                known.add(opened.filename)
                yield parsed[0], opened.record
        with self._transaction():
            for rowid in bad:
                self._sql("DELETE FROM Cache WHERE rowid = ?", rowid)
            rows, size = self.count()
            self._sql("UPDATE Settings SET value = ? WHERE key = 'count'", rows)
            self._sql("UPDATE Settings SET value = ? WHERE key = 'size'", size)
        for path in self._folder.glob("*/*"):
            filename = str(path.relative_to(self._folder))
            if filename not in known:
                self.remove_unknown(filename)

    def _sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        if self._copy.read_only is not None:
            return self._copy.query(statement, values)
        with self._translated_errors():
            rows: list[tuple[Any, ...]] = self._cache._sql(statement, values).fetchall()
        return rows


class _ClipDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no annotations
    """A `Disk` of diskcache whose keys are those of rows and whose values are `StagedFile`s, which are moved in."""

    def put(self, key: object) -> tuple[str, bool]:
        if not isinstance(key, str) or _parse_row_key(key) is None:
            raise ValueError(f"not a clip key: {key!r}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        return self.put(key)[0]

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str, None]:
        if not isinstance(value, StagedFile):
            raise TypeError(f"only a StagedFile can be stored, not {type(value).__name__}")
        filename = clip_filename(self.put(key)[0].partition(".")[0], value.token)
        target = Path(self._directory, filename)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        value.path.rename(target)
        fsync(target.parent)
        return value.size, MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        raise TypeError("values cannot be read through diskcache; use ClipFiles.open")

    def remove(self, file_path: str) -> None:
        if not isinstance(file_path, str) or not _FILE_NAME.fullmatch(file_path):
            return
        path = Path(self._directory, file_path)
        # Whatever another program put at this path is removed, but nothing outside of the folder.
        if path.parent.is_symlink():
            path.parent.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(NotADirectoryError):
                path.unlink(missing_ok=True)


def _prepare_table(table: Path) -> None:
    """Give the table its version, and remove settings that diskcache does not define: it would make attributes of them.

    Raises:
        StoreError: a later version made the table.
    """
    names = sorted({*diskcache.DEFAULT_SETTINGS, *METADATA})
    with contextlib.closing(sqlite3.connect(table, timeout=60, isolation_level=None)) as db, transaction(db):
        _upgrade(db, table)
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'Settings'").fetchone():
            db.execute(f"DELETE FROM Settings WHERE key NOT IN ({','.join('?' * len(names))})", names)


def _upgrade(db: sqlite3.Connection, table: Path) -> None:
    """Bring the table to the present version, in a transaction.

    Raises:
        StoreError: a later version made it.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(newer_format(table, version, VERSION))
    if version != VERSION:
        upgrade_table(db)


def upgrade_table(db: sqlite3.Connection) -> None:
    """Bring a table of version 1, or a new file, to `VERSION`.

    The clips of version 1 have no profile. Those of archives and folders are as these publish them; how the others were
    cut is unknown.

    Args:
        db: a connection in a transaction.
    """
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'Cache'").fetchone():
        db.execute(
            "UPDATE Cache SET key = key || '.' ||"
            f" CASE WHEN json_valid(tag) AND json_extract(tag, '$.source') IN {PUBLISHERS}"
            f" THEN '{SOURCE}' ELSE '{UNKNOWN}' END WHERE raw = 1 AND typeof(key) = 'text' AND instr(key, '.') = 0"
        )
    db.execute(f"PRAGMA user_version = {VERSION}")


def _make_tag(record: ClipRecord) -> str:
    """Return the record as it is kept in the row of the table."""
    return json.dumps({name: value for name, value in asdict(record).items() if name not in ("profile", "cached")})


def parse_duration(value: object) -> float | None:
    """Return a duration from a database that may come from another machine; None if it is unknown or invalid."""
    return value if isinstance(value, float) and 0 <= value < math.inf else None


def _parse_tag(tag: object, profile: str) -> ClipRecord | None:
    """Return the record in a row of the table; None if this module did not write the row."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        fields = json.loads(tag)  # type: ignore[arg-type]  # any other type raises TypeError
        size, sha256, source, stored_at = (fields[name] for name in ("size", "sha256", "source", "stored_at"))
        (sha256 + source).encode()  # a lone surrogate is not text
        if isinstance(size, int) and 0 <= size < 2**63 and math.isfinite(stored_at):
            duration = parse_duration(fields.get("duration"))
            return ClipRecord(profile, size, sha256, source, float(stored_at), cached=True, duration=duration)
    return None
