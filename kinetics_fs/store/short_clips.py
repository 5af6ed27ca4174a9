"""Short clips: cached clips whose pictures cover much less than the annotated seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kinetics_fs.store.database import StateDatabase

SHORT_BELOW = 0.9
"""A clip is short if its pictures cover less than this part of its annotated seconds: less than 9 of 10. CVDF counts
short clips by the same limit. Cuts at whole frames and rounded times stay above it."""

_IS_SHORT = f"(seconds >= 0 AND seconds < {SHORT_BELOW} * (substr(key, 20, 6) - substr(key, 13, 6)))"
"""Whether a row of the table `duration` is that of a short clip, as SQL. A key ends in `_<start>_<end>`."""


class ShortClips:
    """The short clips of a cache. Safe for threads and processes.

    Args:
        database: keeps the durations.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def count(self, keys: Sequence[str]) -> int:
        """Return how many of the clips with these keys are short. Clips of unknown duration are not."""
        [(number,)] = self._database.query(
            f"SELECT count(*) FROM duration WHERE key IN (SELECT value FROM json_each(?)) AND {_IS_SHORT}",
            (json.dumps(keys),),
        )
        return int(number)
