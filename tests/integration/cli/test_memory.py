"""A file that would take gigabytes of memory costs one clip: all others are stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg
from tests.support.annotations import Labelled, write_annotations
from tests.support.bombs import mp4_bomb
from tests.support.command_line import run_command
from tests.support.memory import BOUND, measured
from tests.support.short_clips import LABEL, write_archive, write_folder

GOOD = [Clip("-first_____", 0, 2), Clip("z_last_____", 3, 5)]
BOMB = Clip("m_bomb_____", 0, 2)


@pytest.fixture
def files(tmp_path: Path) -> dict[Clip, bytes]:
    video = tmp_path / "good.mp4"
    make_video(video, seconds=2, ffmpeg=find_ffmpeg(), width=160, height=120)
    good = video.read_bytes()
    return {GOOD[0]: good, BOMB: mp4_bomb(), GOOD[1]: good}


@pytest.fixture
def chosen(tmp_path: Path) -> tuple[str | Path, ...]:
    rows = (Labelled(LABEL, clip, "validation") for clip in (*GOOD, BOMB))
    annotations = write_annotations(tmp_path / "annotations.csv", rows)
    return "--annotations", annotations, "--cache-dir", tmp_path / "cache", "--json"


@pytest.mark.parametrize("level", ["container", "decode"])
def test_import(tmp_path: Path, files: dict[Clip, bytes], chosen: tuple[str | Path, ...], level: str) -> None:
    folder = write_folder(tmp_path / "clips", files)

    done = measured("import", folder, "--verify", level, *chosen)

    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert (result["imported"], sum(result["corrupt"].values())) == (2, 1)
    assert done.peak < BOUND


def test_import_of_a_file_without_times_in_its_name(
    tmp_path: Path, files: dict[Clip, bytes], chosen: tuple[str | Path, ...]
) -> None:
    folder = write_folder(tmp_path / "clips", files)
    (folder / BOMB.name).rename(folder / f"{BOMB.youtube_id}.mp4")

    done = measured("import", folder, *chosen)

    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert (result["imported"], sum(result["corrupt"].values())) == (2, 1)
    assert done.peak < BOUND


def test_fill(tmp_path: Path, files: dict[Clip, bytes], chosen: tuple[str | Path, ...]) -> None:
    archives = write_archive(tmp_path / "archives", files)

    done = measured("fill", "--release", "600", "--archive-url", archives, *chosen)

    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert (result["stored"], sum(result["corrupt"].values())) == (2, 1)
    assert done.peak < BOUND


@pytest.mark.parametrize("command", [("verify",), ("verify", "--decode"), ("report", "--output", "report.html")])
def test_a_cached_clip(
    tmp_path: Path, files: dict[Clip, bytes], chosen: tuple[str | Path, ...], command: tuple[str, ...]
) -> None:
    folder = write_folder(tmp_path / "clips", files)
    assert run_command("import", folder, "--verify", "none", *chosen).returncode == 0

    done = measured(*(str(tmp_path / word) if word == "report.html" else word for word in command), *chosen)

    assert done.returncode == (3 if "--decode" in command else 0), done.stderr
    assert done.peak < BOUND
