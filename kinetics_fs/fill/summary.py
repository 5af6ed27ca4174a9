"""What a pass over an archive came to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Summary:
    """What a pass over an archive came to, in clips unless said otherwise.

    All of it is of the whole archive, also where the pass was killed and gone on with, but for the last two. What was
    stored in the last moment before a kill, and not noted any more, is `present` to the rest of the pass.

    Attributes:
        stored: published.
        present: in the store already.
        not_wanted: not in the catalog.
        busy: being fetched by another process at that moment.
        failed: not fit to be published, by reason.
        refused: members that are no clips, by reason.
        indexed: in the index that was made.
        bytes: of the archive that were read, by the last part of the pass.
        resumed_at: byte of the archive from which that went on; 0 if from the beginning.
    """

    stored: int = 0
    present: int = 0
    not_wanted: int = 0
    busy: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    indexed: int = 0
    bytes: int = 0
    resumed_at: int = 0

    def pack(self) -> str:
        """As one line of text."""
        return json.dumps(vars(self))

    @classmethod
    def unpack(cls, line: str) -> Self:
        """From a line of text.

        Raises:
            ValueError: it is not what `pack` makes.
        """
        try:
            summary = cls(**json.loads(line))
            summary.failed, summary.refused = Counter(summary.failed), Counter(summary.refused)
        except TypeError as error:
            raise ValueError("not a summary") from error
        return summary
