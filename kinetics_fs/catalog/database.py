"""The file that a catalog is: its schema, how one comes to be, and how long it is kept.

The name of a file is a hash of everything that went into it, so a file is never changed: it is there and right, or it
is built. Building happens in a temporary file of the same folder that is moved into place when it is complete and on
disk. Two processes that build the same catalog at once build it twice, and the second one replaces the first by an
equal file.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kinetics_fs.catalog.inodes import clip_number
from kinetics_fs.catalog.naming import UNLABELED
from kinetics_fs.errors import CatalogError
from kinetics_fs.util.files import atomic_path, fsync

APPLICATION_ID = int.from_bytes(b"KiFS")
"""In the header of every catalog: says whose file it is."""
SCHEMA_VERSION = 1
"""In the header too, and part of every name: a change of schema leaves old files unused, and then pruned."""
KEPT_FILES = 32
"""How many catalogs a folder keeps."""
KEPT_SECONDS = 86_400
"""A catalog that was used within this time is kept whatever their number."""

SCHEMA = f"""
-- The splits, and the classes in them. A class that has no clip in a split has no row there.
CREATE TABLE directory (
    id INTEGER PRIMARY KEY,     -- in listing order: all splits, then the classes of each, sorted by label
    ino INTEGER NOT NULL UNIQUE,-- inode number (see inodes.py)
    parent INTEGER NOT NULL,    -- ino of the split; 0 for a split itself
    split TEXT NOT NULL,        -- train, validation or test
    label TEXT,                 -- of the class, '{UNLABELED}' for clips without one; NULL for a split
    first_row INTEGER NOT NULL, -- clip.row of its first clip; the others follow without a gap
    clips INTEGER NOT NULL      -- how many there are
);

-- One row per file: a clip in a class in a split.
CREATE TABLE clip (
    row INTEGER PRIMARY KEY,    -- in the order of directory.id, then of file names
    directory INTEGER NOT NULL, -- directory.id of the class
    youtube_id TEXT NOT NULL,
    start INTEGER NOT NULL,     -- seconds
    "end" INTEGER NOT NULL,     -- seconds
    ino INTEGER NOT NULL        -- inode number (see inodes.py)
);

-- Every class of the release, also those that a selection left out: class indexes never depend on a selection.
CREATE TABLE label (
    position INTEGER PRIMARY KEY, -- the class index: 0 for the first in sorted order
    label TEXT NOT NULL UNIQUE
);

-- The first of the rows that were refused.
CREATE TABLE refusal (
    file TEXT NOT NULL,         -- base name, or archive:member
    line INTEGER NOT NULL,      -- physical line, or number of the entry in JSON
    reason TEXT NOT NULL,
    text TEXT NOT NULL          -- the row, cut and escaped
);

-- All of the refused rows, counted.
CREATE TABLE refusal_count (
    reason TEXT PRIMARY KEY,
    rows INTEGER NOT NULL
);

-- release, published (ISO date), digest (SHA-256 of all that went into this file), duplicates (rows merged away);
-- selection (what was chosen) in a catalog that is a selection from another.
CREATE TABLE info (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
"""
CLIP_PATH = """split || '/' || label || '/' || printf('%s_%06d_%06d.mp4', youtube_id, start, "end")"""
"""The canonical path of a clip, in SQL, over a row of `clip` joined with its `directory`."""


def catalog_path(folder: Path, digest: str) -> Path:
    """Where the catalog of that content stands."""
    return folder / f"{digest[:16]}.sqlite"


@contextmanager
def new_database(path: Path, info: Mapping[str, str]) -> Iterator[sqlite3.Connection]:
    """Builds a catalog at `path`: yields a connection on an empty one for the caller to fill in.

    The caller fills every table but `info`, with `directory.first_row` and `clips` left at 0 and clips in their final
    order; these two and the indexes are made here. When the block ends well the file replaces what is at `path`.

    Raises:
        CatalogError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path) as temporary,
            closing(sqlite3.connect(temporary.absolute().as_uri(), uri=True, isolation_level=None)) as connection,
        ):
            # Nobody else sees this file, and after a crash it is thrown away: no waiting for the disk. The journal is
            # for statements that fail, as `_make_numbers_unique` expects; what it holds is small, as the file is new.
            connection.executescript(
                f"""
                PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
                PRAGMA cache_size = -16384; PRAGMA threads = 2;
                PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};
                """
                + SCHEMA
            )
            connection.create_function("clip_number", 2, clip_number, deterministic=True)
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO info VALUES (?, ?)", info.items())
            yield connection
            _finish(connection)
            connection.execute("COMMIT")
        fsync(path.parent)
    except sqlite3.Error as error:
        raise CatalogError(f"a catalog cannot be built in {path.parent}: {error}") from error
    except OSError as error:
        raise CatalogError(f"a catalog cannot be built in {path.parent}: {error.strerror or error}") from error
    prune(path.parent)


def _finish(connection: sqlite3.Connection) -> None:
    """What follows from the rows: unique inode numbers, ranges and counts of directories, indexes."""
    _make_numbers_unique(connection)
    connection.execute("CREATE INDEX clip_by_video ON clip (youtube_id)")
    connection.execute(
        """
        UPDATE directory SET first_row = counted.first_row, clips = counted.clips
        FROM (SELECT directory, min(row) AS first_row, count(*) AS clips FROM clip GROUP BY directory) AS counted
        WHERE id = counted.directory
        """
    )
    connection.execute(
        """
        UPDATE directory SET first_row = counted.first_row, clips = counted.clips
        FROM (SELECT parent, min(first_row) AS first_row, sum(clips) AS clips
              FROM directory WHERE clips > 0 GROUP BY parent) AS counted
        WHERE ino = counted.parent
        """
    )
    connection.execute("DELETE FROM directory WHERE clips = 0")


def _make_numbers_unique(connection: sqlite3.Connection) -> None:
    attempt = 0
    while True:
        with suppress(sqlite3.IntegrityError):
            connection.execute("CREATE UNIQUE INDEX clip_by_number ON clip (ino)")
            return
        attempt += 1
        connection.execute(
            f"""
            UPDATE clip SET ino = clip_number(later.path, ?)
            FROM (SELECT row, {CLIP_PATH} AS path, row_number() OVER (PARTITION BY clip.ino ORDER BY row) AS place
                  FROM clip JOIN directory ON directory.id = clip.directory) AS later
            WHERE clip.row = later.row AND place > 1
            """,
            (attempt,),
        )


def touch(path: Path) -> None:
    """Notes that a catalog is in use, for `prune`. A folder that is not ours to write is used as it is."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps `prune`, in any process, from removing a catalog that is open: it has a shared lock meanwhile.

    Raises:
        OSError: it is not there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: then the age alone protects it
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def prune(folder: Path) -> None:
    """Removes the catalogs that were not used for longest, beyond `KEPT_FILES`, and what crashed builds left.

    Never one that was used within `KEPT_SECONDS` or is open. Failures do not matter: the next one tries again.
    """
    catalogs = _by_last_use(folder, "*.sqlite")
    for path, age in catalogs[KEPT_FILES:] + _by_last_use(folder, ".*.tmp"):
        if age > KEPT_SECONDS:
            with suppress(OSError):
                _remove_unless_held(path)


def _by_last_use(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """Files and their ages in seconds, youngest first."""
    found = []
    now = time.time()
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process was quicker
            found.append((path, now - path.stat().st_mtime))
    return sorted(found, key=lambda item: item[1])


def _remove_unless_held(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)
