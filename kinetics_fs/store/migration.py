"""The change of a cache directory of format 1 to the present format.

Format 1 had the state database in `ledger.sqlite` and the process locks in `owners/`, and no profiles. Its state
database and its table of clips had no version.

The steps, each of which may be interrupted and is then done by the next process that opens the cache:

1. The tag says that the cache is changing to format 2. From now on, a version that knows only format 1 refuses it.
2. One transaction changes the state database, another one the table of clips. Both then have their version.
3. The files get their new names.
4. The tag says that the cache has format 2.

Clip files stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from kinetics_fs.errors import StoreError
from kinetics_fs.media.profile import SOURCE, UNKNOWN
from kinetics_fs.store.clip_files import upgrade_table
from kinetics_fs.store.database import IF_DAMAGED, PUBLISHERS, SCHEMA, VERSION, run_script
from kinetics_fs.store.layout import (
    FORMAT,
    CacheFormat,
    CacheLayout,
    cache_error,
    locked,
    newer_format,
    read_format,
    write_format,
)
from kinetics_fs.store.process_lock import is_locked
from kinetics_fs.util.disk import fault_of
from kinetics_fs.util.files import fsync
from kinetics_fs.util.sqlite import transaction

_log = logging.getLogger(__name__)

_BUSY_TIMEOUT = 10.0
"""Seconds to wait for a transaction of a command that reads the cache."""

_CACHE_KIB = 256 * 1024
"""Memory for the pages of a database, in KiB. With less, a large one is written several times."""

_MANY_CLIPS = 50_000
"""Clips whose change takes about a second."""

_OLD_TABLES = """
-- Tables that early versions of format 1 lack.
CREATE TABLE IF NOT EXISTS duration (key TEXT PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS longer (key TEXT PRIMARY KEY, retry_at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pin (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdict (
    origin TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, errno INTEGER,
    first_at REAL NOT NULL, last_at REAL NOT NULL, attempts INTEGER NOT NULL, retry_at REAL NOT NULL,
    PRIMARY KEY (origin, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS suspect (
    origin TEXT PRIMARY KEY, suspected_at REAL NOT NULL, tried INTEGER NOT NULL, failed_at REAL NOT NULL,
    control_until REAL NOT NULL
) WITHOUT ROWID;
"""

_RENAMES = """
DROP INDEX IF EXISTS clip_by_pin_and_use;
DROP INDEX IF EXISTS clip_in_order_of_eviction;
DROP INDEX IF EXISTS asked_in_order;
ALTER TABLE clip RENAME TO clip_without_profile;
ALTER TABLE longer RENAME TO asked_for_longer;
ALTER TABLE flight RENAME TO fetch;
ALTER TABLE fetch RENAME COLUMN owner TO process;
ALTER TABLE origin RENAME TO breaker;
ALTER TABLE breaker RENAME COLUMN name TO source;
ALTER TABLE asked RENAME TO request;
ALTER TABLE request RENAME COLUMN origin TO source;
ALTER TABLE verdict RENAME COLUMN origin TO source;
ALTER TABLE suspect RENAME COLUMN origin TO source;
"""

_CLIPS = f"""
DROP INDEX clip_by_pin_and_use;  -- made again at the end, which is faster than with each row
INSERT INTO clip (key, profile, size, sha256, source, stored_at, opened_at, cached, pinned, duration)
    SELECT key, CASE WHEN source IN {PUBLISHERS} THEN '{SOURCE}' ELSE '{UNKNOWN}' END,
        size, sha256, source, stored_at, opened_at, held, EXISTS (SELECT 1 FROM pin WHERE pin.key = old.key), seconds
    FROM clip_without_profile AS old LEFT JOIN duration USING (key) ORDER BY key;
DROP TABLE clip_without_profile;
DROP TABLE duration;
"""


def upgrade_state(db: sqlite3.Connection) -> None:
    """Bring the state database of format 1 to `database.VERSION`.

    Args:
        db: a connection in a transaction.
    """
    for script in (_OLD_TABLES, _RENAMES, SCHEMA, _CLIPS, SCHEMA):
        run_script(db, script)


def upgrade_copy(db: sqlite3.Connection) -> None:
    """Bring a copy of the state database, of any format, to `database.VERSION`.

    Args:
        db: a connection in a transaction.

    Raises:
        StoreError: a later version made it.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(newer_format(Path("the state database of the cache"), version, VERSION))
    if version != VERSION:
        upgrade_state(db)


def old_state_database(layout: CacheLayout) -> Path:
    """Return the path of the state database of format 1."""
    return layout.root / "ledger.sqlite"


def migrate(layout: CacheLayout) -> None:
    """Bring a cache directory to the present format, if it has an earlier one. Only one process does this.

    Raises:
        StoreError: another process uses the cache, or a database cannot be read or written.
        OSError: a file cannot be written or renamed.
    """
    if read_format(layout.root) == CacheFormat(FORMAT):
        return
    with locked(layout.root):
        if read_format(layout.root) == CacheFormat(FORMAT):
            return  # another process has done it meanwhile
        _change_state(layout)
        if layout.clip_table.exists():
            with _connected(layout, layout.clip_table) as db, transaction(db):
                if db.execute("PRAGMA user_version").fetchone() == (0,):
                    upgrade_table(db)
        old_locks = _old_locks(layout)
        if old_locks.exists():
            old_locks.rename(layout.process_locks)
        write_format(layout.root, CacheFormat(FORMAT))
        _log.info("%s: has format %d now", layout.root, FORMAT)


def _change_state(layout: CacheLayout) -> None:
    old = old_state_database(layout)
    if not old.exists():
        _refuse_if_in_use(layout)
        write_format(layout.root, CacheFormat(FORMAT, changing=True))
        return
    with _connected(layout, old) as db:
        with transaction(db):  # a process of format 1 that starts now waits for its end, and then finds no `owners/`
            _refuse_if_in_use(layout)
            write_format(layout.root, CacheFormat(FORMAT, changing=True))
            if db.execute("PRAGMA user_version").fetchone() < (VERSION,):
                [(clips,)] = db.execute("SELECT count(*) FROM clip").fetchall()
                level = logging.WARNING if clips >= _MANY_CLIPS else logging.INFO
                _log.log(level, "%s: changing its format, once; it has records of %d clips", layout.root, clips)
                upgrade_state(db)
        # Writes the log of SQLite into the file, which alone is renamed.
        db.execute("PRAGMA journal_mode = DELETE")
    old.rename(layout.state_database)
    fsync(layout.root)


@contextlib.contextmanager
def _connected(layout: CacheLayout, database: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(database, timeout=_BUSY_TIMEOUT, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        yield db
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise _in_use(layout) from error
        raise cache_error(layout.root, fault_of(error, database, if_damaged=IF_DAMAGED.format(database))) from error
    finally:
        db.close()


def _old_locks(layout: CacheLayout) -> Path:
    return layout.root / "owners"


def _refuse_if_in_use(layout: CacheLayout) -> None:
    with contextlib.suppress(FileNotFoundError):
        if any(is_locked(path) for path in _old_locks(layout).iterdir()):
            raise _in_use(layout)


def _in_use(layout: CacheLayout) -> StoreError:
    return StoreError(
        f"cannot change {layout.root} to the format of this version: a process of an earlier version uses it;"
        " unmount it and wait for its commands to end, or choose another --cache-dir"
    )
