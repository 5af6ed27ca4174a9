"""`--short-clips youtube`: an open asks YouTube once for a longer clip than the one in the cache, folder or archive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinetics_fs import Library
from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.demo.site import VideoSite
from tests.conftest import MountFactory
from tests.support.command_line import json_output, run_command
from tests.support.short_clips import FULL, LABEL, ONE_FRAME, SHORT, annotate, make_files, write_folder

SECONDS = {FULL: 10, SHORT: 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Clip, bytes]:
    made = make_files(tmp_path_factory.mktemp("made"))
    return {clip: made[clip] for clip in (FULL, SHORT, ONE_FRAME)}


@pytest.fixture
def folder(files: dict[Clip, bytes], site: VideoSite, tmp_path: Path) -> Path:
    """A folder with the clips; the site has a video of 10 s for one of them."""
    site.directory = tmp_path / "videos"
    site.directory.mkdir()
    (site.directory / f"{SHORT.youtube_id}.mp4").write_bytes(files[FULL])
    return write_folder(tmp_path / "clips", files)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return annotate(tmp_path / "annotations.csv")


def duration(path: Path) -> float:
    return float(os.getxattr(path, "user.kinetics.duration"))


@pytest.mark.parametrize("cached", [False, True], ids=["fetched", "imported"])
def test_open_serves_the_longer_clip(
    mount: MountFactory, folder: Path, rows: Path, site: VideoSite, cache: Path, cached: bool
) -> None:
    if cached:
        done = run_command("import", folder, "--annotations", rows, "--cache-dir", cache, "--min-free", "0")
        assert done.returncode == 0, done.stderr
    arguments = ("--annotations", rows, "--source", "folder,youtube", "--folder", folder)
    mounted = mount(*arguments, "--short-clips", "youtube")
    path = mounted.root / "validation" / LABEL / SHORT.name
    looked_at = path.stat().st_size

    assert frame_numbers(path) == list(range(250))

    assert path.stat().st_size != looked_at
    assert path.stat().st_size == len(path.read_bytes())
    assert duration(path) == 10.0
    assert os.getxattr(path, "user.kinetics.source") == b"youtube"
    assert site.video_fetches(SHORT.youtube_id) == 1
    # The site has no video for the other one.
    other = path.with_name(ONE_FRAME.name)
    for _ in range(3):
        assert frame_numbers(other) == [0]
    assert site.video_fetches(ONE_FRAME.youtube_id) == 1
    assert path.with_name(FULL.name).read_bytes() == (folder / FULL.name).read_bytes()
    assert site.video_fetches(FULL.youtube_id) == 0


def test_open_serves_the_short_clip_if_the_mount_may_not_fetch(
    mount: MountFactory, folder: Path, rows: Path, site: VideoSite, cache: Path
) -> None:
    done = run_command("import", folder, "--annotations", rows, "--cache-dir", cache, "--min-free", "0")
    assert done.returncode == 0, done.stderr
    mounted = mount("--annotations", rows, "--only", "cached", "--short-clips", "youtube")

    path = mounted.root / "validation" / LABEL / SHORT.name
    assert path.read_bytes() == (folder / SHORT.name).read_bytes()
    assert site.requests == []


def test_prefetch_and_library_replace_short_clips(folder: Path, rows: Path, site: VideoSite, cache: Path) -> None:
    arguments = ("--annotations", rows, "--cache-dir", cache, "--min-free", "0", "--json")
    assert json_output(run_command("import", folder, *arguments))["imported"] == 3
    sources = ("--source", "folder,youtube", "--folder", folder, "--video-url", site.url_template)
    done = run_command("prefetch", *sources, "--short-clips", "youtube", *arguments)
    assert json_output(done)["already_cached"] == 1, "only the clip that is not short"
    assert json_output(run_command("status", "--coverage", *arguments[:4], "--json"))["short"] == 1
    assert site.video_fetches(SHORT.youtube_id) == 1

    with Library(
        annotations=rows,
        cache_dir=cache.with_name("other"),
        min_free=0,
        folder=folder,
        video_url=site.url_template,
        source=("folder", "youtube"),
        short_clips="youtube",
    ) as library:
        library.import_(folder)
        with library.open(SHORT) as file:
            assert file.read() != (folder / SHORT.name).read_bytes()
        record = library.record(SHORT)
        assert record is not None
        assert (record.source, record.duration) == ("youtube", 10.0)
