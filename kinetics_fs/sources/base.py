"""The interface of a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kinetics_fs.catalog.clip import Clip


@dataclass(frozen=True, slots=True)
class Media:
    """A file that contains a clip.

    Args:
        path: the file, in the folder that the source was given.
        start: where in the file the clip begins, in seconds.
        length: how long the file should be, in seconds, by what the origin said; None if it did not say.
    """

    path: Path
    start: float
    length: float | None


class Source(Protocol):
    """One place where clips can be had. Made once in a worker process, then asked for one clip at a time."""

    name: str
    """A word for logs, attributes and settings."""

    def fetch(self, clip: Clip, folder: Path) -> Media:
        """Gets media that contain the clip.

        Args:
            clip: what is wanted.
            folder: empty and private to this call; everything written goes there.

        Raises:
            FetchError: the clip could not be had here.
        """
        ...
