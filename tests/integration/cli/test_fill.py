"""`kinetics-fs fill`: it stores the clips of a selection, despite kills, faults and damaged archives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import ENVIRONMENT, has_ended, run_command
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, in_class, make_tar

pytestmark = pytest.mark.server

SURFING = "600/val/surfing water.tar.gz"
HEADS = "600/val/massaging person's head.tar.gz"
TRAIN = "600/train/surfing water.tar.gz"
OTHER = "600/val/zumba.tar.gz"

Clips = dict[Clip, bytes]


class World:
    """Annotations, and the archives of their classes.

    Attributes:
        clips: the clips of each archive.
        arguments: arguments that make a command use the annotations.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        videos = [path.read_bytes() for path in sorted(dataset.videos.glob("*.mp4"))]
        self.folder = folder / "archives"
        self.cache = folder / "cache"
        self.annotations = folder / "annotations.csv"
        self.clips: dict[str, Clips] = {
            SURFING: {Clip(f"-surfing__{number}", 0, 10): videos[number] for number in range(4)},
            HEADS: {Clip(f"_heads____{number}", 5, 15): videos[number] for number in range(3)},
            TRAIN: {Clip("train_____0", 0, 10): videos[0]},
        }
        self.labels = {SURFING: "surfing water", HEADS: "massaging person's head", TRAIN: "surfing water"}
        self.annotate(clip for clips in self.clips.values() for clip in clips)
        for name, clips in self.clips.items():
            self.write(name, by_zlib(make_tar(clips, in_class)))
        self.write(OTHER, b"not wanted, and no archive")
        self.arguments = ("--annotations", self.annotations, "--cache-dir", self.cache, "--min-free", "0")

    def annotate(self, clips: Iterator[Clip] | list[Clip]) -> None:
        rows = ["label,youtube_id,time_start,time_end,split"]
        for clip in clips:
            name = next((name for name, known in self.clips.items() if clip in known), SURFING)
            split = "validate" if "/val/" in name else "train"
            rows.append(f"{self.labels[name]},{clip.youtube_id},{clip.start},{clip.end},{split}")
        self.annotations.write_text("\n".join(rows) + "\n")

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def fill(self, *arguments: str | Path, base: str | Path | None = None) -> CompletedProcess[str]:
        """Run `kinetics-fs fill` with the folder of archives, or with another base."""
        return run_command("fill", *self.arguments, "--archive-url", base or self.folder, *arguments)

    def cached(self) -> Clips:
        """Return the clips in the cache; check that no fetch has left anything."""
        found = cached_content(self.cache)
        assert not list(CacheLayout(self.cache).incoming.iterdir())
        return found

    def of(self, *names: str) -> Clips:
        return {clip: content for name in names for clip, content in self.clips[name].items()}

    def report(self) -> dict[str, Any]:
        report = json.loads(CacheLayout(self.cache).fill_report.read_text())
        assert isinstance(report, dict)
        return report

    @contextmanager
    def site(self) -> Iterator[ArchiveSite]:
        """Serve the archives over HTTP, with the lists of their names."""
        files = {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.glob("*/*/*")}
        for split in ("val", "train"):
            names = [name for name in files if f"/{split}/" in name]
            addresses = "\n".join(f"https://s3.amazonaws.com/kinetics/{name}" for name in names)
            files[f"600/{split}/k600_{split}_path.txt"] = addresses.encode()
        with ArchiveSite(files) as site:
            yield site


@pytest.fixture
def world(dataset: Dataset, tmp_path: Path) -> World:
    return World(dataset, tmp_path)


class HeldBack(bytes):
    """The content of a file, of which what is behind `HELD_FROM` comes only when `gate` opens."""

    gate: threading.Event

    def __getitem__(self, key: Any) -> Any:
        if key.start >= HELD_FROM:
            self.gate.wait(100)
        return super().__getitem__(key)


HELD_FROM = 8 * 1024 * 1024
"""One request of a reader of a whole archive."""


def held_back(content: bytes) -> HeldBack:
    content = HeldBack(content)
    content.gate = threading.Event()
    return content


@contextmanager
def large_archive(world: World, site: ArchiveSite) -> Iterator[HeldBack]:
    """Replace an archive by one whose rest is withheld after some clips."""
    chance = random.Random(1)
    clips = {Clip(f"large____{number:02}", 0, 10): chance.randbytes(400_000) for number in range(50)}
    world.clips[SURFING] = clips
    world.annotate([*clips, *world.clips[HEADS]])
    site.files[SURFING] = content = held_back(by_zlib(make_tar(clips), 1))
    try:
        yield content
    finally:
        content.gate.set()


@contextmanager
def begun(world: World, site: ArchiveSite, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a fill up to the moment when one archive is finished and another is in progress."""
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "fill", *map(str, world.arguments)]
    command += ["--archive-url", site.url, "--verify", "none", "--json", *arguments]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(list(world.cache.glob("clips/*/*.mp4"))) < 15 or not list(world.cache.glob("fills/*/*.done")):
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that do the jobs of a fill."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def result(done: CompletedProcess[str]) -> dict[str, Any]:
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("depth", ["none", "container", "decode"])
def test_fill_stores_all_clips_of_a_folder_of_archives(world: World, depth: str) -> None:
    first = world.fill("--verify", depth, "--json")

    assert (first.returncode, first.stderr) == (0, "")
    assert world.cached() == world.of(SURFING, HEADS, TRAIN)
    told = result(first)
    assert (told["stored"], told["already_cached"], told["indexed"]) == (8, 0, 8)
    assert told["archives"] == {"read": sorted(world.clips), "read_before": [], "failed": {}}
    assert world.report() == told | {"clips_not_stored": [], "clips_in_no_archive": []}

    again = world.fill("--json")
    assert again.returncode == 0
    assert (result(again)["bytes_read"], result(again)["stored"]) == (0, 0)
    assert sorted(result(again)["archives"]["read_before"]) == sorted(world.clips)
    with Store(world.cache) as store:
        history = store.history.samples()
    assert (history[-1].clips, sum(sample.fetched for sample in history)) == (8, 8)


def test_fill_reads_only_the_archives_of_the_selection(world: World) -> None:
    with world.site() as site:
        done = world.fill("--class", "massaging_persons_head", "--split", "validation", base=site.url)

        assert (done.returncode, done.stderr) == (0, "")
        assert {sent.name for sent in site.requests} == {HEADS, "600/val/k600_val_path.txt"}
        assert world.cached() == world.of(HEADS)
        assert done.stdout.splitlines() == [
            "3 clips stored, 0 already cached, 0 not in the annotations, 0 corrupt",
            "1 archives read, 0 read before, 0 failed",
            f"Report with the names of missing clips: {world.cache / 'fill-report.json'}",
        ]
        # Another selection needs the archive again, but no archive that it does not hold.
        site.requests.clear()
        assert world.fill("--split", "validation", base=site.url).returncode == 0
        assert world.cached() == world.of(HEADS, SURFING)
        assert sum(sent.bytes for sent in site.requests if sent.name == OTHER) == 0


def test_a_killed_fill_resumes(world: World) -> None:
    with world.site() as site, large_archive(world, site) as content:
        with begun(world, site) as process:
            left = workers(process)
            assert left
            process.kill()
        assert all(has_ended(pid, within=10) for pid in left), "they end with their parent"
        content.gate.set()

        done = world.fill("--verify", "none", "--json", base=site.url)

        assert done.returncode == 0, done
        assert world.cached() == world.of(SURFING, HEADS)
        told = result(done)
        # The numbers cover the whole archive. A clip stored just before the kill counts as already cached.
        assert told["stored"] + told["already_cached"] == len(world.of(SURFING))
        assert told["archives"]["failed"] == {}


def test_an_interrupted_fill_resumes(world: World) -> None:
    with world.site() as site, large_archive(world, site) as content:
        with begun(world, site) as process:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
            threading.Timer(1, content.gate.set).start()
            said, complaints = process.communicate(timeout=40)
        assert process.returncode == 130
        assert complaints == ""
        told = json.loads(said)
        assert told["interrupted"]
        # The small archive was finished, and is not read again.
        assert told["archives"]["read"] == [HEADS]
        assert SURFING not in told["archives"]["failed"]
        site.requests.clear()

        done = world.fill("--verify", "none", "--json", base=site.url)

        assert done.returncode == 0
        assert result(done)["archives"]["read_before"] == [HEADS]
        assert {sent.bytes for sent in site.requests if sent.name == HEADS} == {1}
        assert world.cached() == world.of(SURFING, HEADS)


def test_a_process_that_dies_fails_only_its_archive(world: World) -> None:
    with world.site() as site, large_archive(world, site) as content, begun(world, site) as process:
        [pid] = workers(process)
        os.kill(pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=40)
        content.gate.set()

        assert process.returncode == 3
        assert "ended early" in json.loads(said)["archives"]["failed"][SURFING]
        assert json.loads(said)["archives"]["read"] == [HEADS]
        assert world.fill("--verify", "none", base=site.url).returncode == 0
        assert world.cached() == world.of(SURFING, HEADS)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = random.Random(1).randbytes(len(content) - len(content) // 2)
    path.write_bytes(content)


def test_a_damaged_archive_does_not_stop_the_others(world: World) -> None:
    whole = (world.folder / SURFING).read_bytes()
    damaged(world.folder / SURFING)

    done = world.fill("--split", "validation", "--json", "--jobs", "1")

    assert done.returncode == 3
    told = result(done)
    assert list(told["archives"]["failed"]) == [SURFING]
    assert told["archives"]["read"] == [HEADS]
    cached = world.cached()
    assert cached.items() >= world.of(HEADS).items()
    assert cached.items() <= world.of(HEADS, SURFING).items()
    lacking = sorted(clip.key for clip in set(world.of(SURFING)) - set(cached))
    assert lacking
    assert world.report()["clips_in_no_archive"] == lacking
    assert told["in_no_archive"] == len(lacking)
    # A damaged archive says nothing about the clips themselves.
    assert run_command("failures", "list", "--json", "--cache-dir", world.cache).stdout.strip() == "[]"

    (world.folder / SURFING).write_bytes(whole)
    assert world.fill("--split", "validation").returncode == 0
    assert world.cached() == world.of(HEADS, SURFING)


def test_fill_exits_with_1_if_every_archive_fails(world: World) -> None:
    damaged(world.folder / TRAIN)
    done = world.fill("--split", "train")
    assert done.returncode == 1
    assert f"failed: {TRAIN}: " in done.stdout

    (world.folder / TRAIN).unlink()
    gone = world.fill("--split", "train")
    assert gone.returncode == 1
    assert "No such file" in gone.stdout

    none = world.fill("--split", "train", base=world.folder / "nowhere")
    assert none.returncode == 1
    assert len(none.stderr.splitlines()) == 1


@pytest.mark.parametrize("indexed", [False, True])
def test_a_fill_that_does_not_fit_is_refused(world: World, indexed: bool) -> None:
    if indexed:
        built = run_command("index", "build", *world.arguments, "--archive-url", world.folder)
        assert built.returncode == 0, built.stderr
    size = sum(map(len, world.of(SURFING, HEADS, TRAIN).values()))
    archives = sum((world.folder / name).stat().st_size for name in world.clips)
    known = size if indexed else min(archives, 8 * 2 * 1024 * 1024)  # clips of unknown size are taken to be no larger

    small = world.fill("--cache-size", f"{known - 1}")
    assert small.returncode == 1
    assert len(small.stderr.splitlines()) == 1
    assert "--cache-size" in small.stderr
    assert world.cached() == {}

    full = world.fill("--min-free", "1000TB")
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1
    assert "--cache-dir" in full.stderr
    assert world.cached() == {}

    size = max(size, known)
    assert world.fill("--cache-size", f"{size}").returncode == 0
    assert world.cached() == world.of(SURFING, HEADS, TRAIN)
    # All clips are cached: nothing more is needed, and nothing is refused.
    assert world.fill("--cache-size", f"{size}").returncode == 0


def test_pins_of_another_selection_leave_less_space(world: World) -> None:
    size = sum(map(len, world.of(TRAIN).values()))
    assert world.fill("--split", "train").returncode == 0
    pinned = run_command("pin", "add", *world.arguments, "--split", "train")
    assert pinned.returncode == 0, pinned.stderr
    more = min(sum((world.folder / name).stat().st_size for name in (SURFING, HEADS)), 7 * 2 * 1024 * 1024)

    small = world.fill("--split", "validation", "--cache-size", f"{size + more - 1}")
    assert small.returncode == 1
    assert "pin remove" in small.stderr
    assert world.cached() == world.of(TRAIN)
    more = max(more, sum(map(len, world.of(SURFING, HEADS).values())))
    assert world.fill("--split", "validation", "--cache-size", f"{size + more}").returncode == 0
    assert world.cached() == world.of(SURFING, HEADS, TRAIN)


def test_fill_counts_clips_that_are_corrupt_unknown_or_in_no_archive(world: World) -> None:
    more = dict(world.clips[SURFING])
    noise, unknown, absent = Clip("noise______", 0, 10), Clip("unknown____", 0, 10), Clip("absent_____", 0, 10)
    more[noise] = random.Random(1).randbytes(50_000)
    more[unknown] = more[next(iter(more))]
    world.write(SURFING, by_zlib(make_tar(more)))
    world.annotate([*world.clips[SURFING], noise, absent])

    done = world.fill("--json")

    assert done.returncode == 3
    told = result(done)
    assert (told["stored"], told["not_in_annotations"], sum(told["corrupt"].values())) == (4, 1, 1)
    assert world.report()["clips_not_stored"] == [noise.key]
    assert world.report()["clips_in_no_archive"] == [absent.key]
    assert world.cached() == world.of(SURFING)
    [gone] = json.loads(run_command("failures", "list", "--json", "--cache-dir", world.cache).stdout)
    assert (gone["key"], gone["kind"], gone["reason"]) == (absent.key, "gone", "not in archives")
    # The archive was read to its end all the same.
    again = world.fill("--json")
    assert again.returncode == 3
    assert result(again)["archives"]["read_before"] == [SURFING]


def test_an_archive_is_read_again_for_its_index_a_lost_clip_or_a_new_version(world: World, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    wanted = ("--split", "validation", "--report", report, "--json")

    def read(*arguments: str) -> list[str]:
        done = world.fill(*wanted, *arguments)
        assert done.returncode == 0, done
        assert json.loads(report.read_text())["archives"] == result(done)["archives"]
        names = result(done)["archives"]["read"]
        assert isinstance(names, list)
        return names

    assert read("--no-index") == [HEADS, SURFING]
    assert not CacheLayout(world.cache).archive_indexes.exists()
    assert not CacheLayout(world.cache).fill_report.exists()
    assert read("--no-index") == []
    assert read() == [HEADS, SURFING], "for their indexes"
    with ArchiveIndexDB(CacheLayout(world.cache).archive_indexes) as index_db:
        assert [one.archive for one in index_db.archives()] == [HEADS, SURFING]
    with Store(world.cache) as store:
        store.remove(next(iter(world.clips[SURFING])))
    assert read() == [SURFING], "a clip of it is no longer here"
    assert read() == []
    world.write(HEADS, by_zlib(make_tar(world.clips[HEADS]), 1))
    assert read() == [HEADS], "it is another version"
    assert world.cached() == world.of(SURFING, HEADS)


def test_fill_reads_the_named_archives_only(world: World) -> None:
    done = world.fill("--archive", HEADS, "--archive", "600/val/nothing.tar.gz", "--json")

    assert done.returncode == 3
    assert list(result(done)["archives"]["failed"]) == ["600/val/nothing.tar.gz"]
    assert (result(done)["in_no_archive"], result(done)["not_stored"]) == (0, 0)
    assert world.cached() == world.of(HEADS)


def test_replacements_are_read_first(world: World) -> None:
    """A replacement is stored before the broken clips, however long it takes."""
    clip = next(iter(world.clips[TRAIN]))
    right = world.clips[SURFING][Clip("-surfing__3", 0, 10)]
    replacement = "400/replacement_for_corrupted_k400.tgz"
    filler = {Clip(f"filler___{number:02}", 0, 10): random.Random(number).randbytes(300_000) for number in range(40)}
    world.write(replacement, by_zlib(make_tar({**filler, clip: right}), 1))
    world.write("400/train/part_0.tar.gz", by_zlib(make_tar(world.clips[TRAIN])))

    done = world.fill("--release", "400", "--split", "train", "--jobs", "4", "--json")

    assert done.returncode == 0
    assert result(done)["archives"]["read"] == [replacement, "400/train/part_0.tar.gz"]
    assert world.cached() == {clip: right}


def test_invalid_options_are_refused(world: World) -> None:
    for arguments in (("--verify", "much"), ("--jobs", "0"), ("--report",)):
        done = world.fill(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    refused = world.fill("--split", "train", "--report", world.folder / "no" / "such" / "folder.json")
    assert refused.returncode == 1
    assert "cannot write" in refused.stderr
