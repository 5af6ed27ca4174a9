"""`--debug`: a line in the log for each operation and each step of a fetch, and none without it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset
from tests.support.command_line import Mounted

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"
DEAD = f"validation/passing American football (in game)/{GONE}_000005_000015.mp4"


@pytest.fixture
def arguments(frontend: tuple[str, ...], dataset: Dataset, site: VideoSite, cache: Path) -> list[str | Path]:
    """The arguments of `kinetics-fs mount` for the demo's dataset."""
    return [
        *frontend,
        *("--annotations", dataset.annotations, "--video-url", site.url_template),
        *("--cache-dir", cache, "--min-free", "0", "--workers", "1"),
    ]


def log_of_reads(mounted: Mounted) -> str:
    """Read a clip, fail to read another one, and return the log."""
    assert len((mounted.root / SURFING).read_bytes()) > 1000
    with pytest.raises(OSError, match="Input/output error"):
        (mounted.root / DEAD).read_bytes()
    os.listdir(mounted.root / "train")  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        (mounted.root / "no such name").stat()
    return mounted.log.read_text()


def test_debug_logs_each_operation_and_each_step_of_a_fetch(mountpoint: Path, arguments: list[str | Path]) -> None:
    with Mounted(mountpoint, *arguments, options=["--debug"]) as mounted:
        log = log_of_reads(mounted)
        operations = re.findall(r"DEBUG fuse ([A-Z]+) (.*): (.*), \d+ us", log)
        names = {name for name, _target, _result in operations}
        assert names >= {"OPEN", "RELEASE"}, "READ is missing in passthrough"
        assert any("no such name" in target and result == "ENOENT" for _name, target, result in operations)
        assert {result for name, _target, result in operations if name == "OPEN"} & {"EIO", "EIO after waiting"}
        key = "-demo_video_000010_000020"
        for step in ("claim", "permit for youtube", "youtube", "publish"):
            assert re.search(rf"DEBUG fetch {key}: {step}: ok, \d+\.\d+ s", log), step
        for step in ("seal and fsync", "evict and move"):
            assert re.search(rf"DEBUG publish {key}: {step}: ok, \d+\.\d+ s", log), step
        for step in ("youtube", "cut and verify"):
            assert re.search(rf"DEBUG fetch {key}: process \d+: {step}: ok, \d+\.\d+ s", log), step
        assert re.search(rf"DEBUG fetch {GONE}_000005_000015: youtube: FetchError .*, \d+\.\d+ s", log)


def test_nothing_is_traced_without_debug(mountpoint: Path, arguments: list[str | Path]) -> None:
    with Mounted(mountpoint, *arguments) as mounted:
        log = log_of_reads(mounted)
        assert "fetched from youtube" in log
        assert "DEBUG" not in log
