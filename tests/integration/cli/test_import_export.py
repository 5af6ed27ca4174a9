"""`kinetics-fs import` and `export`, and a mount of what is in a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers, make_video
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset, MountFactory
from tests.support.annotations import csv_text
from tests.support.command_line import ENVIRONMENT, json_output, reason, run_command
from tests.support.store import cached_content, fast_folder, permissions
from tests.support.videos import run_ffmpeg

SURFING, HEAD = "surfing water", "massaging person's head"
A, B, C, D = (Clip(video, 0, 10) for video in ("-surfing__1", "_surfing__2", "heads-----3", "train_____4"))
"""Clips with real content."""
CUT, PAGE, EMPTY, ABSENT = (Clip(f"{word:_<11}", 5, 15) for word in ("cut", "page", "empty", "absent"))
"""Annotated clips that are broken or missing."""
ANOTHER_USER = 61001
OTHER = Clip("other______", 0, 10)
"""A clip without annotation."""
LABELS = {A: SURFING, B: SURFING, C: HEAD, D: SURFING, CUT: SURFING, PAGE: HEAD, EMPTY: HEAD, ABSENT: SURFING}


class ClipFolder:
    """Annotations, and a folder with real and broken clips in all layouts.

    Attributes:
        content: of the good ones.
        files: where they are.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.root = folder
        self.path = folder / "clips of\nsomeone"
        self.cache = folder / "cache"
        self.annotations = folder / "annotations.csv"
        rows = [f"{label},{','.join(map(str, clip))},{self.split(clip)}" for clip, label in LABELS.items()]
        self.annotations.write_text(csv_text(rows))
        videos = dataset.clips
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
        self.arguments = ("--annotations", self.annotations, "--cache-dir", self.cache)

    def split(self, clip: Clip) -> str:
        return "train" if clip == D else "validate"

    def put(self, name: str, content: bytes) -> Path:
        path = self.path / name
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
def clip_folder(dataset: Dataset, tmp_path: Path) -> ClipFolder:
    return ClipFolder(dataset, tmp_path)


def plant(link: Path, target: Path) -> None:
    """Create a symbolic link as another user does in a folder that everybody may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can create links of other users")
    link.symlink_to(target)
    os.chown(link, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)


# Import


def test_import_takes_good_files_and_reports_the_others(clip_folder: ClipFolder) -> None:
    clip_folder.put(f"val/{SURFING}/{OTHER.name}", clip_folder.content[A])
    clip_folder.put(f"val/._{A.name}", b"of macOS")
    clip_folder.put(".trash/" + ABSENT.name, clip_folder.content[A])
    clip_folder.put("-rf *", b"")
    clip_folder.put("name\n\x1b[31m.mp4", b"")
    (clip_folder.path / "val" / "loop").symlink_to("..")
    (clip_folder.path / ABSENT.name).symlink_to("nothing")
    (clip_folder.path / "val" / ABSENT.name).mkdir()
    os.mkfifo(clip_folder.path / "train" / ABSENT.name)
    # The layout of unpacked archives: each file once, and a symbolic link to it in its class.
    arranged = clip_folder.path / "arranged" / SURFING
    arranged.mkdir(parents=True)
    (arranged / A.name).symlink_to(clip_folder.files[A])
    before = {path: (permissions(path), path.stat().st_mtime_ns) for path in clip_folder.files.values()}

    first = clip_folder.run("import", clip_folder.path, "--json")

    assert first.returncode == 3
    told = json_output(first)
    corrupt, unused = told.pop("corrupt"), told.pop("unused")
    assert {(group["pattern"], group["reason"]): group["files"] for group in unused} == {
        ("*.mp4", "hidden"): 1,
        ("*", "hidden"): 1,
        ("*", "not the name of a clip"): 1,
        ("*.mp4", "not the name of a clip"): 1,
        ("*", "a link to a folder, which is not followed"): 1,
        ("ID_N_N.mp4", "not a regular file"): 1,
        ("ID_N_N.mp4", "not in the annotations"): 1,
    }
    assert told == {
        "imported": 4,
        "linked": 4,
        "bytes": sum(map(len, clip_folder.content.values())),
        "already_cached": 1,
        "not_in_annotations": 1,
        "busy": 0,
        "unreadable": {"cannot be read: No such file or directory": 1},
        "skipped": {
            "hidden": 2,
            "not the name of a clip": 2,
            "a link to a folder, which is not followed": 1,
            "not a regular file": 1,
        },
        "interrupted": False,
    }
    assert sum(corrupt.values()) == 3
    assert corrupt["the file is empty"] == 1
    assert clip_folder.in_cache() == clip_folder.content
    with Store(clip_folder.cache) as store:
        assert [(sample.clips, sample.fetched) for sample in store.history.samples()] == [(4, 0)]
        assert {getattr(store.record(clip), "source", None) for clip in clip_folder.content} == {"folder"}
    # Nothing of the names goes to the terminal as it is, and nothing of the user's changes.
    assert len(first.stderr.splitlines()) == 4
    assert "\x1b" not in first.stderr
    assert {path: (permissions(path), path.stat().st_mtime_ns) for path in clip_folder.files.values()} == before
    assert all(clip_folder.cached_file(clip).samefile(path) for clip, path in clip_folder.files.items())

    again = clip_folder.run("import", clip_folder.path)
    assert again.returncode == 3
    assert (
        again.stdout.splitlines()[0]
        == "0 clips imported (0 as hard links), 5 already cached, 1 not in the annotations, 3 corrupt"
    )


def test_import_of_a_selection_skips_other_clips(clip_folder: ClipFolder) -> None:
    done = clip_folder.run("import", "--split", "train", "--json", "--verify", "decode", clip_folder.path)

    assert done.returncode == 0, "nothing of the selection was broken"
    assert (json_output(done)["imported"], json_output(done)["not_in_annotations"]) == (1, 6)
    assert clip_folder.in_cache() == {D: clip_folder.content[D]}


def test_import_copies_files_on_request(clip_folder: ClipFolder) -> None:
    done = clip_folder.run("import", "--split", "train", "--copy", "--json", clip_folder.path)

    assert (json_output(done)["imported"], json_output(done)["linked"]) == (1, 0)
    assert permissions(clip_folder.cached_file(D)) == 0o400
    clip_folder.files[D].write_bytes(b"changed")
    assert clip_folder.in_cache() == {D: clip_folder.content[D]}


def test_import_copies_files_of_another_filesystem(clip_folder: ClipFolder) -> None:
    with fast_folder() as elsewhere:
        if elsewhere.stat().st_dev == clip_folder.root.stat().st_dev:
            pytest.skip("there is only one filesystem")
        (elsewhere / D.name).write_bytes(clip_folder.content[D])
        # It would be copied: the cache has no space for that.
        refused = run_command("import", *clip_folder.arguments, "--min-free", "1000TB", elsewhere)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "copied" in refused.stderr
        done = clip_folder.run("import", "--json", elsewhere)

    assert (done.returncode, json_output(done)["imported"], json_output(done)["linked"]) == (0, 1, 0)
    assert clip_folder.in_cache() == {D: clip_folder.content[D]}


def odd_files(clip_folder: ClipFolder) -> None:
    """Replace the good clips of a folder by other kinds of files that have the names of mp4 files."""
    matroska = clip_folder.root / "a.mkv"
    run_ffmpeg("-i", clip_folder.files[A], "-c", "copy", matroska)
    matroska.replace(clip_folder.files[A])
    trimmed = clip_folder.root / "b.mp4"
    run_ffmpeg("-ss", "2.1", "-i", clip_folder.files[B], "-c", "copy", trimmed)
    trimmed.replace(clip_folder.files[B])
    cover, covered = clip_folder.root / "c.jpg", clip_folder.root / "c.mp4"
    run_ffmpeg("-i", clip_folder.files[C], "-frames:v", 1, cover)
    run_ffmpeg(
        *("-i", clip_folder.files[C], "-i", cover, "-map", 1, "-map", 0, "-c", "copy"),
        *("-disposition:v:0", "attached_pic", covered),
    )
    covered.replace(clip_folder.files[C])
    cover.replace(clip_folder.files[D])


@pytest.mark.parametrize("command", ["import", "prefetch"])
def test_odd_files_are_used_or_refused_with_the_reason(clip_folder: ClipFolder, command: str) -> None:
    odd_files(clip_folder)
    numbers = {clip: frame_numbers(clip_folder.files[clip]) for clip in (A, B, C)}
    originals = {clip: path.read_bytes() for clip, path in clip_folder.files.items()}

    if command == "import":
        done = clip_folder.run("import", clip_folder.path, "--json")
        assert json_output(done)["imported"] == 3
        assert "the file is a picture (JPEG), not a video" in json_output(done)["corrupt"]
        assert "the file is a web page (HTML), not a video" in json_output(done)["corrupt"]
    else:
        done = clip_folder.run("prefetch", "--source", "folder", "--folder", clip_folder.path, "--json")
        assert "is a picture (JPEG)" in run_command("failures", "list", "--cache-dir", clip_folder.cache).stdout

    assert done.returncode == 3
    assert clip_folder.in_cache().keys() == {A, B, C}
    for clip in (A, B, C):
        assert frame_numbers(clip_folder.cached_file(clip)) == numbers[clip]
        assert clip_folder.cached_file(clip).read_bytes()[4:8] == b"ftyp"
    assert {clip: path.read_bytes() for clip, path in clip_folder.files.items()} == originals
    assert clip_folder.run("verify", "--decode").returncode == 0


def test_an_edit_of_a_linked_file_is_detected_by_its_length(clip_folder: ClipFolder) -> None:
    assert clip_folder.run("import", "--split", "train", clip_folder.path).returncode == 0
    with clip_folder.files[D].open("ab") as file:
        file.write(b"more")
    assert clip_folder.in_cache() == {}


def test_import_keeps_the_limit_and_evicts_nothing(clip_folder: ClipFolder) -> None:
    make_video(clip_folder.files[D], seconds=1, ffmpeg=find_ffmpeg())
    clip_folder.content[D] = clip_folder.files[D].read_bytes()
    assert clip_folder.run("import", "--split", "validation", clip_folder.path).returncode == 3
    before = clip_folder.in_cache()
    assert before.keys() == {A, B, C}
    size = sum(map(len, clip_folder.content.values()))

    refused = clip_folder.run("import", "--split", "train", "--cache-size", f"{size - 1}B", clip_folder.path)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "--cache-size" in refused.stderr
    assert clip_folder.in_cache() == before

    # To the byte, which is less space than a clip of unknown size is given.
    assert clip_folder.run("import", "--split", "train", "--cache-size", f"{size}B", clip_folder.path).returncode == 0
    assert clip_folder.in_cache() == clip_folder.content


def test_import_takes_one_good_file_of_several_of_a_clip(clip_folder: ClipFolder) -> None:
    for number in range(12):
        clip_folder.put(f"{number}/{D.name}", clip_folder.content[D])
        clip_folder.put(f"{number}/{CUT.name}", clip_folder.content[A] if number == 5 else b"")
    clip_folder.put(f"more/{CUT.name}", clip_folder.content[A][:-100_000])

    told = json_output(clip_folder.run("import", "--class", SURFING, "--json", clip_folder.path))

    assert told["busy"] == 0
    assert clip_folder.in_cache() == {clip: clip_folder.content[clip] for clip in (A, B, D)} | {
        CUT: clip_folder.content[A]
    }
    # Further files of a cached clip are not read.
    assert told["imported"] + told["already_cached"] + sum(told["corrupt"].values()) == 2 + 13 + 14


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_import_resumes(clip_folder: ClipFolder, number: signal.Signals) -> None:
    clips = [Clip(f"many_____{index:02}", 0, 10) for index in range(24)]
    rows = [f"{SURFING},{clip.youtube_id},0,10,validate" for clip in clips]
    clip_folder.annotations.write_text(csv_text(rows))
    many = clip_folder.root / "many"
    many.mkdir()
    for clip in clips:
        (many / clip.name).write_bytes(clip_folder.content[A])
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "import", *map(str, clip_folder.arguments)]
    with subprocess.Popen(
        [*command, "--verify", "decode", "--json", str(many)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(clip_folder.cache.glob("clips/*/*.mp4")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        said, complaints = process.communicate(timeout=60)
    before = len(list(clip_folder.cache.glob("clips/*/*.mp4")))
    assert 0 < before < len(clips)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert (process.returncode, complaints) == (130, "Interrupted. Run the same command again to resume.\n")
        assert (json.loads(said)["imported"], json.loads(said)["interrupted"]) == (before, True)

    done = clip_folder.run("import", "--json", many)

    assert done.returncode == 0, done.stderr
    # A clip may have been moved into the cache just before the kill: it is imported again.
    assert json_output(done)["imported"] - (len(clips) - before) in ({0, 1} if number == signal.SIGKILL else {0})
    assert json_output(done)["imported"] + json_output(done)["already_cached"] == len(clips)
    assert not list(CacheLayout(clip_folder.cache).incoming.iterdir())
    assert {path.stat().st_nlink for path in many.iterdir()} == {2}


def test_import_skips_the_cache_directory(clip_folder: ClipFolder) -> None:
    with Store(clip_folder.cache) as store:
        claim = store.claim(ABSENT)
        assert claim is not None
        with claim:
            (claim.folder / ABSENT.name).write_bytes(clip_folder.content[A])
            done = clip_folder.run("import", "--json", clip_folder.root)
    assert (json_output(done)["imported"], json_output(done)["busy"]) == (4, 0)


def test_import_from_a_mount_fetches_the_clips(clip_folder: ClipFolder, mount: MountFactory, site: VideoSite) -> None:
    there = mount("--annotations", clip_folder.annotations, "--source", "folder", "--folder", clip_folder.path)
    (there.root / "train" / SURFING / D.name).read_bytes()

    other = clip_folder.root / "other"
    done = run_command("import", *clip_folder.arguments, "--cache-dir", other, "--json", there.root)

    assert (json_output(done)["imported"], json_output(done)["linked"]) == (1, 0)
    assert site.requests == []


# Mounts of a folder


def test_a_mount_takes_clips_from_a_folder(clip_folder: ClipFolder, mount: MountFactory, site: VideoSite) -> None:
    before = {clip: permissions(path) for clip, path in clip_folder.files.items()}
    mounted = mount("--annotations", clip_folder.annotations, "--source", "folder", "--folder", clip_folder.path)

    for clip, content in clip_folder.content.items():
        path = mounted.root / ("train" if clip == D else "validation") / LABELS[clip] / clip.name
        assert path.read_bytes() == content
        assert os.getxattr(path, "user.kinetics.source") == b"folder"
        assert clip_folder.cached_file(clip).samefile(clip_folder.files[clip])
    for clip in (CUT, PAGE, EMPTY, ABSENT):
        path = mounted.root / "validation" / LABELS[clip] / clip.name
        with pytest.raises(OSError, match="Input/output error"):
            path.open("rb")
    assert "frames" in reason(mounted.root / "validation" / SURFING / CUT.name)
    assert "no source has this clip" in reason(mounted.root / "validation" / SURFING / ABSENT.name)
    assert {clip: permissions(path) for clip, path in clip_folder.files.items()} == before
    assert site.requests == []


def test_a_clip_that_is_broken_in_a_folder_comes_from_the_next_source(
    clip_folder: ClipFolder, mount: MountFactory, site: VideoSite
) -> None:
    good, broken = Clip("-demo_video", 10, 12), Clip("_demo_vid3_", 3, 5)
    rows = [f"{SURFING},{clip.youtube_id},{clip.start},{clip.end},validate" for clip in (good, broken)]
    clip_folder.annotations.write_text(csv_text(rows))
    clip_folder.put(f"val/{SURFING}/{good.name}", clip_folder.content[A])
    clip_folder.put(f"val/{SURFING}/{broken.name}", clip_folder.content[A][:-100_000])
    config = clip_folder.root / "config.toml"
    config.write_text(f"folder = [{json.dumps(str(clip_folder.root))}, {json.dumps(str(clip_folder.path))}]\n")
    folder = mount("--annotations", clip_folder.annotations, config=config).root / "validation" / SURFING

    assert (folder / good.name).read_bytes() == clip_folder.content[A]
    assert (folder / broken.name).stat().st_size
    (folder / broken.name).read_bytes()

    sources = {clip: os.getxattr(folder / clip.name, "user.kinetics.source") for clip in (good, broken)}
    assert sources == {good: b"folder", broken: b"youtube"}
    assert site.video_fetches(good.youtube_id) == 0


def test_a_mount_that_is_its_own_folder_does_not_hang(clip_folder: ClipFolder, mount: MountFactory) -> None:
    mountpoint = clip_folder.root / "mount 1"  # where it is going to be
    mountpoint.mkdir()
    mounted = mount(
        "--annotations", clip_folder.annotations, "--source", "folder", "--folder", mountpoint, "--timeout", "50"
    )
    assert mounted.root == mountpoint
    path = mounted.root / "train" / SURFING / D.name
    with pytest.raises(OSError, match="Input/output error"):
        path.open("rb")
    assert "no source has this clip" in reason(path)


def test_prefetch_reads_folders_from_the_environment(clip_folder: ClipFolder) -> None:
    folders = f"{clip_folder.path / 'train'};{clip_folder.path}"
    done = run_command(
        *("prefetch", *clip_folder.arguments, "--source", "folder", "--split", "train", "--json"),
        KINETICS_FS_FOLDER=folders,
    )
    assert (done.returncode, json_output(done)["fetched"]) == (0, 1)
    assert clip_folder.in_cache() == {D: clip_folder.content[D]}

    # Broken and missing files stop nothing.
    rest = clip_folder.run("prefetch", "--source", "folder", "--folder", clip_folder.path, "--workers", "1", "--json")
    assert rest.returncode == 3
    assert (json_output(rest)["fetched"], json_output(rest)["already_cached"]) == (3, 1)
    assert json_output(rest)["failures"] == {"corrupt": 2, "config": 2}
    assert clip_folder.in_cache() == clip_folder.content


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
def test_invalid_arguments_are_refused(clip_folder: ClipFolder, arguments: tuple[str, ...], says: str) -> None:
    command, *rest = arguments
    done = clip_folder.run(command, *rest)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# Export


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_train(clip_folder: ClipFolder, class_name: str = SURFING) -> dict[str, bytes]:
    return {f"train/{class_name}/{D.name}": clip_folder.content[D]}


def exported(clip_folder: ClipFolder, class_names: str) -> dict[str, bytes]:
    names = {"raw": (SURFING, HEAD), "torchvision": ("surfing_water", "massaging_persons_head")}[class_names]
    return of_train(clip_folder, names[0]) | {
        f"validation/{names[label == HEAD]}/{clip.name}": clip_folder.content[clip]
        for clip, label in LABELS.items()
        if clip in (A, B, C)
    }


def test_an_export_can_be_imported(clip_folder: ClipFolder) -> None:
    clip_folder.run("import", "--copy", clip_folder.path)
    out = clip_folder.root / "out"

    first = clip_folder.run("export", "--class-names", "torchvision", "--json", out)

    assert first.returncode == 3, "some clips are not cached"
    assert json_output(first) == {
        "written": 4,
        "linked": 4,
        "from_shared": 0,
        "bytes": sum(path.stat().st_size for path in out.rglob("*.mp4")),
        "already_there": 0,
        "skipped": 0,
        "missing": 4,
        "interrupted": False,
    }
    assert tree(out) == exported(clip_folder, "torchvision")
    file = out / "train" / "surfing_water" / D.name
    assert file.samefile(clip_folder.cached_file(D))
    assert permissions(file) == 0o400
    whole = clip_folder.run("export", "--split", "train", "--class-names", "torchvision", out)
    assert whole.returncode == 0
    assert whole.stdout == "0 files written (0 as hard links), 1 already there, 0 not in the cache\n"

    back = run_command("import", *clip_folder.arguments, "--cache-dir", clip_folder.root / "other", "--json", out)
    assert (back.returncode, json_output(back)["imported"]) == (0, 4)
    # And the cache gives a clip up without harm to what was exported.
    with Store(clip_folder.cache) as store:
        store.remove(D)
    assert tree(out) == exported(clip_folder, "torchvision")


def test_export_of_copies_never_overwrites(clip_folder: ClipFolder) -> None:
    clip_folder.run("import", clip_folder.path)
    out = clip_folder.root / "out"
    paths = {clip: out / name for clip, name in zip((D, A, B, C), exported(clip_folder, "raw"), strict=True)}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    other = clip_folder.content[A][:-1] + b"?"
    paths[A].write_bytes(other)  # of the same length
    paths[B].symlink_to("nowhere")
    paths[C].write_bytes(clip_folder.content[C])
    paths[D].with_name(f".{D.name}.part").write_bytes(b"what an export left that was killed")

    done = clip_folder.run("export", "--copy", "--json", out)

    assert done.returncode == 3
    told = json_output(done)
    assert (told["written"], told["linked"], told["already_there"], told["skipped"]) == (1, 0, 1, 2)
    assert paths[A].read_bytes() == other
    assert paths[B].is_symlink()
    assert paths[D].read_bytes() == clip_folder.content[D]
    assert (permissions(paths[D]), paths[D].stat().st_nlink) == (0o644, 1)
    assert not list(out.rglob(".*"))


def test_export_copies_to_another_filesystem(clip_folder: ClipFolder) -> None:
    clip_folder.run("import", "--split", "train", clip_folder.path)
    with fast_folder() as elsewhere:
        if elsewhere.stat().st_dev == clip_folder.root.stat().st_dev:
            pytest.skip("there is only one filesystem")
        done = clip_folder.run("export", "--split", "train", "--json", elsewhere)
        assert (done.returncode, json_output(done)["written"], json_output(done)["linked"]) == (0, 1, 0)
        assert tree(elsewhere) == of_train(clip_folder)


def test_export_fails_if_the_folder_is_locked_or_not_writable(clip_folder: ClipFolder) -> None:
    clip_folder.run("import", "--split", "train", clip_folder.path)
    out = clip_folder.root / "out"
    out.mkdir()
    fd = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        busy = clip_folder.run("export", out)
    finally:
        os.close(fd)
    assert (busy.returncode, busy.stderr) == (
        1,
        f"kinetics-fs: cannot export to {out}: another export is writing there; wait until it ends\n",
    )
    (out / "train").write_bytes(b"a file")
    blocked = clip_folder.run("export", out)
    assert blocked.returncode == 1
    assert "cannot write" in blocked.stderr
    assert len(blocked.stderr.splitlines()) == 1


# Links of other users


@pytest.mark.parametrize("command", ["import", "prefetch", "mount"])
def test_a_link_of_another_user_publishes_no_private_file(
    clip_folder: ClipFolder, mount: MountFactory, command: str
) -> None:
    secret = clip_folder.files[A].rename(clip_folder.root / "secret.mp4")
    secret.chmod(0o600)
    plant(clip_folder.files[A], secret)
    if command == "import":
        done = clip_folder.run("import", "--json", clip_folder.path)
        assert done.returncode == 3
        assert list(json_output(done)["unreadable"].values()) == [1]
    elif command == "prefetch":
        done = clip_folder.run("prefetch", "--source", "folder", "--folder", clip_folder.path)
        assert done.returncode == 3
    else:
        mounted = mount("--annotations", clip_folder.annotations, "--source", "folder", "--folder", clip_folder.path)
        with pytest.raises(OSError, match="Input/output error") as caught:
            (mounted.root / "validation" / SURFING / A.name).read_bytes()
        assert caught.value.errno == errno.EIO
        assert (mounted.root / "train" / SURFING / D.name).read_bytes() == clip_folder.content[D]
        assert A not in clip_folder.in_cache()
        return
    assert f"a link of uid {ANOTHER_USER} leads out of the folder to uid 0" in done.stderr
    assert clip_folder.in_cache().keys() >= {B, D}
    assert A not in clip_folder.in_cache()


@pytest.mark.parametrize("link", ["validation", f"validation/{SURFING}"])
def test_export_writes_nothing_through_a_link_of_another_user(clip_folder: ClipFolder, link: str) -> None:
    clip_folder.run("import", clip_folder.path)
    out, elsewhere = clip_folder.root / "out", clip_folder.root / "elsewhere"
    (out / link).parent.mkdir(parents=True)
    elsewhere.mkdir()
    plant(out / link, elsewhere)

    done = clip_folder.run("export", out)

    assert done.returncode == 1
    assert f"kinetics-fs: cannot write {out / link}" in done.stderr
    assert f"a link of uid {ANOTHER_USER} leads out of the folder to uid 0" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_own_links_to_class_folders_work_both_ways(clip_folder: ClipFolder) -> None:
    clip_folder.run("import", clip_folder.path)
    out, elsewhere = clip_folder.root / "out", clip_folder.root / "elsewhere"
    (out / "train").mkdir(parents=True)
    elsewhere.mkdir()
    (out / "train" / SURFING).symlink_to(elsewhere)
    assert clip_folder.run("export", "--split", "train", out).returncode == 0
    assert [path.name for path in elsewhere.iterdir()] == [D.name]
    again = ("--cache-dir", clip_folder.root / "another", "--split", "train", "--source", "folder", "--folder", out)
    assert clip_folder.run("prefetch", *again).returncode == 0
