"""The cut profile of a clip: how its bytes were made.

The profile is a part of the key under which a clip is stored, because the same clip has other bytes when it is cut with
other settings. It has one of three forms, each of which is safe as a part of a path:

* `source`: the file that an archive or a folder publishes, byte for byte, or converted to mp4.
* 16 hexadecimal digits: cut out of a longer video, with the settings of which this is the hash (`CutProfile.name`).
* `unknown`: cut by a version that did not record the settings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

SOURCE = "source"
UNKNOWN = "unknown"

_NAME = re.compile(rf"{SOURCE}|{UNKNOWN}|[0-9a-f]{{16}}")

_FORMAT = 1
"""A part of the hash: to be raised when the same settings give other pictures."""

_CHOICES_OF_MEDIA = ("format", "format_sort", "format_sort_force", "prefer_free_formats")
"""The parameters of yt-dlp that choose the video out of which a clip is cut."""


def is_profile(text: str) -> bool:
    """Return whether a text is the name of a profile."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class CutProfile:
    """The settings with which clips are cut.

    Args:
        max_height: maximum height of the picture in lines.
        exact: cut to the exact frame by re-encoding; otherwise copy from a keyframe on.
        media: parameters of yt-dlp that choose the video, as JSON; empty for the choice of kinetics-fs.
    """

    max_height: int = 360
    exact: bool = True
    media: str = ""

    @classmethod
    def of(cls, max_height: int, *, exact: bool, ytdlp: Mapping[str, Any]) -> Self:
        """Return the profile of some settings.

        Args:
            max_height: see the class.
            exact: see the class.
            ytdlp: all parameters of yt-dlp that the user has set.
        """
        choices = {name: ytdlp[name] for name in _CHOICES_OF_MEDIA if name in ytdlp}
        return cls(max_height, exact, _canonical(choices) if choices else "")

    @property
    def name(self) -> str:
        """The name of the profile: 16 hexadecimal digits, the same on all machines.

        A setting that a later version adds must be left out of the hash where it has its default, as `media` is.
        """
        values: dict[str, Any] = {"format": _FORMAT, "max_height": self.max_height, "exact": self.exact}
        if self.media:
            values["media"] = self.media
        return hashlib.sha256(_canonical(values).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """Return the settings in the words of the configuration."""
        trim = "exact" if self.exact else "copy"
        text = f"max-height={self.max_height}, trim={trim}"
        return f"{text}, yt-dlp={self.media}" if self.media else text


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
