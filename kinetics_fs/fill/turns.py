"""Which machine reads an archive.

Without a shared store, every archive is this machine's: `Turns`. `shared_fill.SharedFill` lets several machines take
turns.
"""

from __future__ import annotations

from enum import Enum, auto

from kinetics_fs.errors import KineticsError
from kinetics_fs.fill.archive_job import Summary
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex


class Turn(Enum):
    """What to do about an archive now."""

    READ = auto()
    """Read it. Then call `Turns.finish` or `Turns.fail`."""
    WAIT = auto()
    """Another machine reads it. Ask again later: that machine may fail."""
    DONE = auto()
    """Another machine has read it."""


class Turns:
    """Decides which archives this machine reads: all."""

    def take(self, archive: str, version: Version) -> Turn:
        """Return what to do about an archive.

        Raises:
            FetchError: another machine has failed to read it, or the shared store cannot be used (LOCAL).
        """
        return Turn.READ

    def finish(self, archive: str, version: Version, summary: Summary, index: ArchiveIndex | None) -> None:
        """Handle that this machine has read an archive to its end.

        Raises:
            FetchError: the shared store cannot be used (LOCAL).
        """

    def fail(self, archive: str, error: KineticsError) -> None:
        """Handle that this machine has failed to read an archive, or has stopped before its end."""
