"""The interface of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.media import Media

LARGEST_FILE = 4 * 1024**3
"""Bytes that any file may have that is fetched or made on the way: the longest Kinetics source, 6.6 hours, stays well
below at 360 lines."""


class NotInSource(Exception):
    """A source does not have the clip. That says nothing about the clip, unless no source has it."""


class InProgressElsewhere(Exception):
    """Somebody else is getting just now what has the clip in it: it will be in the store, or can be asked for again."""


OnClip = Callable[[Clip, Path], None]
"""Takes a whole clip, as a file called `Clip.name`, at once and not only when the source is done: that which is wanted,
or another that was had with it.

Raises:
    FetchError: it is no sound clip (CORRUPT).
"""


class Source(Protocol):
    """One place where clips can be had. Made once in a worker process, then asked for one clip at a time."""

    name: str
    """A word for logs, attributes and settings."""

    def fetch(self, clip: Clip, folder: Path) -> Media | None:
        """Gets media that contain the clip; None if it was handed over already, as a source that has many at once does.

        Args:
            clip: what is wanted.
            folder: empty and private to this call; everything written goes there.

        Raises:
            NotInSource: this source never had it.
            InProgressElsewhere: see there.
            FetchError: the clip could not be had here.
        """
        ...
