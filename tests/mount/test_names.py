"""The tree that a mount shows: names, links, inode numbers, attributes, and the files in `.kinetics`."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import ClassNames, Clip, class_name
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import Store
from tests.conftest import Dataset, MountFactory
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import Mounted, kinetics_fs, run_command
from tests.support.mounts import cached_file, reading, state, wait_until

LABELS = [
    "massaging person's head",
    "passing American football (in game)",
    "jouer à la pétanque",
    "日本の踊り 💃",
    "-rf",
    "--help",
    ".hidden",
    "...",
    "~",
    "a" * 255,
    "é" * 127 + "x",
    "$(touch x)",
    "`touch x`",
    "a, b and c",
    'say "cheese"',
    "back\\slash",
    "star * [a-z] ?",
    "%s %n",
    "semi;colon & | > <",
    "CON",
    "train",
    "val",
    ".kinetics",
    "status.json",
    "e\u0301 apart",
    "\u202eright to left",
    "surfing water",
]

SPLITS = {"train": "train", "validate": "validation", "test": "test"}
FETCHED = Clip("demo-video2", 4, 5)


def rows() -> list[Labelled]:
    """Return a few clips of each class, in all splits; some without a label."""
    generator = random.Random(700)
    ids = ["-demo_video", "--dashed-id", "_underscore", "0123456789a", "demo_video4"]
    found = {
        Labelled(label, Clip(generator.choice(ids), start, start + 10), split)
        for label in LABELS
        for split in SPLITS
        for start in generator.sample(range(1000), generator.randrange(1, 12))
        if split != "test"
    }
    found |= {Labelled("", Clip(generator.choice(ids), start, start + 10), "test") for start in range(30)}
    found.add(Labelled("surfing water", FETCHED, "validate"))
    return sorted(found)


ROWS = rows()
BAD_ROWS = {
    '"open,-demo_video,1,2,train': "quotes do not match",
    "a/b,-demo_video,1,2,train": "label has a slash",
    "..,-demo_video,1,2,train": "label is not a name",
    ".,-demo_video,1,2,train": "label is not a name",
    f"{'a' * 256},-demo_video,1,2,train": "label is too long",
    "_unlabeled,-demo_video,1,2,train": "label is reserved",
    "x\x1by,-demo_video,1,2,train": "label has a control character",
    "x,../../../etc,1,2,train": "bad YouTube id",
    "x,-demo_video,9,2,train": "ends before it begins",
    "x,-demo_video,1,2,tarin": "unknown split",
}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_annotations(tmp_path_factory.mktemp("nasty") / "nasty.csv", ROWS)
    with path.open("a", newline="") as file:
        file.writelines(f"{row}\n" for row in BAD_ROWS)
    return path


class Shown(Mounted):
    """A mount of `ROWS` alone."""

    def path(self, row: Labelled, style: ClassNames = ClassNames.RAW) -> Path:
        return self.root / relative(row, style)


def relative(row: Labelled, style: ClassNames = ClassNames.RAW) -> str:
    return f"{SPLITS[row.split]}/{class_name(row.label or '_unlabeled', style)}/{row.clip.name}"


@pytest.fixture(scope="module")
def shared_site(dataset: Dataset) -> Iterator[VideoSite]:
    with VideoSite(dataset.videos) as site:
        yield site


@pytest.fixture(scope="module", params=list(ClassNames))
def style(request: pytest.FixtureRequest) -> ClassNames:
    return ClassNames(request.param)


@pytest.fixture(scope="module")
def shown(
    nasty: Path,
    shared_site: VideoSite,
    frontend: tuple[str, ...],
    style: ClassNames,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    with Shown(
        folder / "mount",
        *frontend,
        *("--annotations", nasty, "--class-names", style.value, "--video-url", shared_site.url_template),
        *("--cache-dir", folder / "cache", "--min-free", "0"),
    ) as mounted:
        yield mounted


# Names ------------------------------------------------------------------------------------------------------------


def test_every_name_is_listed_and_found(shown: Shown, style: ClassNames) -> None:
    expected = {relative(row, style) for row in ROWS}
    walked = {
        f"{folder.removeprefix(f'{shown.root}/')}/{name}"
        for folder, _, names in os.walk(shown.root)
        for name in names
        if name.endswith(".mp4")
    }
    assert walked == expected
    assert all((shown.root / path).is_file() for path in expected)
    assert sorted(path.name for path in shown.root.iterdir()) == [".kinetics", "test", "train", "val", "validation"]


def test_folders_are_in_the_order_of_labels_and_clips_in_that_of_names(shown: Shown, style: ClassNames) -> None:
    labels = sorted({row.label for row in ROWS if row.split == "train"})
    assert [entry.name for entry in os.scandir(shown.root / "train")] == [class_name(label, style) for label in labels]
    for label in labels:
        names = [entry.name for entry in os.scandir(shown.root / "train" / class_name(label, style))]
        assert names == sorted(row.clip.name for row in ROWS if (row.label, row.split) == (label, "train"))


def test_tools_accept_all_names(shown: Shown, style: ClassNames) -> None:
    found = subprocess.run(
        ["find", shown.root, "-name", "*.mp4", "-print0"], capture_output=True, check=True
    ).stdout.split(b"\0")
    assert {os.fsdecode(path) for path in found if path} == {str(shown.path(row, style)) for row in ROWS}
    listed = subprocess.run(["ls", "-lRU", shown.root], capture_output=True, check=True)
    assert listed.stderr == b""


def test_val_is_validation(shown: Shown, style: ClassNames) -> None:
    val = shown.root / "val"
    assert val.is_symlink()
    assert os.readlink(val) == "validation"  # noqa: PTH115
    assert val.lstat().st_size == len("validation")
    assert val.resolve() == shown.root / "validation"
    assert val.stat().st_ino == (shown.root / "validation").stat().st_ino
    assert sorted(os.listdir(val)) == sorted(os.listdir(shown.root / "validation"))  # noqa: PTH208
    row = next(row for row in ROWS if row.split == "validate")
    inside = val / class_name(row.label, style) / row.clip.name
    assert inside.stat().st_ino == shown.path(row, style).stat().st_ino


def test_attributes_of_directories(shown: Shown) -> None:
    for folder in (".", ".kinetics", "validation"):
        status = (shown.root / folder).stat()
        subfolders = [entry for entry in os.scandir(shown.root / folder) if entry.is_dir(follow_symlinks=False)]
        assert status.st_nlink == 2 + len(subfolders)
        assert status.st_mode & 0o777 == 0o555
        assert (shown.root / folder / "..").stat().st_ino == (shown.root / folder).resolve().parent.stat().st_ino
    names = subprocess.run(["ls", "-aiU", shown.root / "validation"], capture_output=True, check=True, text=True).stdout
    numbers = {line.split()[1]: int(line.split()[0]) for line in names.splitlines()[:2]}
    assert numbers["."] == (shown.root / "validation").stat().st_ino
    assert numbers[".."] == shown.root.stat().st_ino


def test_listing_agrees_with_stat(shown: Shown) -> None:
    for folder, _, _ in os.walk(shown.root):
        for entry in os.scandir(folder):
            status = Path(entry.path).lstat()
            assert entry.inode() == status.st_ino
            assert entry.is_dir(follow_symlinks=False) == (status.st_nlink > 1)
            assert entry.is_symlink() == Path(entry.path).is_symlink()


def test_listing_can_be_read_twice_and_from_the_middle(shown: Shown) -> None:
    fd = os.open(shown.root / "train", os.O_RDONLY)
    try:
        first, again = (os.listdir(fd) for _ in range(2))  # noqa: PTH208
    finally:
        os.close(fd)
    assert first == again
    assert len(first) == len(set(first))


def test_root_of_a_large_class(frontend: tuple[str, ...], tmp_path: Path, shared_site: VideoSite) -> None:
    """More entries than one answer to the kernel holds, while they are listed by several at once."""
    clips = [Clip(f"{number:011d}", 0, 10) for number in range(5000)]
    many = write_annotations(tmp_path / "many.csv", [Labelled("many", clip, "train") for clip in clips])
    with Mounted(
        tmp_path / "mount",
        *frontend,
        *("--annotations", many, "--cache-dir", tmp_path / "cache", "--video-url", shared_site.url_template),
    ) as mounted:
        folder = mounted.root / "train/many"
        iterators = [os.scandir(folder) for _ in range(3)]
        names: list[list[str]] = [[], [], []]
        for entries in zip(*iterators, strict=True):
            for position, entry in enumerate(entries):
                names[position].append(entry.name)
        assert names == [[clip.name for clip in clips]] * 3
        assert len({entry.stat().st_ino for entry in os.scandir(folder)}) == 5000


@pytest.mark.parametrize("word", ["underscore", "torchvision"])
def test_two_classes_of_one_name_are_refused(
    frontend: tuple[str, ...], tmp_path: Path, mountpoint: Path, word: str
) -> None:
    clashing = [Labelled(label, FETCHED, "train") for label in ("surfing water", "surfing_water")]
    annotations = write_annotations(tmp_path / "clash.csv", clashing)
    arguments = [*frontend, "--annotations", str(annotations), "--cache-dir", str(tmp_path / "cache")]
    done = kinetics_fs("mount", *arguments, "--class-names", word, mountpoint)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'classes "surfing water" and "surfing_water" in the' in done.stderr


# .kinetics --------------------------------------------------------------------------------------------------------


def expected_list(split: str, style: ClassNames) -> bytes:
    indexes = {label: index for index, label in enumerate(sorted({row.label for row in ROWS} - {""}))}
    chosen = sorted((row.label or "_unlabeled", row.clip.name, row) for row in ROWS if SPLITS[row.split] == split)
    return "".join(f"{relative(row, style)} {indexes.get(row.label, -1)}\n" for _, _, row in chosen).encode()


def test_control_folder_has_its_files(shown: Shown) -> None:
    names = {path.name for path in (shown.root / ".kinetics").iterdir()}
    assert names == {
        *("classes.txt", "status.json", "failures.csv", "refused.csv", "metrics", "catalog.json"),
        *("train.csv", "validation.csv", "val.csv", "test.csv"),
    }
    lists = shown.root / ".kinetics"
    catalog = json.loads((lists / "catalog.json").read_text())
    assert catalog["digest"] == catalog["annotations_digest"]
    [origin] = catalog["origins"]
    assert origin["kind"] == "list" and sum(origin["clips"].values()) == catalog["clips"] == len(ROWS)
    assert (lists / "val.csv").read_bytes() == (lists / "validation.csv").read_bytes()


def test_classes(shown: Shown, style: ClassNames) -> None:
    labels = sorted({row.label for row in ROWS} - {""})
    lines = (shown.root / ".kinetics/classes.txt").read_text().splitlines()
    assert lines == [class_name(label, style) for label in labels]
    said = run_command("status", shown.root, "--json").stdout
    assert json.loads(said)["mounts"][0]["clips"] == len(ROWS)


@pytest.mark.parametrize("split", SPLITS.values())
def test_list_of_a_split_is_complete(shown: Shown, style: ClassNames, split: str) -> None:
    path = shown.root / ".kinetics" / f"{split}.csv"
    expected = expected_list(split, style)
    assert path.read_bytes() == expected
    assert path.stat().st_size == len(expected)
    for line in expected.decode().splitlines():
        assert (shown.root / line.rpartition(" ")[0]).is_file()


@pytest.mark.parametrize("split", SPLITS.values())
def test_list_of_a_split_is_the_same_at_any_place(shown: Shown, style: ClassNames, split: str) -> None:
    expected = expected_list(split, style)
    generator = random.Random(split)
    fd = os.open(shown.root / ".kinetics" / f"{split}.csv", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(300):
            offset, size = generator.randrange(len(expected) + 100), generator.randrange(1, 9000)
            assert os.pread(fd, size, offset) == expected[offset : offset + size]
        assert os.pread(fd, 1, 2**62) == b""
    finally:
        os.close(fd)


def test_status(shown: Shown) -> None:
    status = shown.status()
    assert status["clips"] == len(ROWS)
    assert status["mountpoint"] == str(shown.root)
    assert status["release"] == "600"
    assert status["refused_rows"]["label has a slash"] == 1
    assert set(status["splits"]) == set(SPLITS.values())
    assert sum(split["clips"] for split in status["splits"].values()) == len(ROWS)
    assert Path(f"/proc/{status['pid']}").exists()


def test_live_files_are_whole_by_any_reader(shown: Shown) -> None:
    path = shown.root / ".kinetics/status.json"
    assert path.stat().st_size > 0
    for command in (["cat"], ["head", "-c", "1000000"], ["tail", "-c", "1000000"], ["dd", "bs=7", "status=none"]):
        with path.open("rb") as file:
            said = subprocess.run(command, stdin=file, capture_output=True, check=True).stdout
        assert json.loads(said)["pid"] == shown.pid
    copied = subprocess.run(["cp", path, "/dev/stdout"], capture_output=True, check=True).stdout
    assert json.loads(copied)["pid"] == shown.pid


def test_refused_rows(shown: Shown) -> None:
    with (shown.root / ".kinetics/refused.csv").open(newline="") as file:
        refused = list(csv.DictReader(file))
    assert set(refused[0]) == {"file", "line", "reason", "row"}
    assert {row["file"] for row in refused} == {"nasty.csv"}
    assert [row["reason"] for row in refused] == list(BAD_ROWS.values())
    assert [int(row["line"]) for row in refused] == list(range(len(ROWS) + 2, len(ROWS) + 2 + len(BAD_ROWS)))


def test_failures_of_odd_names(shown: Shown, style: ClassNames) -> None:
    chosen = [row for row in ROWS if row.clip.youtube_id == "--dashed-id"][:2]
    chosen += [row for row in ROWS if row.clip.youtube_id == "_underscore" and "," in row.label][:1]
    for row in chosen:
        with pytest.raises(OSError):
            shown.path(row, style).open("rb")
    with (shown.root / ".kinetics/failures.csv").open(newline="") as file:
        failures = {row["path"]: row["kind"] for row in csv.DictReader(file)}
    assert {relative(row, style) for row in chosen} <= set(failures)
    assert set(failures.values()) == {"gone"}


def test_label_with_a_line_break_makes_no_class(mount: MountFactory, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "break.csv", [Labelled("line\nbreak", FETCHED, "train")])
    with annotations.open("a") as file:
        file.write("good,-demo_video,1,2,train\n")
    mounted = mount("--annotations", annotations)
    assert sorted(path.name for path in (mounted.root / "train").iterdir()) == ["good", "surfing water"]


# Inode numbers ----------------------------------------------------------------------------------------------------


def numbers(root: Path, *, control: bool) -> dict[str, int]:
    found = {".": root.stat().st_ino}
    for folder, folders, names in os.walk(root):
        found |= {
            os.path.relpath(f"{folder}/{name}", root): os.lstat(f"{folder}/{name}").st_ino
            for name in [*folders, *names]
            if (".kinetics" in folder) == control
        }
    return found


@pytest.mark.parametrize("control", [False, True], ids=["clips", "control files"])
def test_inode_numbers_are_the_same_in_every_mount(mount: MountFactory, tmp_path: Path, control: bool) -> None:
    first = mount()
    whole = numbers(first.root, control=control)
    assert len(set(whole.values())) == len(whole)
    first.end()
    assert numbers(mount().root, control=control) == whole
    for selection in (
        ["--split", "validation"],
        ["--class", "surfing water"],
        ["--max-samples", "1"],
        ["--cache-dir", tmp_path / "another cache"],
    ):
        part = numbers(mount(*selection).root, control=control)
        assert part.items() <= whole.items(), selection
    styled = numbers(mount("--class-names", "torchvision").root, control=control)
    assert set(styled.values()) == set(whole.values())


# Extended attributes ----------------------------------------------------------------------------------------------


def attributes(path: Path) -> dict[str, str]:
    names = os.listxattr(path)
    assert all(name.startswith("user.kinetics.") for name in names)
    return {name.removeprefix("user.kinetics."): os.getxattr(path, name).decode() for name in names}


def test_attributes_of_a_clip_in_each_state(mount: MountFactory, site: VideoSite, cache: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "clip.csv", [Labelled("日本の踊り, $x", FETCHED, "train")])
    mounted = mount("--annotations", annotations)
    path = mounted.root / "train/日本の踊り, $x" / FETCHED.name
    always = {"id": "demo-video2", "start": "4", "end": "5", "label": "日本の踊り, $x"}
    assert attributes(path) == {**always, "state": "absent"}

    site.delay["demo-video2"] = 3
    with reading([path]) as [reader]:
        wait_until(lambda: state(path) == "fetching")
        assert attributes(path) == {**always, "state": "fetching"}
        assert reader.communicate(timeout=60)[1] == b""
    cached = attributes(path)
    assert {name: cached[name] for name in [*always, "state"]} == {**always, "state": "cached"}
    said = subprocess.run(["sha256sum", cached_file(cache, FETCHED)], capture_output=True, text=True, check=True)
    assert cached["sha256"] == said.stdout.split()[0]
    assert cached["source"] == "youtube"
    assert set(cached) == {*always, "state", "source", "profile", "profile.settings", "sha256", "duration"}
    assert cached["duration"] == "1.000"

    size = path.stat().st_size
    with Store(cache) as store:
        store.remove(FETCHED)
    assert attributes(path) == {**always, "state": "absent"}
    assert path.stat().st_size == size

    site.delay.clear()
    site.fail["demo-video2"] = 404
    with pytest.raises(OSError):
        path.open("rb")
    failed = attributes(path)
    assert failed.pop("error").startswith("gone: ")
    assert failed == {**always, "state": "failed"}
    dumped = subprocess.run(["getfattr", "-d", path], capture_output=True, text=True, check=True).stdout
    assert 'user.kinetics.state="failed"' in dumped


def test_files_other_than_clips_have_no_xattrs(shown: Shown) -> None:
    for path in (".", ".kinetics", "train", "train/-rf", ".kinetics/status.json", ".kinetics/train.csv"):
        assert os.listxattr(shown.root / path) == []
    assert os.listxattr(shown.root / "val", follow_symlinks=False) == []


def test_attributes_of_a_clip_without_a_label(shown: Shown, style: ClassNames) -> None:
    row = next(row for row in ROWS if not row.label)
    assert "label" not in attributes(shown.path(row, style))


def test_getxattr_returns_erange_for_a_short_buffer(shown: Shown, style: ClassNames) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(shown.path(ROWS[0], style))
    buffer = ctypes.create_string_buffer(2)
    assert libc.getxattr(path, b"user.kinetics.id", buffer, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(path, buffer, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(path, b"user.kinetics.id", None, 0) == 11


# statfs -----------------------------------------------------------------------------------------------------------


def test_statfs(mount: MountFactory, cache: Path) -> None:
    mounted = mount()
    clip = mounted.root / "validation/surfing water/-demo_video_000010_000020.mp4"
    before = os.statvfs(mounted.root)
    assert before.f_namemax == 255
    assert before.f_files - before.f_ffree == 8
    assert before.f_flag & os.ST_RDONLY
    assert before.f_bavail == before.f_bfree == before.f_blocks > 0
    size = len(clip.read_bytes())
    after = os.statvfs(clip)
    assert size <= (after.f_blocks - after.f_bfree) * after.f_frsize < size + after.f_frsize
    assert after.f_bavail > 0
    kind, clips, percent = df(mounted.root, "fstype", "iused", "ipcent")
    assert (kind, clips, percent) == ("fuse.kinetics-fs", "8", "1%")


def test_tools_that_look_at_filesystems(mount: MountFactory) -> None:
    mounted = mount()
    for command in ("stat -f", "df -i", "df -hT", "findmnt -D"):
        done = subprocess.run([*command.split(), mounted.root], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def df(path: Path, *fields: str) -> list[str]:
    done = subprocess.run(
        ["df", "--block-size=1", f"--output={','.join(fields)}", path], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[1].split()


def test_statfs_with_a_limit(mount: MountFactory, cache: Path) -> None:
    """A cache that is full evicts clips, so it is not full for the programs that look."""
    mounted = mount("--cache-size", "1MB")
    size, used, available = map(int, df(mounted.root, "size", "used", "avail"))
    assert (size, used, available) == (1_000_000 // 4096 * 4096, 0, size)
    with Store(cache) as store:
        add_clips(store, bytes_in_all=990_000)
    size, used, available = map(int, df(mounted.root, "size", "used", "avail"))
    assert (size, available) == (1_000_000 // 4096 * 4096, size)
    assert 990_000 <= used < 1_000_000
    with Store(cache) as store:
        store.pins.add(clip for clip, _ in store.cached_clips())
    size, used, available = map(int, df(mounted.root, "size", "used", "avail"))
    assert 0 < available <= size - used + 4096  # what pinned clips leave

    with Store(cache) as store:
        pinned = store.pins.totals().bytes
    Store(cache, limit=pinned).close()
    size, used, available = map(int, df(mounted.root, "size", "used", "avail"))
    assert (size, available) == (used, 0)


@pytest.mark.parametrize("free", [8_000_000, 0])
def test_statfs_on_a_disk_that_fills_up(mount: MountFactory, tmp_path: Path, free: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", disk], check=True)
    try:
        mounted = mount(cache=disk / "cache")
        with Store(disk / "cache") as store:
            add_clips(store, bytes_in_all=4_000_000)
        room = os.statvfs(disk)
        with (disk / "other").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - free))
        size, used, available = map(int, df(mounted.root, "size", "used", "avail"))
        assert 4_000_000 <= used < 4_100_000
        assert used <= size <= used + free
        assert used - 4096 <= available <= size  # clips that would be evicted
        mounted.end()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def add_clips(store: Store, *, bytes_in_all: int) -> None:
    """Put ten clips into a store."""
    for number in range(10):
        claim = store.claim(Clip(f"statfs-{number:04}", 0, 10), size=bytes_in_all // 10)
        assert claim is not None
        with claim:
            path = claim.folder / "clip.mp4"
            path.write_bytes(bytes([number]) * (bytes_in_all // 10))
            claim.publish(path, "test")
