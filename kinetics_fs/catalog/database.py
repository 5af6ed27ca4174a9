"""The file of a catalog: its schema, how it is built, and when it is removed.

The name of a file is a hash of all its inputs, so a file never changes: it exists and is valid, or it is built. It is
built in a temporary file in the same folder, which is renamed when it is complete and on the disk. If two processes
build the same catalog at once, the second one replaces the file of the first by an equal one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kinetics_fs.catalog.inodes import clip_ino
from kinetics_fs.catalog.naming import UNLABELED
from kinetics_fs.errors import CatalogError
from kinetics_fs.util.disk import UNWRITABLE, examine, fault_of
from kinetics_fs.util.files import atomic_path, fsync

APPLICATION_ID = int.from_bytes(b"KiFS")
"""In the header of every catalog: marks it as a file of kinetics-fs."""
SCHEMA_VERSION = 2
"""In the header, and part of the name: after a change of the schema, old files are unused, then pruned."""
MAX_CATALOGS = 32
"""Number of catalogs that a folder keeps."""
MIN_AGE = 86_400
"""Seconds since its last use during which a catalog is kept, whatever their number."""

SCHEMA = f"""
-- The splits, and the classes in them. A class without a clip in a split has no row there.
CREATE TABLE directory (
    id INTEGER PRIMARY KEY,     -- in listing order: all splits, then the classes of each, sorted by label
    ino INTEGER NOT NULL UNIQUE,-- inode number (see inodes.py)
    parent INTEGER NOT NULL,    -- ino of the split; 0 for a split itself
    split TEXT NOT NULL,        -- train, validation or test
    label TEXT,                 -- label of the class; '{UNLABELED}' for clips without one; NULL for a split
    first_row INTEGER NOT NULL, -- clip.row of its first clip; the others follow without gaps
    clips INTEGER NOT NULL      -- number of its clips
);

-- One row per file: a clip in a class in a split.
CREATE TABLE clip (
    row INTEGER PRIMARY KEY,    -- in the order of directory.id, then of file names
    directory INTEGER NOT NULL, -- directory.id of the class
    youtube_id TEXT NOT NULL,
    start INTEGER NOT NULL,     -- seconds
    "end" INTEGER NOT NULL,     -- seconds
    ino INTEGER NOT NULL,       -- inode number (see inodes.py)
    origin INTEGER NOT NULL     -- origin.id
);

-- The lists and archives that name clips.
CREATE TABLE origin (
    id INTEGER PRIMARY KEY,     -- in the order of precedence: of two that name a clip, the first is its origin
    kind TEXT NOT NULL,         -- list, or archive for a class archive that has clips that no list names
    name TEXT NOT NULL          -- base name of the list; name of the archive
);

-- The number of clips of each origin in each split.
CREATE TABLE origin_count (
    origin INTEGER NOT NULL,
    split TEXT NOT NULL,
    clips INTEGER NOT NULL
);

-- Every class of the release, whatever is selected: class indexes never depend on a selection.
CREATE TABLE label (
    position INTEGER PRIMARY KEY, -- the class index: 0 for the first in sorted order
    label TEXT NOT NULL UNIQUE
);

-- The first refused rows of the annotations.
CREATE TABLE refusal (
    file TEXT NOT NULL,         -- base name; archive:member in an archive
    line INTEGER NOT NULL,      -- physical line; number of the entry in JSON
    reason TEXT NOT NULL,
    text TEXT NOT NULL          -- the row, shortened and escaped
);

-- The number of all refused rows, by reason.
CREATE TABLE refusal_count (
    reason TEXT PRIMARY KEY,
    rows INTEGER NOT NULL
);

-- release, published (ISO date), key (SHA-256 of all inputs: names the file), digest (SHA-256 that identifies the
-- clips), annotations_digest (the digest without the clips that only archives name), source (the release and the paths
-- of its lists, which may have other contents later), duplicates (number of repeated rows); selection (its parameters)
-- and no source if the catalog is a selection from another one.
CREATE TABLE info (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
"""
CLIP_PATH = """split || '/' || label || '/' || printf('%s_%06d_%06d.mp4', youtube_id, start, "end")"""
"""The canonical path of a clip, in SQL, over a row of `clip` joined with its `directory`."""


def catalog_path(folder: Path, annotations_digest: str, key: str) -> Path:
    """Return the path of a catalog.

    Args:
        folder: the folder of the catalogs.
        annotations_digest: digest without the clips that only archives name.
        key: hash of all inputs.
    """
    return folder / f"{_family(annotations_digest)}{key[:16]}.sqlite"


def possible_paths(path: Path) -> list[Path]:
    """Return where a catalog may be: its path, and that of a substitute in a private folder for temporary files.

    The substitute is for a folder that cannot be written: on a read-only or full disk, every selection from the clips
    that are cached there can still be mounted and exported.
    """
    substitute = _substitute(path)
    return [path, substitute] if _is_private(substitute.parent) else [path]


def path_to_build(path: Path, size: int) -> Path:
    """Return the path of a catalog, or that of its substitute if it cannot be built there.

    Args:
        path: the path.
        size: bytes that the catalog may have.

    Raises:
        CatalogError: it cannot be built in either place.
    """
    fault, substitute = examine(path.parent, size), _substitute(path)
    if fault is None or fault.errno not in UNWRITABLE:
        return path
    with suppress(OSError):
        substitute.parent.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(substitute.parent):
        raise CatalogError(
            f"cannot build a catalog in {path.parent} or in {substitute.parent}: {fault.cause}; {fault.cure}"
        )
    return substitute


def _substitute(path: Path) -> Path:
    return Path(tempfile.gettempdir(), f"kinetics-fs-{os.geteuid()}-catalogs", path.name)


def _is_private(folder: Path) -> bool:
    """Return whether a folder belongs to this user, and no other user can write to it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _family(annotations_digest: str) -> str:
    return f"v{SCHEMA_VERSION}-{annotations_digest[:16]}-"


def remove_predecessors(path: Path, annotations_digest: str) -> None:
    """Remove the other catalogs of the same annotations with clips of archives: more archives are indexed now.

    A fill of a release indexes hundreds of archives, and each could leave a catalog of 60 MB. Files in use stay.
    """
    keep = {path, catalog_path(path.parent, annotations_digest, annotations_digest)}
    for other in path.parent.glob(f"{_family(annotations_digest)}*.sqlite"):
        if other not in keep:
            with suppress(OSError):
                _remove_unless_in_use(other)


@contextmanager
def new_database(path: Path, info: Mapping[str, str]) -> Iterator[sqlite3.Connection]:
    """Build a catalog at `path`: yield a connection to an empty one, which the caller fills.

    The caller fills every table except `info`, with clips in their final order and with 0 in `directory.first_row` and
    `directory.clips`. These two columns and the indexes follow when the block ends. Then the file replaces `path`.

    Raises:
        CatalogError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path) as temporary,
            closing(sqlite3.connect(temporary.absolute().as_uri(), uri=True, isolation_level=None)) as connection,
        ):
            # No other process uses this file, and after a crash it is discarded, so nothing waits for the disk. The
            # journal is needed for statements that fail, as in `_make_inos_unique`. It is small, as the file is new.
            connection.executescript(
                f"""
                PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
                PRAGMA cache_size = -16384; PRAGMA threads = 2;
                PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};
                """
                + SCHEMA
            )
            connection.create_function("clip_ino", 2, clip_ino, deterministic=True)
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO info VALUES (?, ?)", info.items())
            yield connection
            _finish(connection)
            connection.execute("COMMIT")
        fsync(path.parent)
    except (sqlite3.Error, OSError) as error:
        fault = fault_of(error, path.parent, if_damaged="try again")
        raise CatalogError(f"cannot build a catalog in {path.parent}: {fault.cause}; {fault.cure}") from error
    prune(path.parent)


def _finish(connection: sqlite3.Connection) -> None:
    """Add the data that follows from the rows: unique inode numbers, rows and counts of directories, indexes."""
    _make_inos_unique(connection)
    connection.execute("CREATE INDEX clip_by_video ON clip (youtube_id)")
    connection.execute(
        """
        INSERT INTO origin_count
        SELECT clip.origin, directory.split, count(*) FROM clip JOIN directory ON directory.id = clip.directory
        GROUP BY clip.origin, directory.split
        """
    )
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


def _make_inos_unique(connection: sqlite3.Connection) -> None:
    attempt = 0
    while True:
        with suppress(sqlite3.IntegrityError):
            connection.execute("CREATE UNIQUE INDEX clip_by_number ON clip (ino)")
            return
        attempt += 1
        connection.execute(
            f"""
            UPDATE clip SET ino = clip_ino(later.path, ?)
            FROM (SELECT row, {CLIP_PATH} AS path, row_number() OVER (PARTITION BY clip.ino ORDER BY row) AS turn
                  FROM clip JOIN directory ON directory.id = clip.directory) AS later
            WHERE clip.row = later.row AND turn > 1
            """,
            (attempt,),
        )


def latest_labels(folder: Path, source: str) -> list[str]:
    """Return the sorted labels of the catalog with this `source` that was used last; none if there is none."""
    for path, _ in _by_last_use(folder, "*.sqlite"):
        uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
        with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as connection:
            if connection.execute("SELECT 1 FROM info WHERE key = 'source' AND value = ?", (source,)).fetchone():
                return [label for (label,) in connection.execute("SELECT label FROM label ORDER BY position")]
    return []


def touch(path: Path) -> None:
    """Set the time of the last use of a catalog, for `prune`. Does nothing in a folder that cannot be written."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Hold a shared lock on a catalog while the block runs, so that `prune` in any process does not remove it.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a filesystem without locks: then only its age protects the file
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def prune(folder: Path) -> None:
    """Remove the least recently used catalogs beyond `MAX_CATALOGS`, and the temporary files of crashed builds.

    Files that are open or were used within `MIN_AGE` stay. Errors are ignored: the next call tries again.
    """
    catalogs = _by_last_use(folder, "*.sqlite")
    for path, age in catalogs[MAX_CATALOGS:] + _by_last_use(folder, ".*.tmp"):
        if age > MIN_AGE:
            with suppress(OSError):
                _remove_unless_in_use(path)


def _by_last_use(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """Return files and the seconds since their last use, the most recently used first."""
    found = []
    now = time.time()
    for path in folder.glob(pattern):
        with suppress(OSError):  # removed by another process
            found.append((path, now - path.stat().st_mtime))
    return sorted(found, key=lambda item: item[1])


def _remove_unless_in_use(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)
