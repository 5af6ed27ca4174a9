"""Damaged and mutated video files, with fixed seeds: each is a clip or corrupt, and none crashes a process."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.checker import Checker
from kinetics_fs.media.ffmpeg import find_ffmpeg
from tests.support.mutations import mutate
from tests.support.videos import make_webm, run_ffmpeg

FORMATS = ("mp4", "fragments", "webm", "mkv", "ts")
FILES = 12
"""Files of each format."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    paths = {name: folder / f"{name}.{name}" for name in FORMATS}
    make_video(paths["mp4"], seconds=1, ffmpeg=find_ffmpeg(), width=160, height=120)
    fragments = ("-movflags", "+frag_keyframe+empty_moov", "-f", "mp4")
    run_ffmpeg("-i", paths["mp4"], "-c", "copy", *fragments, paths["fragments"])
    for name, form in (("mkv", "matroska"), ("ts", "mpegts")):
        run_ffmpeg("-i", paths["mp4"], "-c", "copy", "-f", form, paths[name])
    make_webm(paths["webm"], seconds=1)
    return {name: path.read_bytes() for name, path in paths.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_outcome_is_a_clip_or_corrupt(
    name: str, videos: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(f"fuzz {name}")
    broken, work, target = tmp_path / "broken.mp4", tmp_path / "work.mp4", tmp_path / "target.mp4"
    outcomes = set[str]()

    def attempt(read: Callable[[], object]) -> None:
        shutil.copyfile(broken, work)
        try:
            read()
            outcomes.add("clip")
        except FetchError as error:
            assert error.kind is FailureKind.CORRUPT, error
            assert "died" not in error.reason
            outcomes.add("corrupt")

    def measure(checker: Checker) -> None:
        with work.open("rb") as file:
            checker.measure(file.fileno())
            checker.thumbnail(file.fileno(), 64)

    with Checker(tmp_path) as checker:
        for number in range(FILES):
            broken.write_bytes(mutate(videos[name], chance))
            attempt(lambda: checker.check(work, VerifyLevel.DECODE))
            attempt(lambda: measure(checker))
            attempt(lambda: checker.find_excerpt(work, 0, 1))
            if number % 4 == 0:
                media = Media(work, 0.0, 1.0)
                exact = number % 8 == 0
                attempt(partial(checker.cut, media, 1, target, max_height=64, exact=exact))

    assert outcomes == {"clip", "corrupt"}
    assert "Traceback" not in capfd.readouterr().err
