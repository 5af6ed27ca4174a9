"""Folders of clips as people have them, by `import`, by `prefetch --folder` and by `doctor`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.catalog.file_names import BACKUP, COPY, NO_TIMES, OTHER_NAME, TRACK, UNFINISHED
from kinetics_fs.demo.media import frame_numbers, make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources.folder_files import DANGLING, LINK_AGAIN, LINK_TO_FOLDER
from tests.support.annotations import csv_text
from tests.support.command_line import json_output, run_command
from tests.support.store import cached_content
from tests.support.videos import run_ffmpeg

CLASS = "massaging person's head"
RATE = 25
ONE, TWO, DASH, LATE = (Clip(video, 10, 13) for video in ("one________", "_two-______", "-three-____", "late_______"))
TWIN_A, TWIN_B = Clip("twins______", 10, 13), Clip("twins______", 40, 43)
CLIPS = (ONE, TWO, DASH, LATE, TWIN_A, TWIN_B)


class Videos:
    """A clip of 3 s, the same clip in other containers, and a whole video of 20 s."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clip = folder / "clip.mp4"
        self.whole = folder / "whole.mp4"
        make_video(self.clip, seconds=3, ffmpeg=find_ffmpeg(), width=320, height=180, rate=RATE)
        make_video(self.whole, seconds=20, ffmpeg=find_ffmpeg(), width=320, height=180, rate=RATE)
        self.broken = folder / "broken.mp4"
        self.broken.write_bytes(self.clip.read_bytes()[:-20_000])
        self.whole_broken = folder / "whole_broken.mp4"
        self.whole_broken.write_bytes(self.whole.read_bytes()[: self.whole.stat().st_size // 3])
        for suffix in ("mkv", "mov", "avi", "ts"):
            run_ffmpeg("-i", self.clip, "-c", "copy", folder / f"clip.{suffix}")

    def of(self, suffix: str) -> Path:
        return self.folder / f"clip{suffix}"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    return Videos(tmp_path_factory.mktemp("videos"))


class Folder:
    """A folder of clips, and a cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "clips"
        self.path.mkdir()
        self.cache = root / "cache"
        self.annotations = root / "annotations.csv"
        self.annotations.write_text(csv_text(f"{CLASS},{','.join(map(str, clip))},validate" for clip in CLIPS))

    def put(self, name: str, video: Path) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, path)
        return path

    def run(self, command: str, *arguments: str | Path) -> CompletedProcess[str]:
        arguments = ("--annotations", self.annotations, "--cache-dir", self.cache, "--min-free", "0", *arguments)
        if command == "import":
            return run_command("import", *arguments, "--json", self.path)
        source = ("--source", "folder", "--folder", self.path)
        return run_command("prefetch", *arguments, *source, "--json")

    def cached(self) -> dict[Clip, bytes]:
        return cached_content(self.cache)

    def cached_frames(self, clip: Clip) -> list[int]:
        [path] = self.cache.glob(f"clips/*/{clip.key}.*.mp4")
        assert path.read_bytes()[4:8] == b"ftyp"
        return frame_numbers(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(params=["import", "prefetch"])
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


ALL = list(range(3 * RATE))


def test_names_without_times_are_clips_or_whole_videos(folder: Folder, videos: Videos, command: str) -> None:
    folder.put(f"a/{ONE.youtube_id}.mp4", videos.clip)
    folder.put(f"a/{TWO.youtube_id}.MP4", videos.whole)
    folder.put(f"{DASH.youtube_id}.mkv", videos.of(".mkv"))
    folder.put(f"{TWIN_A.youtube_id}.mp4", videos.whole)

    done = folder.run(command)

    assert folder.cached().keys() == {ONE, TWO, DASH}
    assert folder.cached()[ONE] == videos.clip.read_bytes()
    assert folder.cached_frames(TWO) == list(range(10 * RATE, 13 * RATE))
    assert folder.cached_frames(DASH) == ALL
    assert NO_TIMES in done.stdout + done.stderr
    assert (folder.path / f"a/{TWO.youtube_id}.MP4").read_bytes() == videos.whole.read_bytes()


def test_a_video_that_is_neither_the_clip_nor_the_whole_is_refused(
    folder: Folder, videos: Videos, command: str
) -> None:
    late = Clip(LATE.youtube_id, 100, 103)
    folder.annotations.write_text(csv_text([f"{CLASS},{late.youtube_id},100,103,validate"]))
    folder.put(f"{late.youtube_id}.mp4", videos.whole)

    done = folder.run(command)

    assert done.returncode == 3
    assert "lasts 20 s" in done.stderr
    assert folder.cached() == {}


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi", ".ts", ".MKV"])
def test_other_containers_become_mp4(folder: Folder, videos: Videos, command: str, suffix: str) -> None:
    file = folder.put(f"val_256/{ONE.key}{suffix}", videos.of(suffix.lower()))
    before = file.read_bytes()

    assert folder.run(command).returncode in (0, 3)

    assert folder.cached_frames(ONE) == ALL
    assert file.read_bytes() == before


def test_import_converts_other_containers_even_unverified(folder: Folder, videos: Videos) -> None:
    folder.put(f"{ONE.key}.mkv", videos.of(".mkv"))
    assert folder.run("import", "--verify", "none").returncode == 0
    assert folder.cached_frames(ONE) == ALL


def test_the_best_of_several_files_is_taken_and_a_broken_one_passed_over(
    folder: Folder, videos: Videos, command: str
) -> None:
    # The mp4 file stays as it is.
    folder.put(f"a/{ONE.key}.mkv", videos.of(".mkv"))
    folder.put(f"b/{ONE.key}.mp4", videos.clip)
    # Times in the name are certain.
    folder.put(f"{TWO.youtube_id}.mp4", videos.whole)
    folder.put(f"b/{TWO.key}.mkv", videos.of(".mkv"))
    # Broken.
    folder.put(f"{DASH.key}.mp4", videos.broken)
    folder.put(f"b/{DASH.key}.mp4", videos.broken)
    folder.put(f"c/{DASH.key}.mkv", videos.of(".mkv"))
    folder.put(f"{LATE.key}.mp4", videos.broken)
    folder.put(f"{LATE.youtube_id}.mp4", videos.whole_broken)
    folder.put(f"{LATE.youtube_id}.mkv", videos.of(".mkv"))

    done = folder.run(command)

    assert done.returncode == 3
    assert folder.cached()[ONE] == videos.clip.read_bytes()
    assert folder.cached_frames(TWO) == folder.cached_frames(DASH) == folder.cached_frames(LATE) == ALL


UNUSED = {
    f"{ONE.key} (1).mp4": ("ID_N_N (N).mp4", COPY),
    f"{ONE.key} - Copy.mp4": ("ID_N_N - Copy.mp4", COPY),
    f"{TWO.key}.mp4.part": ("ID_N_N.mp4.part", UNFINISHED),
    f"{TWO.key}.mp4.ytdl": ("ID_N_N.mp4.ytdl", UNFINISHED),
    f"{TWO.key}.temp.mp4": ("ID_N_N.temp.mp4", UNFINISHED),
    f"{DASH.key}.f137.mp4": ("ID_N_N.fN.mp4", TRACK),
    f"{DASH.key}.mp4~": ("ID_N_N.mp4~", BACKUP),
    f"{LATE.youtube_id}.f251.webm": ("ID.fN.webm", TRACK),
    f"{TWIN_A.youtube_id}_010_013.mp4": ("ID_N_N.mp4", OTHER_NAME),
}


def test_files_that_are_not_used_are_summed_up_by_import(folder: Folder, videos: Videos) -> None:
    for name in UNUSED:
        folder.put(f"val/{name}", videos.clip)

    done = folder.run("import")
    groups = {(group["pattern"], group["reason"]): group for group in json_output(done)["unused"]}

    assert groups.keys() == set(UNUSED.values())
    assert {group["files"] for group in groups.values()} == {1}
    assert {Path(group["example"]).name for group in groups.values()} == set(UNUSED)
    text = run_command(
        *("import", "--annotations", folder.annotations, "--cache-dir", folder.cache, folder.path)
    ).stdout
    for name, (_, reason) in UNUSED.items():
        assert f"{folder.path}/val/{name}: {reason}" in text


def test_files_that_are_not_used_are_in_the_log_and_in_doctor(folder: Folder, videos: Videos) -> None:
    for name in UNUSED:
        folder.put(f"val/{name}", videos.clip)
    for number in range(3):
        folder.put(f"val/other_clip{number}_10_20 (1).mp4", videos.clip)

    done = folder.run("prefetch")

    assert json_output(done)["fetched"] == 0
    for name, (_, reason) in UNUSED.items():
        assert f"{folder.path}/val/{name} is not used: {reason}" in done.stderr
    assert "4 files named like ID_N_N (N).mp4 are not used" in done.stderr

    checked = run_command("doctor", "--offline", "--json", "--cache-dir", folder.cache, "--folder", folder.path)
    findings = [finding for finding in json.loads(checked.stdout)["findings"] if finding["name"] == "folder"]
    assert any("4 files named like ID_N_N (N).mp4 are not used" in finding["found"] for finding in findings)
    for _, reason in UNUSED.values():
        assert any(reason in finding["found"] for finding in findings)


def test_a_folder_of_links_to_folders_says_so(folder: Folder, videos: Videos) -> None:
    elsewhere = folder.root / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(videos.clip, elsewhere / ONE.name)
    (folder.path / CLASS).symlink_to(elsewhere)
    (folder.path / "loop").symlink_to(folder.path)
    (folder.path / "circle").symlink_to("circle")
    (folder.path / "dead").symlink_to("nothing")

    told = json_output(folder.run("import"))

    assert told["imported"] == 0
    assert told["skipped"] == {LINK_TO_FOLDER: 2, DANGLING: 2}

    done = folder.run("prefetch")  # follows links, once each
    assert folder.cached().keys() == {ONE}
    assert LINK_AGAIN in done.stderr
    assert DANGLING in done.stderr


def test_names_of_other_systems_harm_nothing(folder: Folder, videos: Videos, command: str) -> None:
    folder.put(f"val\\{CLASS}\\{ONE.key}.mp4", videos.clip)
    folder.put(f"Val /{CLASS.upper()} /{TWO.key}.MP4 ", videos.clip)
    odd = os.fsencode(folder.path) + b"/val\xff"
    os.mkdir(odd)  # noqa: PTH102
    shutil.copyfile(videos.clip, odd + b"/" + os.fsencode(DASH.name))
    shutil.copyfile(videos.clip, odd + b"/" + os.fsencode(TWIN_A.key) + b"\xff.mp4")
    shutil.copyfile(videos.whole, odd + b"/" + os.fsencode(LATE.youtube_id) + b".mp4")

    done = folder.run(command)

    assert folder.cached().keys() == {ONE, TWO, DASH, LATE}
    assert "Traceback" not in done.stderr
    assert OTHER_NAME in done.stdout + done.stderr
