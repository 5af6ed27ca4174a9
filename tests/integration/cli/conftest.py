"""A small selection of short clips, and the arguments that lead a command to it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset, made_once
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
    return "\n".join(["label,youtube_id,time_start,time_end,split", *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.csv"
    path.write_text(as_csv(ROWS))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def chosen(annotations: Path, cache: Path) -> tuple[str | Path, ...]:
    """Arguments of every command that takes a selection."""
    return ("--annotations", annotations, "--cache-dir", cache, "--min-free", "0")


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


Prefetch = Callable[..., CompletedProcess[str]]


@pytest.fixture
def prefetch(site: VideoSite, chosen: tuple[str | Path, ...]) -> Prefetch:
    """Runs `kinetics-fs prefetch` on the site, with further arguments."""

    def run(*arguments: str | Path) -> CompletedProcess[str]:
        return run_command("prefetch", *chosen, "--video-url", site.url_template, *arguments)

    return run
