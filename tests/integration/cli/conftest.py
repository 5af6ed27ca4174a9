"""Fixtures of the tests of commands: the clips of `tests.support.demo_clips`, and the arguments that select them."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.demo.site import VideoSite
from tests.support.command_line import run_command
from tests.support.demo_clips import ROWS, as_csv
from tests.support.demo_clips import fetched as fetched


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
    return ("--annotations", annotations, "--cache-dir", cache)


Prefetch = Callable[..., CompletedProcess[str]]


@pytest.fixture
def prefetch(site: VideoSite, chosen: tuple[str | Path, ...]) -> Prefetch:
    """Runs `kinetics-fs prefetch` on the site, with further arguments."""

    def run(*arguments: str | Path) -> CompletedProcess[str]:
        return run_command("prefetch", *chosen, "--video-url", site.url_template, *arguments)

    return run
