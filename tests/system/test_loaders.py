"""The Python blocks of docs/loaders.md work on a mount, and the files for other loaders have the right format."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset
from tests.support.command_line import ENVIRONMENT, Mounted
from tests.support.documents import blocks

RECIPES = blocks("loaders.md", "python")


@pytest.fixture(scope="module")
def root(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("loaders")
    with (
        VideoSite(dataset.videos) as site,
        Mounted(
            folder / "mount",
            *("--annotations", dataset.annotations),
            *("--video-url", site.url_template),
            *("--cache-dir", folder / "cache"),
            *("--min-free", "0"),
            *("--class-names", "underscore"),
            # One available clip, and one unavailable clip.
            *("--class", "passing American football (in game)"),
        ) as mounted,
    ):
        yield mounted.root


def test_loaders_page_has_four_recipes() -> None:
    assert len(RECIPES) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "+".join(re.findall(r"^import (\w+)", recipe, re.M)))
def test_recipe_runs_on_a_mount(root: Path, recipe: str) -> None:
    for package in re.findall(r"^import (\w+)", recipe, re.MULTILINE):
        if find_spec(package) is None:
            pytest.skip(f"NOT TESTED: the recipe of docs/loaders.md with {package}, because it is not installed")
    done = subprocess.run(
        [sys.executable, "-c", recipe.replace("/mnt/kinetics", str(root))],
        env={**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_list_has_the_format_of_pyslowfast_and_mmaction2(root: Path) -> None:
    """They split a line at its spaces (older versions at any white space), and prefix the first part with a folder."""
    classes = (root / ".kinetics/classes.txt").read_text().splitlines()
    paths = []
    for line in (root / ".kinetics/val.csv").read_text().splitlines():
        path, label = line.strip().split(" ")
        assert line.split() == [path, label]
        assert Path(path).parent.name == classes[int(label)]
        paths.append(f"{root}/{path}")
    # Loaders that walk folders, and do not follow links, find the same clips.
    assert paths == sorted(str(clip) for clip in root.rglob("*.mp4"))
    gone, available = paths
    with pytest.raises(OSError):
        Path(gone).read_bytes()
    assert Path(available).read_bytes()[4:8] == b"ftyp"
