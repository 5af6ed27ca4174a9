"""Tests that run the examples of docs/semantics.md with each front end."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.mount import find_mounts
from tests.conftest import Dataset
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import ENVIRONMENT, Mounted
from tests.support.documents import examples, run
from tests.support.youtube import FakeYouTube

UNAVAILABLE = {
    Clip("PrivateVid_", 0, 10): "private",
    Clip("SlowVideo_0", 0, 10): "stall",
    Clip("SlowVideo_0", 20, 30): "stall",
    Clip("RobotCheck0", 0, 10): "bot",
}
"""The clips that the page adds to those of the demo, and the scenario of YouTube for their videos."""


@pytest.fixture
def youtube(dataset: Dataset) -> Iterator[FakeYouTube]:
    with FakeYouTube() as youtube:
        for video, seconds in VIDEOS.items():
            youtube.add_video(video, dataset.videos / f"{video}.mp4", duration=seconds)
        for clip, scenario in UNAVAILABLE.items():
            youtube.set_scenario(clip.youtube_id, scenario)
        yield youtube


@pytest.fixture
def environment(dataset: Dataset, youtube: FakeYouTube, frontend: tuple[str, ...], tmp_path: Path) -> dict[str, str]:
    """The environment of a user with `kinetics-fs` on the path and a configuration file for all mounts of the page."""
    rows = [Labelled("unavailable", clip, "validate") for clip in UNAVAILABLE]
    annotations = [dataset.annotations, write_annotations(tmp_path / "more.csv", rows)]
    settings = {
        "annotations": [str(path) for path in annotations],
        "cache-dir": str(tmp_path / "cache"),
        "frontend": frontend[-1],
        "log-file": str(tmp_path / "mounts.log"),
        "min-free": 0,
        "workers": 2,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    config = tmp_path / "config/kinetics-fs/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("\n".join([*lines, youtube.config]) + "\n")
    program = tmp_path / "bin/kinetics-fs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kinetics_fs "$@"\n')
    program.chmod(0o755)
    return {
        **ENVIRONMENT,
        "LC_ALL": "C.UTF-8",
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(config.parent.parent),
    }


def test_examples_print_the_output_that_the_page_shows(environment: dict[str, str], tmp_path: Path) -> None:
    shown = examples("semantics.md")
    assert len(shown) > 40
    with ExitStack() as mounts:
        config = Path(environment["XDG_CONFIG_HOME"]) / "kinetics-fs/config.toml"
        root = mounts.enter_context(Mounted(tmp_path / "mount", config=config)).root
        mounts.callback(end_all, tmp_path)
        printed = run(shown, root, environment, timeout=90)
        wrong = [
            f"$ {example.command}\n{text}"
            for example, text in zip(shown, printed, strict=True)
            if not example.matches(text)
        ]
        assert not wrong, "\n".join(wrong)


def end_all(folder: Path) -> None:
    """End the mounts that the examples have made."""
    for path in find_mounts():
        if path.parent == folder and path.name != "mount":
            mounted = Mounted(path)
            mounted.pid = mounted.status()["pid"]
            mounted.end()
