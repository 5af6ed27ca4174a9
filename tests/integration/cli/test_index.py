"""`kinetics-fs index`: building, listing, verifying, sharing and using indexes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex, Record, pack_window, read_indexes, write_index
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.libz import WINDOW
from kinetics_fs.store import Store
from tests.conftest import Dataset, MountFactory
from tests.support.annotated_archives import HEADS, SURFING, TRAIN, AnnotatedArchives, damage
from tests.support.command_line import ENVIRONMENT, run_command
from tests.support.mounts import wait_until
from tests.support.store import SmallDisk
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.tarballs import by_zlib, make_tar


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


def index(
    annotated: AnnotatedArchives, name: str, *arguments: str | Path, cache: Path | None = None
) -> CompletedProcess[str]:
    """Run `kinetics-fs index …`."""
    options: list[str | Path] = ["--cache-dir", cache or annotated.cache]
    if name in ("build", "verify"):
        options += ["--archive-url", annotated.folder]
    if name == "build":
        options += ["--annotations", annotated.annotations]
    return run_command("index", name, *options, *arguments)


def listed(annotated: AnnotatedArchives, cache: Path | None = None) -> list[dict[str, Any]]:
    rows = json.loads(index(annotated, "list", "--json", cache=cache).stdout)
    assert isinstance(rows, list)
    return rows


@pytest.fixture
def built(annotated: AnnotatedArchives) -> AnnotatedArchives:
    done = index(annotated, "build")
    assert (done.returncode, done.stderr) == (0, "")
    return annotated


def test_build_indexes_each_version_of_an_archive_once(annotated: AnnotatedArchives) -> None:
    assert index(annotated, "list").stdout == "No archive is indexed.\n"
    assert listed(annotated) == []

    done = index(annotated, "build", "--split", "validation", "--json")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "indexed": 7,
        "not_clips": json.loads(done.stdout)["not_clips"],
        "archives": {"read": [HEADS, SURFING], "read_before": [], "failed": {}},
        "interrupted": False,
    }
    assert annotated.cached() == {}, "no clip is kept"
    size = (annotated.folder / HEADS).stat().st_size
    assert listed(annotated)[0] == {"archive": HEADS, "clips": 3, "size": size, "etag": None, "confirmed": True}
    lines = [line.split() for line in index(annotated, "list").stdout.splitlines()]
    assert lines[0] == ["archive", "clips", "size"]
    assert lines[-1][:3] == ["2", "archives", "7"]

    again = json.loads(index(annotated, "build", "--json").stdout)["archives"]
    assert (again["read"], again["read_before"]) == ([TRAIN], [HEADS, SURFING])
    annotated.write(HEADS, by_zlib(make_tar(annotated.clips[HEADS]), 1))
    assert json.loads(index(annotated, "build", "--json").stdout)["archives"]["read"] == [HEADS]

    # An index is not the clips.
    assert annotated.fill().returncode == 0
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)


def test_build_exits_with_3_if_some_archives_fail(annotated: AnnotatedArchives) -> None:
    damage(annotated.folder / SURFING)
    part = index(annotated, "build", "--archive", SURFING, "--archive", HEADS)

    assert part.returncode == 3
    assert f"failed: {SURFING}: " in part.stdout
    assert [row["archive"] for row in listed(annotated)] == [HEADS]


def test_a_mount_opens_clips_of_indexed_archives(
    annotated: AnnotatedArchives, dataset: Dataset, mount: MountFactory, site: VideoSite
) -> None:
    """Straight out of a tarball, byte for byte, and nobody else is asked."""
    videos = dataset.clips
    clips = {Clip("-demo_video", 10, 20): videos[3], Clip("_demo_vid3_", 3, 13): videos[1]}
    annotated.write(SURFING, by_zlib(make_tar(clips)))
    assert index(annotated, "build", "--archive", SURFING).returncode == 0

    shown = mount("--source", "archive", "--archive-url", os.path.relpath(annotated.folder), cache=annotated.cache)

    folder = shown.root / "validation" / "surfing water"
    for clip, content in clips.items():
        assert (folder / clip.name).read_bytes() == content
    with pytest.raises(OSError):
        (folder / Clip("DEMOvideo-5", 8, 18).name).read_bytes()
    assert site.requests == []


@pytest.mark.parametrize("given", ["600/val", "..", "flat", SURFING])
def test_a_mount_finds_archives_at_another_level(
    annotated: AnnotatedArchives, mount: MountFactory, tmp_path: Path, given: str
) -> None:
    base = annotated.folder / given
    if given == "flat":
        base.mkdir()
        for name in (SURFING, HEADS):
            (annotated.folder / name).rename(base / Path(name).name)

    shown = mount("--source", "archive", "--annotations", annotated.annotations, "--archive-url", base)

    clip, content = next(iter(annotated.clips[SURFING].items()))
    assert (shown.root / "validation" / "surfing water" / clip.name).read_bytes() == content

    done = run_command(
        *("index", "build", "--split", "validation", "--annotations", annotated.annotations),
        *("--cache-dir", tmp_path / "other", "--archive-url", base),
    )
    assert done.returncode == 0, done.stderr
    clips = 4 if given == SURFING else 7
    assert done.stdout.startswith(f"{clips} clips in ")
    verified = run_command("index", "verify", "--cache-dir", tmp_path / "other", "--archive-url", base)
    assert f"{clips} clips read, 0 wrong" in verified.stdout


def test_a_mount_says_what_a_folder_without_archives_lacks(
    annotated: AnnotatedArchives, mount: MountFactory, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    where = "--annotations", annotated.annotations, "--archive-url", tmp_path / "elsewhere"
    shown = mount("--source", "archive", *where)

    clip = next(iter(annotated.clips[SURFING]))
    with pytest.raises(OSError):
        (shown.root / "validation" / "surfing water" / clip.name).read_bytes()
    listed = run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout
    assert f"{tmp_path / 'elsewhere'} has no archives: expected 600/val/*.tar.gz, " in json.loads(listed)[0]["reason"]


def test_verify_finds_wrong_clips_and_archives(built: AnnotatedArchives) -> None:
    every = index(built, "verify", "--all", "--json")
    assert every.returncode == 0
    result = json.loads(every.stdout)
    assert result.pop("bytes") > 0
    assert result == {"archives": 3, "wrong_archives": {}, "clips_read": 8, "wrong_clips": {}}
    some = index(built, "verify", "--sample", "5")
    assert some.stdout == "3 archives checked, 0 wrong; 5 clips read, 0 wrong\n"
    one = index(built, "verify", "--archive", HEADS)
    assert one.stdout == "1 archive checked, 0 wrong; 3 clips read, 0 wrong\n"

    damage(built.folder / HEADS)  # its length stays
    built.write(TRAIN, b"something else")
    wrong = index(built, "verify", "--all", "--json")
    assert wrong.returncode == 3
    told = json.loads(wrong.stdout)
    assert list(told["wrong_archives"]) == [TRAIN]
    last = max(built.clips[HEADS])
    assert f"{HEADS}: {last.key}" in told["wrong_clips"]
    assert all(name.startswith(HEADS) for name in told["wrong_clips"])
    assert told["clips_read"] == 7
    assert index(built, "verify").returncode == 3

    unknown = index(built, "verify", "--archive", "600/val/nothing.tar.gz")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert len(unknown.stderr.splitlines()) == 1


def test_an_export_can_be_imported(built: AnnotatedArchives, tmp_path: Path) -> None:
    file, other = tmp_path / "kinetics.index", tmp_path / "other"
    assert index(built, "export", file).stderr == "3 indexes written\n"
    taken = index(built, "import", file, cache=other)
    assert (taken.returncode, taken.stdout) == (
        0,
        "3 indexes of 8 clips imported, 0 of them in place of earlier ones\n",
    )
    assert [row | {"confirmed": True} for row in listed(built, other)] == listed(built)
    again = json.loads(index(built, "import", "--json", file, cache=other).stdout)
    assert again == {"imported": 3, "replaced": 3, "clips": 8, "refused": None}
    assert not any(row["confirmed"] for row in listed(built, other))
    assert index(built, "verify", "--sample", "7", cache=other).returncode == 0
    assert not all(row["confirmed"] for row in listed(built, other)), "one clip was not read"
    assert index(built, "verify", "--all", cache=other).returncode == 0
    assert listed(built, other) == listed(built)

    # Through pipes, one of them alone.
    command = '"$0" -m kinetics_fs --config /dev/null index export --archive "$1" --cache-dir "$2" - | '
    command += '"$0" -m kinetics_fs --config /dev/null index import --cache-dir "$3" -'
    piped = subprocess.run(
        ["bash", "-c", command, sys.executable, HEADS, built.cache, tmp_path / "third"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert piped.returncode == 0, piped.stderr
    assert [row["archive"] for row in listed(built, tmp_path / "third")] == [HEADS]


def test_a_clip_that_was_in_no_archive_is_tried_again_if_an_index_has_it(
    built: AnnotatedArchives, tmp_path: Path
) -> None:
    exported, other = tmp_path / "all.index", tmp_path / "other cache"
    assert index(built, "export", exported).returncode == 0
    clips = [*built.clips[SURFING], Clip("absent_____", 0, 10)]
    for cache, name, arguments in ((other, "import", [exported]), (built.cache, "build", [])):
        with Store(cache) as store:
            store.failures.remember_all(clips, FetchError(FailureKind.GONE, "not in archives", source="archive"))
            assert index(built, name, *arguments, cache=cache).returncode == 0
            assert list(store.failures.unavailable()) == [clips[-1].key]


def test_a_damaged_index_is_refused_with_all_that_follows(built: AnnotatedArchives, tmp_path: Path) -> None:
    file, other = tmp_path / "kinetics.index", tmp_path / "other"
    index(built, "export", file)
    content = bytearray(file.read_bytes())
    with file.open("rb") as stream:
        indexes = read_indexes(stream)
        first = next(indexes).archive
        second = stream.tell()
    line_end = content.index(b"\n", second)
    content[line_end + 20] ^= 0xFF
    file.write_bytes(content)

    part = index(built, "import", "--json", file, cache=other)

    assert part.returncode == 3
    assert len(part.stderr.splitlines()) == 1
    assert f"index 2 in {file}: " in part.stderr
    assert json.loads(part.stdout)["imported"] == 1
    assert [row["archive"] for row in listed(built, other)] == [first]


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 100_000,
        random.Random(1).randbytes(50_000),
        b'kinetics-fs archive index 1 {"archive": "../../etc/passwd", "size": 9, "etag": null, "gzipped": true,'
        b' "clips": 0, "bytes": 0}\n',
        b"kinetics-fs archive index 1 " + b"[" * 8000 + b"\n",
        b'kinetics-fs archive index 1 {"archive": "a.tar", "size": 9, "etag": null, "gzipped": true, "clips": 1,'
        b' "bytes": 999999999999}\n',
        b'kinetics-fs archive index 1 {"archive": "a.tar", "size": 9, "etag": null, "gzipped": true, "clips": 0,'
        b' "bytes": 8}\n' + zlib.compress(b""),
    ],
)
def test_a_file_without_indexes_is_refused(annotated: AnnotatedArchives, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "none"
    file.write_bytes(content)

    done = index(annotated, "import", file)

    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"index 1 in {file}: " in done.stderr
    assert listed(annotated) == []


def test_sizes_of_an_imported_index_are_not_shown(
    built: AnnotatedArchives, mount: MountFactory, tmp_path: Path
) -> None:
    """A false index cannot make a program read a part of a clip, or reserve far too much for it."""
    false, cache = tmp_path / "false.index", tmp_path / "other"
    with ArchiveIndexDB(built.cache / "archives.sqlite") as index_db, false.open("wb") as file:
        for one in index_db.indexes():
            records = {clip: record._replace(size=1) for clip, record in one.records.items()}
            write_index(dataclasses.replace(one, records=records), file)
    assert index(built, "import", false, cache=cache).returncode == 0

    where = "--annotations", built.annotations, "--archive-url", built.folder
    shown = mount("--source", "archive", *where, cache=cache)

    clip, content = next(iter(built.clips[SURFING].items()))
    path = shown.root / "validation" / "surfing water" / clip.name
    assert path.stat().st_size > len(content), "an estimate"
    assert path.read_bytes() == content, "the archive is read whole instead"
    assert path.stat().st_size == len(content)
    with ArchiveIndexDB(cache / "archives.sqlite") as index_db:
        wait_until(lambda: index_db.version(SURFING))  # its own index replaces the false one


def test_an_imported_index_does_not_prove_that_an_archive_lacks_a_clip(
    built: AnnotatedArchives, mount: MountFactory, tmp_path: Path
) -> None:
    part, cache = tmp_path / "part.index", tmp_path / "other"
    first, *others = built.of(SURFING)
    with ArchiveIndexDB(built.cache / "archives.sqlite") as index_db, part.open("wb") as file:
        [whole] = index_db.indexes([SURFING])
        write_index(dataclasses.replace(whole, records={first: whole.records[first]}), file)
    assert index(built, "import", part, cache=cache).returncode == 0

    where = "--annotations", built.annotations, "--archive-url", built.folder
    shown = mount("--source", "archive", *where, cache=cache)

    for clip in others:
        path = shown.root / "validation" / "surfing water" / clip.name
        assert path.read_bytes() == built.clips[SURFING][clip]


def test_an_index_that_does_not_fit_on_the_disk_is_refused(small_disk: SmallDisk, tmp_path: Path) -> None:
    """Its windows cannot be compressed, so the file has to be as large as the disk."""
    disk = small_disk(8_000_000)
    window = pack_window(random.Random(1).randbytes(WINDOW), [(0, WINDOW)])
    record = Record(bit=800, skip=10, size=1_000, end=1_200, crc=1, window=window)
    file = tmp_path / "large.index"
    with file.open("wb") as stream:
        for number, clips in enumerate((10, 200)):
            records = {Clip(f"{clip:011}", 0, 10): record for clip in range(clips)}
            write_index(ArchiveIndex(f"600/val/{number}.tar.gz", 10_000, None, True, records), stream)

    done = run_command("index", "import", "--cache-dir", disk / "cache", file)

    assert done.returncode == 3
    assert "cannot import index 2 in" in done.stderr
    assert "needs about 13.3 MB" in done.stderr
    assert f"the disk of {disk / 'cache'} has space for" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_remove_takes_named_archives_or_all(built: AnnotatedArchives) -> None:
    with ArchiveIndexDB(built.cache / "archives.sqlite") as index_db:
        assert index_db.archives()[0].version == Version((built.folder / TRAIN).stat().st_size)
    for misused in ((), ("--all", "--archive", HEADS)):
        assert index(built, "remove", *misused).returncode == 2
    assert index(built, "remove", "--archive", "600/val/nothing.tar.gz").returncode == 1
    assert len(listed(built)) == 3
    assert index(built, "remove", "--archive", HEADS).stdout == "1 removed\n"
    assert [row["archive"] for row in listed(built)] == [TRAIN, SURFING]
    assert index(built, "remove", "--all").stdout == "2 removed\n"
    assert listed(built) == []


@pytest.mark.parametrize("name", ["verify", "export", "remove"])
def test_commands_fail_without_an_index(annotated: AnnotatedArchives, tmp_path: Path, name: str) -> None:
    arguments: dict[str, list[str | Path]] = {"verify": [], "export": [tmp_path / "file"], "remove": ["--all"]}

    done = index(annotated, name, *arguments[name])

    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "file").exists()


def test_indexes_are_built_once_for_all_machines_of_a_shared_store(
    annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    store, other = tmp_path / "shared", tmp_path / "other"
    assert index(annotated, "build", "--archive", SURFING).returncode == 0  # before there was a store
    assert run_command("shared", "init", store).returncode == 0
    first = index(annotated, "build", "--shared", store, "--json")
    assert (first.returncode, first.stderr) == (0, "")
    assert json.loads(first.stdout)["archives"]["read_before"] == [SURFING]

    second = index(annotated, "build", "--shared", store, "--json", cache=other)
    assert (second.returncode, second.stderr) == (0, "")
    assert json.loads(second.stdout)["archives"] == {
        "read": [],
        "read_before": sorted([SURFING, HEADS, TRAIN]),
        "failed": {},
    }
    assert [row["clips"] for row in listed(annotated, other)] == [row["clips"] for row in listed(annotated)]

    missing = index(annotated, "build", "--shared", tmp_path / "none", cache=other)
    assert missing.returncode == 1
    assert "shared init" in missing.stderr
