"""Folders of clips as real tools leave them, and as nobody should."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip, compile_catalog, find_release
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources import NotInSource
from kinetics_fs.sources.archive.tar import MAX_CLIP_SIZE
from kinetics_fs.sources.folder import FolderSource
from kinetics_fs.util.files import link_or_copy
from tests.support.annotations import csv_text
from tests.support.store import fast_folder
from tests.support.store_fixtures import public_folder as public_folder
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.store_fixtures import without_privileges as without_privileges

CLIP = Clip("-a_b-c_d-e_", 10, 20)
FOOTBALL = "passing American football (in game)"
HEAD = "massaging person's head"
ROWS = [
    (FOOTBALL, CLIP, "validate"),
    (HEAD, Clip("train_only_", 0, 10), "train"),
    ("(..)", Clip("sly_label__", 0, 10), "test"),  # torchvision would call it `..`
]
CONTENT = b"not a video: that is for the worker to find out" * 50


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    file = tmp_path / "annotations.csv"
    file.write_text(
        csv_text(f"{label},{clip.youtube_id},{clip.start},{clip.end},{split}" for label, clip, split in ROWS)
    )
    return compile_catalog([file], find_release("600"), tmp_path / "catalogs")


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """The user's folder."""
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """The private folder of a worker."""
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


def fetch(source: FolderSource, clip: Clip, private: Path) -> Media:
    media = source.fetch(clip, private)
    assert media is not None
    return media


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_an_empty_file_is_named(catalog: Path, clip_folder: Path, private: Path) -> None:
    path = put(clip_folder / CLIP.name, b"")
    with pytest.raises(NotInSource) as caught:
        FolderSource([clip_folder], catalog).fetch(CLIP, private)
    assert caught.value.note == f"{path} is not used: the file is empty"


LAYOUTS = {
    "archives as they unpack": f"{CLIP.name}",
    "archives, arranged": f"val/{FOOTBALL}/{CLIP.name}",
    "crawler of ActivityNet": f"{FOOTBALL}/{CLIP.name}",
    "FiftyOne": f"validation/{FOOTBALL}/{CLIP.name}",
    "FiftyOne, the folder above": f"kinetics-600/validation/{FOOTBALL}/{CLIP.name}",
    "torchvision": f"val/passing_American_football_in_game/{CLIP.name}",
    "mmaction2": f"validate/passing_American_football_(in_game)/{CLIP.name}",
    "by split alone": f"valid/{CLIP.name}",
    "resized by mmaction2": f"val_256/{CLIP.name}",
    "resized by mmaction2, class folders": f"compress/val_256/passing_American_football_(in_game)/{CLIP.name}",
    "videos_val": f"kinetics600/videos_val/passing_american_football_in_game/{CLIP.name}",
    "with a hyphen": f"val-256/{CLIP.name}",
    "scripts of the archives": f"kinetics-dataset/k600/val/{CLIP.name}",
    "scripts of the archives, arranged": f"kinetics-dataset/k600/videos/validation/{FOOTBALL}/{CLIP.name}",
    "upper case": f"VAL/{FOOTBALL.upper()}/{CLIP.name}",
    "spaces at the end": f"Validation /{FOOTBALL} /{CLIP.name} ",
    "hyphens": f"Val/{FOOTBALL.replace(' ', '-')}/{CLIP.name}",
    "class above split": f"{FOOTBALL}/val/{CLIP.name}",
    "numbered classes": f"val/217/{CLIP.name}",
    "deep": f"a/b/c/d/{CLIP.name}",
    "another release": f"k400/val/{FOOTBALL}/{CLIP.name}",
    "zip of Windows": f"val\\{FOOTBALL}\\{CLIP.name}",
    "upper-case suffix": f"val/{CLIP.key}.MP4",
    "Matroska": f"val/{FOOTBALL}/{CLIP.key}.mkv",
    "WebM": f"{FOOTBALL}/{CLIP.key}.webm",
    "merged by yt-dlp": f"{CLIP.key}.mp4.webm",
    "AVI, short times": "-a_b-c_d-e__10_20.avi",
    "times as they are": f"val/{FOOTBALL}/-a_b-c_d-e__10_20.mp4",
    "times as they are, flat": "-a_b-c_d-e__10_20.mp4",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_tools_leave(layout: str, catalog: Path, clip_folder: Path, private: Path) -> None:
    file = put(clip_folder / LAYOUTS[layout])
    file.chmod(0o644)

    media = fetch(FolderSource([clip_folder.parent / "none", clip_folder], catalog), CLIP, private)

    assert (media.path, media.start, media.length, media.whole) == (private / CLIP.name, 0.0, None, True)
    assert media.path.read_bytes() == CONTENT
    assert media.path.samefile(file), "it takes no space"


@pytest.mark.parametrize(
    "wrong",
    [
        f"train/{FOOTBALL}/{CLIP.name}",  # another split
        f"val/{HEAD}/{CLIP.name}",  # another class
        f"videos_train/{CLIP.name}",
        f".trash/{CLIP.name}",
        "-a_b-c_d-e__010_020.mp4",
        "-a_b-c_d-e__000010_000021.mp4",
    ],
)
def test_what_is_elsewhere_is_not_here(wrong: str, catalog: Path, clip_folder: Path, private: Path) -> None:
    put(clip_folder / wrong)
    with pytest.raises(NotInSource):
        FolderSource([clip_folder], catalog).fetch(CLIP, private)
    assert list(private.iterdir()) == []


def test_without_a_catalog_loose_files_alone(clip_folder: Path, private: Path) -> None:
    file = put(clip_folder / f"val/{FOOTBALL}/{CLIP.name}")
    source = FolderSource([clip_folder], None)
    with pytest.raises(NotInSource):
        source.fetch(CLIP, private)
    file.rename(clip_folder / CLIP.name)
    assert fetch(source, CLIP, private).path.read_bytes() == CONTENT


def test_no_label_leads_out_of_the_folder(catalog: Path, clip_folder: Path, private: Path) -> None:
    clip = ROWS[2][1]
    put(clip_folder.parent / clip.name)
    put(clip_folder / "test" / "x")
    with pytest.raises(NotInSource):
        FolderSource([clip_folder / "test", clip_folder], catalog).fetch(clip, private)
    put(clip_folder / "test" / "(..)" / clip.name)
    assert FolderSource([clip_folder], catalog).fetch(clip, private)


def test_odd_things_under_the_name_of_a_clip(catalog: Path, clip_folder: Path, private: Path) -> None:
    folders = [clip_folder / str(number) for number in range(6)]
    put(folders[0] / CLIP.name, b"")
    folders[1].mkdir()
    os.mkfifo(folders[1] / CLIP.name)
    (folders[2] / CLIP.name).mkdir(parents=True)
    folders[3].mkdir()
    (folders[3] / CLIP.name).symlink_to(CLIP.name)  # a loop
    folders[4].mkdir()
    (folders[4] / CLIP.name).symlink_to("gone")
    folders[5].mkdir()
    (folders[5] / CLIP.name).symlink_to("/dev/zero")
    source = FolderSource(folders, catalog)
    with pytest.raises(NotInSource):
        source.fetch(CLIP, private)
    assert list(private.iterdir()) == []

    # As the archives are arranged: by symbolic links to files.
    (folders[5] / "-a_b-c_d-e__10_20.mp4").symlink_to(put(clip_folder / "elsewhere.mp4"))
    media = fetch(source, CLIP, private)
    assert not media.path.is_symlink()
    assert media.path.samefile(clip_folder / "elsewhere.mp4")


def test_class_that_is_called_as_a_split_hides_no_clips(tmp_path: Path, clip_folder: Path, private: Path) -> None:
    file = tmp_path / "annotations.csv"
    file.write_text(csv_text(["train,toy_trains_,0,10,validate", f"{HEAD},{CLIP.youtube_id},10,20,train"]))
    catalog = compile_catalog([file], find_release("600"), tmp_path / "catalogs")
    put(clip_folder / "k600" / "train" / CLIP.name)
    put(clip_folder / "k600" / "val" / "train" / "toy_trains__000000_000010.mkv")
    source = FolderSource([clip_folder], catalog)
    for clip in (CLIP, Clip("toy_trains_", 0, 10)):
        assert fetch(source, clip, private).path.read_bytes() == CONTENT


def test_file_that_appears_later_is_found(catalog: Path, clip_folder: Path, private: Path) -> None:
    put(clip_folder / "a" / "b" / "other.mp4")
    source = FolderSource([clip_folder], catalog)
    with pytest.raises(NotInSource):
        source.fetch(CLIP, private)
    put(clip_folder / "a" / "b" / f"{CLIP.key}.mkv")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(NotInSource):
            assert fetch(source, CLIP, private).path.read_bytes() == CONTENT
            break
    else:
        pytest.fail("not found")


def test_usual_path_needs_no_permission_to_list_folders(
    catalog: Path, public_folder: Path, without_privileges: Callable[[], AbstractContextManager[None]]
) -> None:
    put(public_folder / "clips" / "val" / CLIP.name)
    for folder in (public_folder / "clips" / "val", public_folder / "clips"):
        folder.chmod(0o711)
    private = public_folder / "private"
    private.mkdir()
    private.chmod(0o777)
    readable = Path(shutil.copy(catalog, public_folder / "catalog.sqlite"))
    readable.chmod(0o644)
    source = FolderSource([public_folder / "clips"], readable)
    with without_privileges():
        assert fetch(source, CLIP, private).path.read_bytes() == CONTENT
        with pytest.raises(NotInSource):
            source.fetch(ROWS[1][1], private)


@pytest.mark.parametrize("name", [CLIP.name, f"{CLIP.key}.mkv", "-a_b-c_d-e__10_20.mp4"])
def test_clip_among_many_files_is_found(name: str, catalog: Path, clip_folder: Path, private: Path) -> None:
    for number in range(5_001):
        (clip_folder / f"{number:011}_000000_000010.mp4").touch()
    put(clip_folder / "flat" / name)
    for number in range(5_001):
        (clip_folder / "flat" / f"{number:011}_0_10.mp4").touch()
    assert fetch(FolderSource([clip_folder], catalog), CLIP, private).path.read_bytes() == CONTENT


def test_too_large(catalog: Path, clip_folder: Path, private: Path) -> None:
    os.truncate(put(clip_folder / CLIP.name), MAX_CLIP_SIZE + 1)
    with pytest.raises(FetchError, match="larger than") as caught:
        FolderSource([clip_folder], catalog).fetch(CLIP, private)
    assert (caught.value.kind, caught.value.source) == (FailureKind.CORRUPT, "folder")
    assert list(private.iterdir()) == []


def test_unreadable_file_is_told_and_another_taken(
    catalog: Path, public_folder: Path, private: Path, without_privileges: Callable[[], AbstractContextManager[None]]
) -> None:
    file = put(public_folder / "one" / CLIP.name)
    file.chmod(0)
    private = public_folder / "private"
    private.mkdir()
    private.chmod(0o777)
    source = FolderSource([public_folder / "one", public_folder / "two"], None)
    with without_privileges(), pytest.raises(FetchError) as caught:
        source.fetch(CLIP, private)
    # Neither LOCAL nor CONFIG, which would end a prefetch.
    assert (caught.value.kind, caught.value.cause_errno) == (FailureKind.TRANSIENT, errno.EACCES)
    assert str(file) in caught.value.reason

    put(public_folder / "two" / CLIP.name)
    with without_privileges():
        media = fetch(source, CLIP, private)
    assert media.path.read_bytes() == CONTENT


def test_folders_that_are_not_searched_are_logged_once(
    catalog: Path, clip_folder: Path, private: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(clip_folder / "videos_train" / CLIP.name)
    source = FolderSource([clip_folder], catalog)
    for _ in range(2):
        with pytest.raises(NotInSource):
            source.fetch(CLIP, private)
    [line] = caplog.messages
    assert line.startswith(f"{CLIP.key}: folder: 1 folder not searched, such as {clip_folder}/videos_train: ")


def test_file_of_another_user_is_copied(catalog: Path, clip_folder: Path, private: Path) -> None:
    file = put(clip_folder / CLIP.name)
    try:
        os.chown(file, 65534, 65534)
    except PermissionError:
        pytest.skip("only root can give files away")
    path = fetch(FolderSource([clip_folder], catalog), CLIP, private).path
    assert not path.samefile(file)
    assert path.read_bytes() == CONTENT


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on another filesystem."""
    with fast_folder() as folder:
        yield folder


def test_other_filesystem_is_copied(catalog: Path, clip_folder: Path, private: Path, memory: Path) -> None:
    if memory.stat().st_dev == clip_folder.stat().st_dev:
        pytest.skip("there is only one filesystem")
    put(memory / CLIP.name).chmod(0o604)
    path = fetch(FolderSource([memory], catalog), CLIP, private).path
    assert path.read_bytes() == CONTENT
    assert path.stat().st_nlink == 1


@pytest.fixture
def cloning_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk whose files can share their blocks."""
    image, mountpoint = tmp_path / "image", tmp_path / "disk"
    mountpoint.mkdir()
    image.touch()
    os.truncate(image, 120_000_000)
    program = shutil.which("mkfs.btrfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "false"
    for command in ([program, "-q", str(image)], ["mount", "-o", "loop", str(image), str(mountpoint)]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no Btrfs here")
    yield mountpoint
    subprocess.run(["umount", "-l", mountpoint], check=True)


def test_clone_is_of_its_own_and_takes_no_space(cloning_disk: Path) -> None:
    size = 15_000_000  # four of them would not fit
    content = os.urandom(1_000_000) * (size // 1_000_000)
    with put(cloning_disk / "file", content).open("r+b") as file:
        os.fsync(file.fileno())
        for number in range(3):
            assert not link_or_copy(file.fileno(), cloning_disk / f"{number}", max_size=size)
        file.write(b"changed")
    assert all((cloning_disk / f"{number}").read_bytes() == content for number in range(3))


def test_copy_leaves_nothing_of_what_does_not_fit(small_disk: Callable[[int], Path], clip_folder: Path) -> None:
    disk = small_disk(1_000_000)
    with put(clip_folder / "file", os.urandom(2_000_000)).open("rb") as file:
        with pytest.raises(OSError, match="No space"):
            link_or_copy(file.fileno(), disk / "file", max_size=3_000_000)
        with pytest.raises(OSError, match="larger than"):
            link_or_copy(file.fileno(), clip_folder / "other", max_size=1_999_999)
        assert list(disk.iterdir()) == []
        assert not (clip_folder / "other").exists()
        assert not link_or_copy(file.fileno(), clip_folder / "other", max_size=2_000_000, link=False)
        assert (clip_folder / "other").read_bytes() == file.read()
        # Existing content stays.
        with pytest.raises(FileExistsError):
            link_or_copy(file.fileno(), clip_folder / "other", max_size=2_000_000)
    assert (clip_folder / "other").stat().st_size == 2_000_000
