"""Damaged and mutated videos on YouTube, with fixed seeds: each is a clip or corrupt, and none ends a worker."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources import SourceSettings
from tests.support.mutations import mutate
from tests.support.youtube import FakeYouTube

FILES = 12


def test_every_outcome_is_a_clip_or_corrupt(yt: FakeYouTube, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random("fuzz of a site")
    video, broken = tmp_path / "video.mp4", tmp_path / "broken.mp4"
    make_video(video, seconds=10, ffmpeg=find_ffmpeg(), width=160, height=120)
    outcomes = set[str]()
    worker = Worker(SourceSettings(ytdlp={**yt.ytdlp_options, "format": "18"}), lambda: tmp_path)
    try:
        for number in range(FILES):
            clip, folder = Clip(f"-video_{number:04}", 5, 7), tmp_path / str(number)
            folder.mkdir()
            broken.write_bytes(mutate(video.read_bytes(), chance))
            yt.add_video(clip.youtube_id, broken, duration=10)
            try:
                worker.fetch(clip, "youtube", folder, timeout=120)
                outcomes.add("clip")
            except FetchError as error:
                assert error.kind is FailureKind.CORRUPT, (number, error)
                outcomes.add("corrupt")
    finally:
        worker.stop()
    assert outcomes == {"clip", "corrupt"}
    assert "Traceback" not in capfd.readouterr().err
