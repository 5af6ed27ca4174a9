"""Short clips: cached clips whose pictures cover much less than the annotated seconds."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FetchError
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.failures import MAX_RETRY_DELAY, retry_delay

SHORT_BELOW = 0.9
"""A clip is short if its pictures cover less than this part of its annotated seconds: less than 9 of 10. CVDF counts
short clips by the same limit. Cuts at whole frames and rounded times stay above it."""

_IS_SHORT = f"(duration >= 0 AND duration < {SHORT_BELOW} * (substr(key, 20, 6) - substr(key, 13, 6)))"
"""Whether a row of the table `clip` is that of a short clip, as SQL. A key ends in `_<start>_<end>`."""

_YOUTUBE = "youtube"


def is_short(clip: Clip, duration: float) -> bool:
    """Return whether pictures of this many seconds are too few for a clip."""
    return duration < SHORT_BELOW * clip.duration


class ShortClips:
    """The short clips of a cache, and for which of them YouTube was asked. Safe for threads and processes.

    Args:
        database: keeps the durations, and when YouTube may be asked again.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def count(self, keys: Sequence[str]) -> int:
        """Return how many of the clips with these keys are short. Clips of unknown duration are not."""
        [(number,)] = self._database.query(
            f"SELECT count(*) FROM shown WHERE key IN (SELECT value FROM json_each(?)) AND {_IS_SHORT}",
            (json.dumps(keys),),
        )
        return int(number)

    def may_be_longer(self, clip: Clip) -> bool:
        """Return whether a clip is cached and short, came from another source than YouTube, and is due to be asked for.

        A time further ahead than any delay comes from a wrong clock and does not count.
        """
        now = time.time()
        rows = self._database.query(
            "SELECT 1 FROM shown LEFT JOIN asked_for_longer AS asked USING (key)"
            f" WHERE key = ? AND cached AND source != ? AND {_IS_SHORT}"
            " AND (asked.key IS NULL OR retry_at NOT BETWEEN ? AND ?)",
            (clip.key, _YOUTUBE, now, now + MAX_RETRY_DELAY),
        )
        return bool(rows)

    def remember(self, clip: Clip, error: FetchError | None) -> None:
        """Record that YouTube was asked for a clip.

        Args:
            clip: the clip.
            error: why YouTube did not deliver it; None if what it delivered is not longer.
        """
        retry_at = None if error is None else time.time() + retry_delay(error.kind, 1, error.retry_after)
        with self._database.exclusive() as db:
            _write(db, clip.key, retry_at)


def keep_failure(db: sqlite3.Connection, key: str, source: str, retry_at: float) -> None:
    """Record a failure that ends because another source delivers the clip, if it is one of YouTube's."""
    if source.endswith(_YOUTUBE):  # perhaps imported
        _write(db, key, retry_at)


def _write(db: sqlite3.Connection, key: str, retry_at: float | None) -> None:
    db.execute("INSERT OR REPLACE INTO asked_for_longer (key, retry_at) VALUES (?, ?)", (key, retry_at))
