"""Clips: a span of seconds of a YouTube video, and the file name that expresses it."""

from __future__ import annotations

import re
from typing import NamedTuple

LAST_SECOND = 999_999
"""The largest time that fits the six digits of a name. The largest start in any release of Kinetics is 23,770."""

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
"""A YouTube id, for `fullmatch`. It may begin with `-`: never pass it to a command line as an argument of its own."""

KEY_LENGTH = 25
"""Length of `Clip.key`, with which `Clip.name` begins."""

_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})_([0-9]{6})\.mp4")


class Clip(NamedTuple):
    """The identity of a clip. The same clip may be in several splits, classes and releases.

    `start` and `end` are whole seconds of the video, with 0 <= start < end <= `LAST_SECOND`. The id of the video does
    not identify a clip: some videos have two or three clips in one split.
    """

    youtube_id: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """`{id}_{start:06d}_{end:06d}`: always 25 ASCII characters, which sort as the clips themselves do."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"

    @property
    def name(self) -> str:
        """The file name: always 29 bytes, in the format of the Kinetics crawlers and of the public archives."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}.mp4"

    @property
    def duration(self) -> int:
        """Length in seconds."""
        return self.end - self.start


def parse_clip_name(name: str) -> Clip | None:
    """Return the clip with this file name; None if the name is invalid. Exactly the inverse of `Clip.name`."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    clip = Clip(match[1], int(match[2]), int(match[3]))
    return clip if clip.start < clip.end else None
