"""A few short clips of the demo, the annotation file that lists them, and a cache that has some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset, made_once
from tests.support.annotations import csv_text
from tests.support.command_line import run_command

ROWS = [
    ("surfing water", "-demo_video", 10, 12, "validate"),
    ("surfing water", "_demo_vid3_", 3, 5, "validate"),
    ("massaging person's head", "demo-video2", 0, 2, "validate"),
    ("passing American football (in game)", GONE, 5, 15, "validate"),
    ("surfing water", "demo_video4", 0, 2, "train"),
    ("surfing water", "DEMOvideo-5", 8, 10, "train"),
]


def as_csv(rows: Sequence[tuple[object, ...]]) -> str:
    """Return the text of an annotation file."""
    return csv_text(",".join(map(str, row)) for row in rows)


@pytest.fixture(scope="session")
def fetched(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the two clips of surfing in validation, and one of another class."""

    def fetch(folder: Path) -> Path:
        (folder / "clips.csv").write_text(as_csv(ROWS[:3]))
        with VideoSite(dataset.videos) as site:
            everywhere = "--cache-dir", folder / "cache", "--min-free", "0", "--video-url", site.url_template
            done = run_command("prefetch", "--annotations", folder / "clips.csv", *everywhere)
        assert done.returncode == 0, done.stderr
        return folder / "cache"

    return made_once("fetched", tmp_path_factory, fetch)
