"""The interface of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.media import Media


class NotInSource(Exception):
    """A source does not have the clip. That is no failure of the clip, unless no other source has it either.

    Args:
        note: why the source did not look further, for the failure if no other source has the clip; empty if it did.
    """

    def __init__(self, note: str = "") -> None:
        super().__init__(note)
        self.note = note


class InProgressElsewhere(Exception):
    """Another process is reading the archive that contains the clip: look in the store soon, then ask again."""


OnClip = Callable[[Clip, Path], None]
"""Callback that receives a complete clip, in a file named `Clip.name`, as soon as a source has it. The clip is the
requested one or another one that came with it.

Raises:
    FetchError: the file is not a sound clip (CORRUPT).
"""


FindExcerpt = Callable[[Path, int, int], Media]
"""Function that finds a clip in a video file: `kinetics_fs.media.excerpt.find_excerpt`, in this process or another.

Args: the file, the start and the end of the clip in seconds.
"""


class Source(Protocol):
    """A place from which clips can be fetched. A worker process creates it once, then asks for one clip at a time."""

    name: str
    """Name in logs, attributes and settings."""

    def fetch(self, clip: Clip, folder: Path) -> Media | None:
        """Fetch media that contain a clip.

        Args:
            clip: the clip to fetch.
            folder: an empty folder, private to this call, for all files.

        Returns:
            The media; None if the `OnClip` callback has received the clip.

        Raises:
            NotInSource: this source does not have the clip.
            InProgressElsewhere: another process is reading the archive that contains the clip.
            FetchError: this source failed to provide the clip.
        """
        ...
