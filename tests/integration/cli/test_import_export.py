"""`kinetics-fs import` and `export`, and a mount of what is in a folder."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.demo.media import make_video
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import ENVIRONMENT, reason, run_command
from tests.support.store import cached_content, quick_place

SURFING, HEAD = "surfing water", "massaging person's head"
A, B, C, D = (Clip(video, 0, 10) for video in ("-surfing__1", "_surfing__2", "heads-----3", "train_____4"))
"""Clips with real content."""
CUT, PAGE, EMPTY, ABSENT = (Clip(f"{word:_<11}", 5, 15) for word in ("cut", "page", "empty", "absent"))
"""Annotated clips that are broken or missing."""
OTHER = Clip("other______", 0, 10)
"""A clip without annotation."""
LABELS = {A: SURFING, B: SURFING, C: HEAD, D: SURFING, CUT: SURFING, PAGE: HEAD, EMPTY: HEAD, ABSENT: SURFING}


class World:
    """Annotations, and a folder with real and broken clips in all layouts.

    Attributes:
        content: of the good ones.
        files: where they are.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.root = folder
        self.held = folder / "held by\nsomeone"
        self.cache = folder / "cache"
        self.annotations = folder / "annotations.csv"
        rows = ["label,youtube_id,time_start,time_end,split"]
        rows += [f"{label},{','.join(map(str, clip))},{self.split(clip)}" for clip, label in LABELS.items()]
        self.annotations.write_text("\n".join(rows) + "\n")
        videos = [(dataset.videos / f"{video}.mp4").read_bytes() for video in VIDEOS]
        self.content = dict(zip((A, B, C, D), videos, strict=False))
        self.files = {
            A: self.put(f"val/{SURFING}/{A.name}", self.content[A]),
            B: self.put("_surfing__2_0_10.mp4", self.content[B]),
            C: self.put(f"kinetics-600/validation/{HEAD}/{C.name}", self.content[C]),
            D: self.put(f"train/surfing_water/{D.name}", self.content[D]),
        }
        self.put(f"val/{SURFING}/{CUT.name}", videos[0][:-100_000])
        self.put(PAGE.name, b"<!DOCTYPE html><title>Too many requests</title>")
        self.put(f"{HEAD}/{EMPTY.name}", b"")
        self.arguments = ("--annotations", self.annotations, "--cache-dir", self.cache, "--min-free", "0")

    def split(self, clip: Clip) -> str:
        return "train" if clip == D else "validate"

    def put(self, name: str, content: bytes) -> Path:
        path = self.held / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o664)
        return path

    def run(self, command: str, *arguments: str | Path) -> CompletedProcess[str]:
        return run_command(command, *self.arguments, *arguments)

    def in_cache(self) -> dict[Clip, bytes]:
        """Return the clips in the cache; check that no import has left anything."""
        found = cached_content(self.cache)
        assert not list(CacheLayout(self.cache).incoming.iterdir())
        return found

    def cached_file(self, clip: Clip) -> Path:
        [path] = CacheLayout(self.cache).clips.glob(f"*/{clip.key}.*.mp4")
        return path


@pytest.fixture
def world(dataset: Dataset, tmp_path: Path) -> World:
    return World(dataset, tmp_path)


def result(process: CompletedProcess[str]) -> dict[str, Any]:
    value = json.loads(process.stdout)
    assert isinstance(value, dict)
    return value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Import


def test_import_takes_good_files_and_reports_the_others(world: World) -> None:
    world.put(f"val/{SURFING}/{OTHER.name}", world.content[A])
    world.put(f"val/._{A.name}", b"of macOS")
    world.put(".trash/" + ABSENT.name, world.content[A])
    world.put("-rf *", b"")
    world.put("name\n\x1b[31m.mp4", b"")
    (world.held / "val" / "loop").symlink_to("..")
    (world.held / ABSENT.name).symlink_to("nothing")
    (world.held / "val" / ABSENT.name).mkdir()
    os.mkfifo(world.held / "train" / ABSENT.name)
    # The layout of unpacked archives: each file once, and a symbolic link to it in its class.
    arranged = world.held / "arranged" / SURFING
    arranged.mkdir(parents=True)
    (arranged / A.name).symlink_to(world.files[A])
    before = {path: (mode(path), path.stat().st_mtime_ns) for path in world.files.values()}

    first = world.run("import", world.held, "--json")

    assert first.returncode == 3
    told = result(first)
    corrupt = told.pop("corrupt")
    assert told == {
        "imported": 4,
        "linked": 4,
        "already_cached": 1,
        "not_in_annotations": 1,
        "busy": 0,
        "unreadable": {"cannot be read: No such file or directory": 1},
        "skipped": {"hidden": 2, "not the name of a clip": 3, "not a regular file": 1},
        "interrupted": False,
    }
    assert sum(corrupt.values()) == 3
    assert corrupt["the file is empty"] == 1
    assert world.in_cache() == world.content
    with Store(world.cache) as store:
        assert [(sample.clips, sample.fetched) for sample in store.history.samples()] == [(4, 0)]
        assert {getattr(store.record(clip), "source", None) for clip in world.content} == {"folder"}
    # Nothing of the names goes to the terminal as it is, and nothing of the user's changes.
    assert len(first.stderr.splitlines()) == 4
    assert "\x1b" not in first.stderr
    assert {path: (mode(path), path.stat().st_mtime_ns) for path in world.files.values()} == before
    assert all(world.cached_file(clip).samefile(path) for clip, path in world.files.items())

    again = world.run("import", world.held)
    assert again.returncode == 3
    assert (
        again.stdout.splitlines()[0]
        == "0 clips imported (0 as hard links), 5 already cached, 1 not in the annotations, 3 corrupt"
    )


def test_import_of_a_selection_skips_other_clips(world: World) -> None:
    done = world.run("import", "--split", "train", "--json", "--verify", "decode", world.held)

    assert done.returncode == 0, "nothing of the selection was broken"
    assert (result(done)["imported"], result(done)["not_in_annotations"]) == (1, 6)
    assert world.in_cache() == {D: world.content[D]}


def test_import_copies_files_on_request(world: World) -> None:
    done = world.run("import", "--split", "train", "--copy", "--json", world.held)

    assert (result(done)["imported"], result(done)["linked"]) == (1, 0)
    assert mode(world.cached_file(D)) == 0o400
    world.files[D].write_bytes(b"changed")
    assert world.in_cache() == {D: world.content[D]}


def test_import_copies_files_of_another_filesystem(world: World) -> None:
    with quick_place() as place:
        if place.stat().st_dev == world.root.stat().st_dev:
            pytest.skip("there is only one filesystem")
        (place / D.name).write_bytes(world.content[D])
        # It would be copied: here there is no room for that.
        refused = run_command("import", *world.arguments[:-1], "1000TB", place)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "copied" in refused.stderr
        done = world.run("import", "--json", place)

    assert (done.returncode, result(done)["imported"], result(done)["linked"]) == (0, 1, 0)
    assert world.in_cache() == {D: world.content[D]}


def test_an_edit_of_a_linked_file_is_detected_by_its_length(world: World) -> None:
    assert world.run("import", "--split", "train", world.held).returncode == 0
    with world.files[D].open("ab") as file:
        file.write(b"more")
    assert world.in_cache() == {}


def test_import_keeps_the_limit_and_evicts_nothing(world: World) -> None:
    make_video(world.files[D], seconds=1, ffmpeg=find_ffmpeg())
    world.content[D] = world.files[D].read_bytes()
    assert world.run("import", "--split", "validation", world.held).returncode == 3
    before = world.in_cache()
    assert before.keys() == {A, B, C}
    size = sum(map(len, world.content.values()))

    refused = world.run("import", "--split", "train", "--cache-size", f"{size - 1}", world.held)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "--cache-size" in refused.stderr
    assert world.in_cache() == before

    # To the byte, which is less room than a clip of unknown size is given.
    assert world.run("import", "--split", "train", "--cache-size", f"{size}", world.held).returncode == 0
    assert world.in_cache() == world.content


def test_import_takes_one_good_file_of_several_of_a_clip(world: World) -> None:
    for number in range(12):
        world.put(f"{number}/{D.name}", world.content[D])
        world.put(f"{number}/{CUT.name}", world.content[A] if number == 5 else b"")
    world.put(f"more/{CUT.name}", world.content[A][:-100_000])

    told = result(world.run("import", "--class", SURFING, "--json", world.held))

    assert told["busy"] == 0
    assert world.in_cache() == {clip: world.content[clip] for clip in (A, B, D)} | {CUT: world.content[A]}
    # Further files of a cached clip are not read.
    assert told["imported"] + told["already_cached"] + sum(told["corrupt"].values()) == 2 + 13 + 14


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_import_resumes(world: World, number: signal.Signals) -> None:
    clips = [Clip(f"many_____{index:02}", 0, 10) for index in range(24)]
    rows = [f"{SURFING},{clip.youtube_id},0,10,validate" for clip in clips]
    world.annotations.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    many = world.root / "many"
    many.mkdir()
    for clip in clips:
        (many / clip.name).write_bytes(world.content[A])
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "import", *map(str, world.arguments)]
    with subprocess.Popen(
        [*command, "--verify", "decode", "--json", str(many)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(world.cache.glob("clips/*/*.mp4")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        said, complaints = process.communicate(timeout=60)
    before = len(list(world.cache.glob("clips/*/*.mp4")))
    assert 0 < before < len(clips)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert (process.returncode, complaints) == (130, "Interrupted. Run the same command again to resume.\n")
        assert (json.loads(said)["imported"], json.loads(said)["interrupted"]) == (before, True)

    done = world.run("import", "--json", many)

    assert done.returncode == 0, done.stderr
    # A clip may have been moved into the cache just before the kill: it is imported again.
    assert result(done)["imported"] - (len(clips) - before) in ({0, 1} if number == signal.SIGKILL else {0})
    assert result(done)["imported"] + result(done)["already_cached"] == len(clips)
    assert not list(CacheLayout(world.cache).incoming.iterdir())
    assert {path.stat().st_nlink for path in many.iterdir()} == {2}


def test_import_skips_the_cache_directory(world: World) -> None:
    with Store(world.cache) as store:
        claim = store.claim(ABSENT)
        assert claim is not None
        with claim:
            (claim.folder / ABSENT.name).write_bytes(world.content[A])
            done = world.run("import", "--json", world.root)
    assert (result(done)["imported"], result(done)["busy"]) == (4, 0)


def test_import_from_a_mount_fetches_the_clips(world: World, mount: MountFactory, site: VideoSite) -> None:
    there = mount("--annotations", world.annotations, "--source", "folder", "--folder", world.held)
    (there.root / "train" / SURFING / D.name).read_bytes()

    other = world.root / "other"
    done = run_command("import", *world.arguments, "--cache-dir", other, "--json", there.root)

    assert (result(done)["imported"], result(done)["linked"]) == (1, 0)
    assert site.requests == []


# Mounts of a folder


def test_a_mount_takes_clips_from_a_folder(world: World, mount: MountFactory, site: VideoSite) -> None:
    before = {clip: mode(path) for clip, path in world.files.items()}
    mounted = mount("--annotations", world.annotations, "--source", "folder", "--folder", world.held)

    for clip, content in world.content.items():
        path = mounted.root / ("train" if clip == D else "validation") / LABELS[clip] / clip.name
        assert path.read_bytes() == content
        assert os.getxattr(path, "user.kinetics.source") == b"folder"
        assert world.cached_file(clip).samefile(world.files[clip])
    for clip in (CUT, PAGE, EMPTY, ABSENT):
        path = mounted.root / "validation" / LABELS[clip] / clip.name
        with pytest.raises(OSError, match="Input/output error"):
            path.open("rb")
    assert "frames" in reason(mounted.root / "validation" / SURFING / CUT.name)
    assert "no source has this clip" in reason(mounted.root / "validation" / SURFING / ABSENT.name)
    assert {clip: mode(path) for clip, path in world.files.items()} == before
    assert site.requests == []


def test_a_clip_that_is_broken_in_a_folder_comes_from_the_next_source(
    world: World, mount: MountFactory, site: VideoSite
) -> None:
    good, broken = Clip("-demo_video", 10, 12), Clip("_demo_vid3_", 3, 5)
    rows = [f"{SURFING},{clip.youtube_id},{clip.start},{clip.end},validate" for clip in (good, broken)]
    world.annotations.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    world.put(f"val/{SURFING}/{good.name}", world.content[A])
    world.put(f"val/{SURFING}/{broken.name}", world.content[A][:-100_000])
    config = world.root / "config.toml"
    config.write_text(f"folder = [{json.dumps(str(world.root))}, {json.dumps(str(world.held))}]\n")
    folder = mount("--annotations", world.annotations, config=config).root / "validation" / SURFING

    assert (folder / good.name).read_bytes() == world.content[A]
    assert (folder / broken.name).stat().st_size
    (folder / broken.name).read_bytes()

    sources = {clip: os.getxattr(folder / clip.name, "user.kinetics.source") for clip in (good, broken)}
    assert sources == {good: b"folder", broken: b"youtube"}
    assert site.video_fetches(good.youtube_id) == 0


def test_a_mount_that_is_its_own_folder_does_not_hang(world: World, mount: MountFactory) -> None:
    place = world.root / "mount 1"  # where it is going to be
    place.mkdir()
    mounted = mount("--annotations", world.annotations, "--source", "folder", "--folder", place, "--timeout", "50")
    assert mounted.root == place
    path = mounted.root / "train" / SURFING / D.name
    with pytest.raises(OSError, match="Input/output error"):
        path.open("rb")
    assert "no source has this clip" in reason(path)


def test_prefetch_reads_folders_from_the_environment(world: World) -> None:
    folders = f"{world.held / 'train'};{world.held}"
    done = run_command(
        *("prefetch", *world.arguments, "--source", "folder", "--split", "train", "--json"),
        KINETICS_FS_FOLDER=folders,
    )
    assert (done.returncode, result(done)["fetched"]) == (0, 1)
    assert world.in_cache() == {D: world.content[D]}

    # Broken and missing files stop nothing.
    rest = world.run("prefetch", "--source", "folder", "--folder", world.held, "--workers", "1", "--json")
    assert rest.returncode == 3
    assert (result(rest)["fetched"], result(rest)["already_cached"]) == (3, 1)
    assert result(rest)["failures"] == {"corrupt": 2, "config": 2}
    assert world.in_cache() == world.content


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prefetch", "--folder", "/nowhere at all"), "there is no such folder"),
        (("prefetch", "--source", "folder"), "--folder"),
        (("import", "/nowhere at all"), "does not exist"),
        (("import", "--verify", "much", "/"), "--verify"),
        (("import",), "DIR"),
        (("export",), "DIR"),
        (("export", "--class-names", "mine", "/tmp/x"), "--class-names"),
    ],
)
def test_invalid_arguments_are_refused(world: World, arguments: tuple[str, ...], says: str) -> None:
    command, *rest = arguments
    done = world.run(command, *rest)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# Export


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_train(world: World, class_name: str = SURFING) -> dict[str, bytes]:
    return {f"train/{class_name}/{D.name}": world.content[D]}


def exported(world: World, class_names: str) -> dict[str, bytes]:
    names = {"raw": (SURFING, HEAD), "torchvision": ("surfing_water", "massaging_persons_head")}[class_names]
    return of_train(world, names[0]) | {
        f"validation/{names[label == HEAD]}/{clip.name}": world.content[clip]
        for clip, label in LABELS.items()
        if clip in (A, B, C)
    }


def test_an_export_can_be_imported(world: World) -> None:
    world.run("import", "--copy", world.held)
    out = world.root / "out"

    first = world.run("export", "--class-names", "torchvision", "--json", out)

    assert first.returncode == 3, "some clips are not cached"
    assert result(first) == {
        "written": 4,
        "linked": 4,
        "already_there": 0,
        "skipped": 0,
        "missing": 4,
        "interrupted": False,
    }
    assert tree(out) == exported(world, "torchvision")
    file = out / "train" / "surfing_water" / D.name
    assert file.samefile(world.cached_file(D))
    assert mode(file) == 0o400
    whole = world.run("export", "--split", "train", "--class-names", "torchvision", out)
    assert whole.returncode == 0
    assert whole.stdout == "0 files written (0 as hard links), 1 already there, 0 not in the cache\n"

    back = run_command("import", *world.arguments, "--cache-dir", world.root / "other", "--json", out)
    assert (back.returncode, result(back)["imported"]) == (0, 4)
    # And the cache gives a clip up without harm to what was exported.
    with Store(world.cache) as store:
        store.remove(D)
    assert tree(out) == exported(world, "torchvision")


def test_export_of_copies_never_overwrites(world: World) -> None:
    world.run("import", world.held)
    out = world.root / "out"
    places = {clip: out / name for clip, name in zip((D, A, B, C), exported(world, "raw"), strict=True)}
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    other = world.content[A][:-1] + b"?"
    places[A].write_bytes(other)  # of the same length
    places[B].symlink_to("nowhere")
    places[C].write_bytes(world.content[C])
    places[D].with_name(f".{D.name}.part").write_bytes(b"what an export left that was killed")

    done = world.run("export", "--copy", "--json", out)

    assert done.returncode == 3
    told = result(done)
    assert (told["written"], told["linked"], told["already_there"], told["skipped"]) == (1, 0, 1, 2)
    assert places[A].read_bytes() == other
    assert places[B].is_symlink()
    assert places[D].read_bytes() == world.content[D]
    assert (mode(places[D]), places[D].stat().st_nlink) == (0o644, 1)
    assert not list(out.rglob(".*"))


def test_export_copies_to_another_filesystem(world: World) -> None:
    world.run("import", "--split", "train", world.held)
    with quick_place() as place:
        if place.stat().st_dev == world.root.stat().st_dev:
            pytest.skip("there is only one filesystem")
        done = world.run("export", "--split", "train", "--json", place)
        assert (done.returncode, result(done)["written"], result(done)["linked"]) == (0, 1, 0)
        assert tree(place) == of_train(world)


def test_export_fails_if_the_folder_is_locked_or_not_writable(world: World) -> None:
    world.run("import", "--split", "train", world.held)
    out = world.root / "out"
    out.mkdir()
    fd = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        busy = world.run("export", out)
    finally:
        os.close(fd)
    assert (busy.returncode, busy.stderr) == (
        1,
        f"kinetics-fs: cannot export to {out}: another export is writing there; wait until it ends\n",
    )
    (out / "train").write_bytes(b"a file")
    blocked = world.run("export", out)
    assert blocked.returncode == 1
    assert "cannot write" in blocked.stderr
    assert len(blocked.stderr.splitlines()) == 1
