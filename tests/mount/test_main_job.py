"""The main job: mount, list, open a clip, get the clip."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from kinetics_fs.demo.dataset import GONE, ROWS, VIDEOS, expected_frames
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.demo.site import VideoSite
from tests.conftest import MountFactory
from tests.support.command_line import reason

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"


def test_every_clip_has_exactly_its_frames(mount: MountFactory) -> None:
    root = mount().root
    for row in ROWS:
        split = {"validate": "validation"}.get(row.split, row.split)
        path = root / split / row.label / row.clip.name
        if row.clip.youtube_id in VIDEOS:
            path.read_bytes()
            assert frame_numbers(path) == expected_frames(row.clip)


def test_listing_and_stat_send_no_request(mount: MountFactory, site: VideoSite) -> None:
    root = mount().root
    listed = subprocess.run(["ls", "-lR", root], capture_output=True, text=True, check=True).stdout
    found = subprocess.run(["find", root, "-name", "*.mp4", "-size", "+0"], capture_output=True, text=True, check=True)
    assert subprocess.run(["du", "-s", root], capture_output=True, check=True).stdout
    assert len(found.stdout.splitlines()) == len(ROWS)
    assert "surfing water" in listed
    assert site.requests == []


def test_second_read_comes_from_the_cache(mount: MountFactory, site: VideoSite) -> None:
    root = mount().root
    first = (root / SURFING).read_bytes()
    asked = len(site.requests)
    assert (root / SURFING).read_bytes() == first
    assert len(site.requests) == asked


def test_open_of_a_missing_video_returns_eio_with_a_reason(mount: MountFactory) -> None:
    root = mount().root
    path = root / "validation/passing American football (in game)" / f"{GONE}_000005_000015.mp4"
    with pytest.raises(OSError) as caught:
        path.open("rb")
    assert caught.value.errno == errno.EIO
    assert reason(path).startswith("gone: ")
    assert "404" in reason(path)
    assert os.getxattr(path, "user.kinetics.state") == b"failed"
