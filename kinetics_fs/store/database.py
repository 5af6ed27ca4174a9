"""The state database: sizes, durations, access times, pins, failures, fetches in progress and history of a cache.

One SQLite file in WAL mode. A transaction that writes to it (`BEGIN IMMEDIATE`) is also the lock under which the store
publishes and evicts, so that no two processes ever count the same free bytes. The words of the tables are older than
those of the code: `held` means cached, `flight` is a fetch in progress, `origin` is a source, `asked` is a request.
"""

from __future__ import annotations

from pathlib import Path

from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.layout import locked
from kinetics_fs.util.sqlite import Database

_SCHEMA = """
PRAGMA journal_mode = WAL;

CREATE TABLE IF NOT EXISTS clip (    -- a row for each clip that is or was cached
    key       TEXT PRIMARY KEY,      -- <youtube id>_<start>_<end>
    size      INTEGER NOT NULL,      -- bytes; kept when the clip is evicted, so that stat stays exact
    sha256    TEXT NOT NULL,         -- digest of the whole file, hexadecimal
    source    TEXT NOT NULL,         -- name of the source that delivered it
    stored_at REAL NOT NULL,         -- seconds since the epoch
    opened_at REAL NOT NULL,         -- seconds since the epoch; the order of eviction
    held      INTEGER NOT NULL,      -- 1 while the clip is cached
    pinned    INTEGER NOT NULL DEFAULT 0  -- 1 if the clip has a row in `pin`: never evicted
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS duration ( -- a row for each clip that is or was cached and was measured
    key       TEXT PRIMARY KEY,
    seconds   REAL NOT NULL          -- the time that the pictures cover
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS longer (  -- a row for each clip of which YouTube had no longer version
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

CREATE TABLE IF NOT EXISTS flight (  -- a fetch in progress: a claim, a reservation, and the trace that a crash leaves
    key       TEXT PRIMARY KEY,      -- one fetch per clip, over all processes
    token     TEXT NOT NULL,         -- names incoming/<token> and the final file
    owner     TEXT NOT NULL,         -- names owners/<owner>, locked while that process lives
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

CREATE TABLE IF NOT EXISTS origin (  -- a source that blocked this address; all times are seconds since the epoch
    name          TEXT PRIMARY KEY,
    reason        TEXT NOT NULL,
    blocked_at    REAL NOT NULL,
    blocked_until REAL NOT NULL,     -- from then on, one probe at a time is allowed
    trips         INTEGER NOT NULL,  -- blocks in a row
    probe_until   REAL NOT NULL,     -- when a probe in progress counts as lost; 0 if none is in progress
    recovered_at  REAL               -- when a probe was answered; NULL while the source is blocked
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS asked (   -- a row for each clip that was requested from a source in the last hour
    origin    TEXT NOT NULL,
    at        REAL NOT NULL          -- seconds since the epoch
);
CREATE INDEX IF NOT EXISTS asked_in_order ON asked (origin, at);

CREATE TABLE IF NOT EXISTS verdict ( -- failures that a source has reported since it last delivered a clip
    origin    TEXT NOT NULL,
    key       TEXT NOT NULL,
    kind      TEXT NOT NULL,         -- this and the following columns: the failure as it was remembered
    reason    TEXT NOT NULL,
    errno     INTEGER,
    first_at  REAL NOT NULL,
    last_at   REAL NOT NULL,
    attempts  INTEGER NOT NULL,
    retry_at  REAL NOT NULL,
    PRIMARY KEY (origin, key)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS suspect ( -- a source with too many verdicts in a row; all times are seconds since the epoch
    origin        TEXT PRIMARY KEY,
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
"""

_INDEX_FOR_EVICTION = """
-- Has every column that eviction reads, so that eviction reads no rows.
CREATE INDEX IF NOT EXISTS clip_by_pin_and_use ON clip (pinned, opened_at, size, held) WHERE held;
DROP INDEX IF EXISTS clip_in_order_of_eviction;  -- the index of versions without pins
"""

IF_DAMAGED = (
    "end all programs that use the cache and remove {}*: it is rebuilt from the clips, without pins and failures"
)
"""What to do if the state database is damaged, for `str.format` with its path."""


class StateDatabase(Database):
    """The state database of a cache.

    `exclusive` is also the lock under which the store publishes and evicts. Every commit is on the disk when it
    returns: after a power cut the database still has each fetch that was in progress.

    Args:
        path: the file; created if it is missing.
        faults: receives what is wrong with the cache.

    Raises:
        StoreError: the file cannot be created or read. Any method may raise it later.
    """

    def __init__(self, path: Path, faults: CacheFaults) -> None:
        super().__init__(path, translate=faults.error, if_damaged=IF_DAMAGED.format(path))
        # SQLite answers "locked" at once, whatever the timeout, if two processes make a new file a WAL file together.
        with locked(path.parent), self.connection() as db:
            db.executescript(_SCHEMA)
            if "pinned" not in {name for _, name, *_ in db.execute("PRAGMA table_info (clip)")}:
                db.execute("ALTER TABLE clip ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
            db.executescript(_INDEX_FOR_EVICTION)
