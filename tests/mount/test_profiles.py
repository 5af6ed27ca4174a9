"""Mounts with different cut settings on one cache: each shows and fetches the clips of its own settings."""

from __future__ import annotations

import os
from pathlib import Path

import av
import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.store import Store
from tests.conftest import MountFactory
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import json_output, run_command
from tests.support.mounts import state
from tests.support.store import assert_in_step

CLIP = Clip("demo-video2", 4, 5)


@pytest.fixture
def one_clip(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "one.csv", [Labelled("surfing water", CLIP, "train")])


def height_of(path: Path) -> int:
    with av.open(str(path)) as video:
        return video.streams.video[0].codec_context.height


def profile_of(path: Path) -> tuple[str, str]:
    """Return the profile of a clip and its settings, as its attributes show them."""
    names = ("user.kinetics.profile", "user.kinetics.profile.settings")
    return tuple(os.getxattr(path, name).decode() for name in names)  # type: ignore[return-value]


def test_mounts_with_other_settings_share_a_cache(
    mount: MountFactory, site: VideoSite, cache: Path, one_clip: Path
) -> None:
    heights = (120, 96)
    clips = {
        height: mount("--annotations", one_clip, "--max-height", str(height)).root / f"train/surfing water/{CLIP.name}"
        for height in heights
    }
    for height, clip in clips.items():
        assert state(clip) == "absent"
        assert height_of(clip) == height
        assert state(clip) == "cached"
        assert profile_of(clip) == (CutProfile(height).name, f"max-height={height}, trim=exact")
    # Neither has changed the other, also for those who mount later.
    again = mount("--annotations", one_clip, "--max-height", "120", "--only", "cached")
    assert height_of(again.root / f"train/surfing water/{CLIP.name}") == 120
    sizes = {height: clip.stat().st_size for height, clip in clips.items()}
    with Store(cache, profile=CutProfile(96)) as store:
        assert sizes[96] == store.sizes([CLIP.key])[CLIP.key].size
        assert store.usage().clips == 2
        assert store.usage().bytes == sum(sizes.values())

    common = ("--cache-dir", cache, "--annotations", one_clip)
    for height, cached in ((120, 1), (96, 1), (80, 0)):
        settings = (*common, "--max-height", str(height))
        coverage = json_output(run_command("status", "--coverage", "--json", *settings))
        assert (coverage["cached"], coverage["untried"]) == (cached, 1 - cached)
        exported = cache.with_name(f"out{height}")
        run_command("export", *settings, exported)
        assert len(list(exported.rglob("*.mp4"))) == cached
        if cached:
            assert height_of(next(exported.rglob("*.mp4"))) == height
    checked = json_output(run_command("verify", "--json", "--cache-dir", cache))
    assert (checked["clips"], checked["good"], checked["unknown_files"]) == (2, 2, [])


def test_a_cache_with_other_settings_is_fetched_again(
    mount: MountFactory, site: VideoSite, cache: Path, one_clip: Path
) -> None:
    done = run_command(
        *("prefetch", "--cache-dir", cache, "--annotations", one_clip, "--video-url", site.url_template),
        *("--max-height", "96", "--min-free", "0"),
    )
    assert done.returncode == 0, done.stderr
    mounted = mount("--annotations", one_clip, "--max-height", "120")
    clip = mounted.root / f"train/surfing water/{CLIP.name}"
    assert height_of(clip) == 120
    mounted.end()
    assert_in_step(cache, processes=0)
