"""Video files: probing, cutting, verification levels, and the ffmpeg program.

`Media` describes a file that a source has fetched. Most submodules import PyAV, which is slow to load, and read files
from outside: only processes with a memory limit import them, which are the fetch workers and those of `checker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Media:
    """A video file that contains a clip.

    Args:
        path: the file.
        start: offset of the clip from the beginning of the file, in seconds.
        length: duration of the complete file in seconds, as stated by its origin; None if the origin does not state it.
        whole: the file is the clip itself, as the publisher of the dataset cut it. It is kept byte for byte, and may be
            shorter than its annotation, as some clips of the dataset are.
        part: the file contains only the bytes that the clip needs, and its header does not give the duration of the
            complete video.
        end: time at which the last picture of a part ends, in seconds from the beginning of the file, if the container
            does not keep durations.
    """

    path: Path
    start: float
    length: float | None
    whole: bool = False
    part: bool = False
    end: float | None = None


class VerifyLevel(StrEnum):
    """How thoroughly a clip from an archive or a folder is verified before it is published."""

    NONE = "none"
    """By its first bytes only: convert other containers, refuse pictures and pages, publish the rest as it is."""
    CONTAINER = "container"
    """The file parses and contains all frames that its index lists: a few milliseconds for each clip."""
    DECODE = "decode"
    """Every frame decodes: a few hundred milliseconds for each clip."""
