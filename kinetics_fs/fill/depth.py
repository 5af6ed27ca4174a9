"""How closely a clip is looked at that is here already."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from kinetics_fs.media.verify import check_container, verify_clip


class VerifyLevel(StrEnum):
    """How closely a clip is looked at before it is published."""

    NONE = "none"
    """Not at all: it is what somebody has."""
    CONTAINER = "container"
    """It parses, and has all frames that it says to have: some milliseconds."""
    DECODE = "decode"
    """Every frame decodes: some hundred milliseconds."""

    def check(self, path: Path) -> None:
        """Looks at a clip.

        Raises:
            FetchError: it is none, or not all of one (CORRUPT).
        """
        if self is VerifyLevel.CONTAINER:
            check_container(path)
        elif self is VerifyLevel.DECODE:
            verify_clip(path, None)
