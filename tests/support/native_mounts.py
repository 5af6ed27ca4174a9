"""Mounts of the example filesystem with the native front end: which clips are cached, and their paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.store import Store
from tests.support.command_line import Mounted
from tests.support.example_filesystem import CLIPS, FULL, content, put

NEEDS_FUSE = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="MOUNTS ARE NOT TESTED: needs root and /dev/fuse"
)

HERE = CLIPS[:40]
"""The cached clips."""
ABSENT = CLIPS[40:]
"""The other clips. A fetch of one of them never ends."""


def fill(cache: Path) -> None:
    """Put the clips of `HERE` into a cache directory."""
    with Store(cache) as store:
        for clip in HERE:
            put(store, clip, content(clip))


def path_of(mounted: Mounted, clip: Clip, split: str = "train") -> Path:
    """Return the path of a clip of the class `FULL` in a mount."""
    return mounted.root / split / FULL / clip.name
