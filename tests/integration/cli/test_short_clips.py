"""Short clips: stored with their durations, counted by `status --coverage`, and shown by mounts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs import Library
from kinetics_fs.catalog import Clip
from kinetics_fs.store import CacheLayout
from tests.conftest import MountFactory
from tests.support.command_line import json_output, run_command
from tests.support.short_clips import (
    ALMOST,
    FULL,
    LABEL,
    NO_SAMPLE,
    ONE_FRAME,
    PAGE,
    PICTURE,
    REFUSED,
    SECONDS,
    SHORT,
    annotate,
    make_files,
    write_archive,
    write_folder,
)
from tests.support.store import query


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Clip, bytes]:
    return make_files(tmp_path_factory.mktemp("made"))


class Cache:
    """An empty cache, with annotations, a folder of the files and an archive of them."""

    def __init__(self, root: Path, files: dict[Clip, bytes]) -> None:
        self.path = root / "cache"
        self.annotations = annotate(root / "annotations.csv")
        self.folder = write_folder(root / "clips", files)
        self.archives = write_archive(root / "archives", files)

    def run(self, *command: str | Path, code: int = 0) -> Any:
        arguments = ("--annotations", self.annotations, "--cache-dir", self.path, "--json")
        done = run_command(*command, *arguments)
        assert done.returncode == code, done.stderr
        return json_output(done)

    def durations(self) -> dict[Clip, float | None]:
        """Return the duration of each cached clip."""
        with Library(annotations=self.annotations, cache_dir=self.path, min_free=0) as library:
            records = {clip: library.record(clip) for clip in library.clips()}
        return {clip: record.duration for clip, record in records.items() if record is not None and record.cached}

    def short(self) -> tuple[int, int]:
        """Return the numbers of cached and of short clips, and check those of the class."""
        coverage = self.run("status", "--coverage")
        [row] = coverage["classes"]
        assert (row["cached"], row["short"]) == (coverage["cached"], coverage["short"])
        return coverage["cached"], coverage["short"]


@pytest.fixture
def cache(tmp_path: Path, files: dict[Clip, bytes]) -> Cache:
    return Cache(tmp_path, files)


@pytest.mark.parametrize("level", ["container", "decode"])
def test_fill_stores_short_clips_and_refuses_what_is_no_clip(cache: Cache, level: str) -> None:
    told = cache.run("fill", "--archive-url", cache.archives, "--verify", level, code=3)

    assert (told["stored"], sum(told["corrupt"].values())) == (4, 3)
    assert "the file is a web page (HTML), not a video" in told["corrupt"]
    assert "the file is a picture (PNG), not a video" in told["corrupt"]
    assert any("no frames" in reason for reason in told["corrupt"])
    assert cache.durations() == pytest.approx(SECONDS)
    assert cache.short() == (4, 2)
    report = json.loads(CacheLayout(cache.path).fill_report.read_text())
    assert sorted(report["clips_not_stored"]) == sorted(clip.key for clip in REFUSED)


@pytest.mark.parametrize("level", ["container", "decode"])
def test_import_stores_short_clips_and_refuses_what_is_no_clip(cache: Cache, level: str) -> None:
    told = cache.run("import", cache.folder, "--verify", level, code=3)

    assert (told["imported"], sum(told["corrupt"].values())) == (4, 3)
    assert cache.durations() == pytest.approx(SECONDS)
    assert cache.short() == (4, 2)


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_fetched_clips_are_measured(cache: Cache, source: str) -> None:
    told = cache.run(
        *("prefetch", "--source", source, "--folder", cache.folder, "--archive-url", cache.archives), code=3
    )

    assert (told["fetched"], told["failures"]) == (4, {"corrupt": 3})
    assert cache.durations() == pytest.approx(SECONDS)
    assert cache.short() == (4, 2)
    listed = run_command("failures", "list", "--json", "--cache-dir", cache.path)
    failures = {one["key"]: one for one in json.loads(listed.stdout)}
    assert failures.keys() == {clip.key for clip in (NO_SAMPLE, PAGE, PICTURE)}
    assert all(one["kind"] == "corrupt" for one in failures.values())


def test_coverage_says_how_many_clips_are_short(cache: Cache) -> None:
    cache.run("import", cache.folder, code=3)

    shown = run_command("status", "--coverage", "--annotations", cache.annotations, "--cache-dir", cache.path).stdout

    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["split", "class", "clips", "cached", "short", "unavailable"]
    assert ["validation", *LABEL.split(), "7", "4", "57.1%", "2", "0"] in lines
    assert "4  cached; 2 of them are short" in shown


def test_the_report_counts_short_clips(cache: Cache, tmp_path: Path) -> None:
    cache.run("import", cache.folder, code=3)

    assert cache.run("report")["total"]["short"] == 2
    page = tmp_path / "page.html"
    arguments = ("--annotations", cache.annotations, "--cache-dir", cache.path, "--thumbnails", "0")
    assert run_command("report", *arguments, "-o", page).returncode == 0
    assert "4 of 7 clips are cached; 2 of them are short." in page.read_text()


@pytest.mark.parametrize("options", [(), ("--decode",)], ids=["", "decode"])
def test_verify_measures_clips_of_unknown_duration(cache: Cache, options: tuple[str, ...]) -> None:
    wanted = [clip.key for clip in SECONDS]
    for clip in REFUSED:
        (cache.folder / clip.name).unlink()
    assert cache.run("import", cache.folder, "--verify", "none")["imported"] == len(wanted)
    assert cache.durations() == dict.fromkeys(SECONDS)
    assert cache.short() == (4, 0)

    assert cache.run("verify", *options)["good"] == 4

    assert cache.durations() == pytest.approx(SECONDS)
    assert cache.short() == (4, 2)
    # Also in the table of files, from which a lost state database is built again.
    tags = [json.loads(tag) for (tag,) in query(CacheLayout(cache.path).clip_table, "SELECT tag FROM Cache")]
    assert sorted(tag["duration"] for tag in tags) == sorted(SECONDS.values())


def test_verify_leaves_what_was_stored_without_verification(cache: Cache) -> None:
    for clip in (PAGE, PICTURE):
        (cache.folder / clip.name).unlink()
    assert cache.run("import", cache.folder, "--verify", "none")["imported"] == 5

    assert cache.run("verify")["good"] == 5

    assert {clip: seconds for clip, seconds in cache.durations().items() if seconds is not None} == SECONDS
    assert cache.short() == (5, 2)
    assert cache.run("verify", "--decode", code=3)["damaged"] == 1


def test_a_mount_shows_the_duration_and_counts_short_clips(cache: Cache, mount: MountFactory) -> None:
    cache.run("import", cache.folder, code=3)
    mounted = mount("--annotations", cache.annotations, cache=cache.path)
    folder = mounted.root / "validation" / LABEL

    shown = {clip: os.getxattr(folder / clip.name, "user.kinetics.duration") for clip in SECONDS}
    assert shown == {FULL: b"10.000", ALMOST: b"9.200", SHORT: b"4.000", ONE_FRAME: b"0.040"}
    dumped = subprocess.run(["getfattr", "-d", folder / SHORT.name], capture_output=True, text=True, check=True).stdout
    assert 'user.kinetics.duration="4.000"' in dumped
    with pytest.raises(OSError):
        os.getxattr(folder / PAGE.name, "user.kinetics.duration")
    coverage = json.loads(run_command("status", "--coverage", mounted.root, "--json").stdout)
    assert (coverage["cached"], coverage["short"]) == (4, 2)
