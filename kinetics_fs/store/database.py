"""The state database: sizes, durations, access times, pins, failures, fetches in progress and history of a cache.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the store
publishes and evicts, so that no two processes ever count the same free bytes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from kinetics_fs.errors import StoreError
from kinetics_fs.media.profile import SOURCE, UNKNOWN
from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.layout import locked, newer_format
from kinetics_fs.util.sqlite import Database, transaction

PUBLISHERS = ("archive", "folder")
"""The sources that publish clips as files, which version 1 stored without cutting them."""

VERSION = 2
"""The version of the schema. Version 1 had no number; `kinetics_fs.store.migration` describes it."""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS clip (    -- a row for each clip and profile that is or was cached
    key       TEXT NOT NULL,         -- <youtube id>_<start>_<end>
    profile   TEXT NOT NULL,         -- how the bytes were made: see kinetics_fs.media.profile
    size      INTEGER NOT NULL,      -- bytes; kept when the clip is evicted, so that stat stays exact
    sha256    TEXT NOT NULL,         -- digest of the whole file, hexadecimal
    source    TEXT NOT NULL,         -- name of the source that delivered it
    stored_at REAL NOT NULL,         -- seconds since the epoch
    opened_at REAL NOT NULL,         -- seconds since the epoch; the order of eviction
    cached    INTEGER NOT NULL,      -- 1 while the bytes are on the disk
    pinned    INTEGER NOT NULL,      -- 1 if the clip has a row in `pin`: never evicted
    duration  REAL,                  -- seconds that the pictures cover; NULL if they were not measured
    PRIMARY KEY (key, profile)
) WITHOUT ROWID;

-- Has every column that eviction reads, so that eviction reads no rows.
CREATE INDEX IF NOT EXISTS clip_by_pin_and_use ON clip (pinned, opened_at, size, cached) WHERE cached;

CREATE TABLE IF NOT EXISTS profile ( -- a row for each profile with which clips were cut
    name      TEXT PRIMARY KEY,
    settings  TEXT NOT NULL          -- as text for the user
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS asked_for_longer ( -- a row for each clip of which YouTube had no longer version
    key       TEXT PRIMARY KEY,
    retry_at  REAL                   -- YouTube is not asked again before this time; NULL: never
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS pin (     -- a row for each pinned clip, cached or not
    key       TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS size_limit ( -- at most one row; none if the cache has no limit
    only      INTEGER PRIMARY KEY CHECK (only = 1),
    bytes     INTEGER NOT NULL       -- maximum of the cached clips
);

CREATE TABLE IF NOT EXISTS fetch (   -- a fetch in progress: a claim, a reservation, and the trace that a crash leaves
    key       TEXT PRIMARY KEY,      -- one fetch per clip, over all processes
    token     TEXT NOT NULL,         -- names incoming/<token> and the final file
    process   TEXT NOT NULL,         -- names locks/<process>, locked while that process lives
    bytes     INTEGER NOT NULL       -- reserved bytes
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS failure (
    key       TEXT PRIMARY KEY,
    kind      TEXT NOT NULL,         -- a FailureKind
    reason    TEXT NOT NULL,
    source    TEXT NOT NULL,
    errno     INTEGER,               -- errno of the operating system, if there was one
    first_at  REAL NOT NULL,         -- the first failure of this kind in a row
    last_at   REAL NOT NULL,
    attempts  INTEGER NOT NULL,
    retry_at  REAL NOT NULL          -- not tried again before this time
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS breaker ( -- a source that blocked this address; all times are seconds since the epoch
    source        TEXT PRIMARY KEY,
    reason        TEXT NOT NULL,
    blocked_at    REAL NOT NULL,
    blocked_until REAL NOT NULL,     -- from then on, one probe at a time is allowed
    trips         INTEGER NOT NULL,  -- blocks in a row
    probe_until   REAL NOT NULL,     -- when a probe in progress counts as lost; 0 if none is in progress
    recovered_at  REAL               -- when a probe was answered; NULL while the source is blocked
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS request ( -- a row for each clip that was requested from a source in the last hour
    source    TEXT NOT NULL,
    at        REAL NOT NULL          -- seconds since the epoch
);
CREATE INDEX IF NOT EXISTS request_in_order ON request (source, at);

CREATE TABLE IF NOT EXISTS verdict ( -- failures that a source has reported since it last delivered a clip
    source    TEXT NOT NULL,
    key       TEXT NOT NULL,
    kind      TEXT NOT NULL,         -- this and the following columns: the failure as it was remembered
    reason    TEXT NOT NULL,
    errno     INTEGER,
    first_at  REAL NOT NULL,
    last_at   REAL NOT NULL,
    attempts  INTEGER NOT NULL,
    retry_at  REAL NOT NULL,
    PRIMARY KEY (source, key)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS suspect ( -- a source with too many verdicts in a row; all times are seconds since the epoch
    source        TEXT PRIMARY KEY,
    suspected_at  REAL NOT NULL,
    tried         INTEGER NOT NULL,  -- controls that proved nothing
    failed_at     REAL NOT NULL,     -- the end of the last round of such controls; 0 before the first
    control_until REAL NOT NULL      -- when a control in progress counts as lost; 0 if none is in progress
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS history ( -- the activity of all processes, in steps of five minutes, after a day of an hour
    at           INTEGER PRIMARY KEY, -- start of the step, in seconds since the epoch
    clips        INTEGER NOT NULL,    -- clips that were cached at the end of the step
    bytes        INTEGER NOT NULL,    -- their bytes
    fetched      INTEGER NOT NULL,    -- clips that were fetched
    failed       INTEGER NOT NULL,    -- clips that were unavailable
    from_cache   INTEGER NOT NULL,    -- opens of cached clips
    not_in_cache INTEGER NOT NULL     -- opens of clips that were not cached
);

PRAGMA user_version = {VERSION};
"""

_SHOWN = """
-- The clips as one profile shows them: the row of that profile, else that of the file as it was published, else that of
-- unknown settings. A cached one is before one that was cached.
CREATE TEMP VIEW shown AS
SELECT * FROM clip AS this WHERE +profile IN {profiles} AND NOT EXISTS (
    SELECT 1 FROM clip AS other WHERE other.key = this.key AND +other.profile IN {profiles}
    AND (other.cached, CASE other.profile {ranks} END) > (this.cached, CASE this.profile {ranks} END)
);
"""

IF_DAMAGED = (
    "end all programs that use the cache and remove {}*: it is rebuilt from the clips, without pins and failures"
)
"""What to do if the state database is damaged, for `str.format` with its path."""


def shown_profiles(profile: str) -> tuple[str, ...]:
    """Return the profiles whose clips a mount or command of this profile shows, the preferred one first."""
    return (profile, SOURCE, UNKNOWN)


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Run statements without ending the transaction that is open, as `executescript` does."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


class StateDatabase(Database):
    """The state database of a cache.

    `exclusive` is also the lock under which the store publishes and evicts. Every commit is on the disk when it
    returns: after a power cut the database still has each fetch that was in progress.

    Its connections have a view `shown`: a row of `clip` for each clip that is or was cached, and that `profile` shows.

    Call `open` or `use_copy` before any other method.

    Args:
        path: the file.
        faults: receives what is wrong with the cache.
        profile: the profile of the view.
    """

    def __init__(self, path: Path, faults: CacheFaults, profile: str) -> None:
        self._profiles = shown_profiles(profile)
        super().__init__(path, translate=faults.error, if_damaged=IF_DAMAGED.format(path))

    def open(self) -> None:
        """Open the file, which is created if it is missing.

        Raises:
            StoreError: it cannot be created or read, or a later version made it. Any method may raise it later.
            OSError: its folder cannot be locked.
        """
        path = self.file.path
        self.use_file()
        # SQLite answers "locked" at once, whatever the timeout, if two processes make a new file a WAL file together.
        with locked(path.parent), self.connection() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(newer_format(path, version, VERSION))
            db.execute("PRAGMA journal_mode = WAL")
            if version != VERSION:
                with transaction(db):
                    run_script(db, SCHEMA)

    def _prepare(self, db: sqlite3.Connection) -> None:
        ranks = " ".join(f"WHEN '{name}' THEN {-rank}" for rank, name in enumerate(self._profiles))
        db.execute(_SHOWN.format(profiles=self._profiles, ranks=ranks))
