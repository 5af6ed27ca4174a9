"""`kinetics-fs fill`: it stores the clips of a selection, despite kills, faults and damaged archives."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset
from tests.support.annotated_archives import (
    HEADS,
    OTHER,
    SURFING,
    TRAIN,
    AnnotatedArchives,
    damage,
    large_archive,
)
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import ENVIRONMENT, has_ended, json_output, run_command
from tests.support.tarballs import by_zlib, make_tar

pytestmark = pytest.mark.server


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


def test_a_missing_archive_folder_is_named_with_its_option(annotated: AnnotatedArchives, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = run_command("fill", *annotated.arguments, "--archive-url", missing)
    assert done.returncode == 1
    assert f" in {missing}: expected " in done.stderr
    assert "found no folder (No such file or directory); check --archive-url" in done.stderr


@pytest.mark.parametrize("given", ["600", "600/val", "..", "flat", "one", "only validation"])
def test_archives_are_found_at_another_level(annotated: AnnotatedArchives, tmp_path: Path, given: str) -> None:
    clips = annotated.of(SURFING, HEADS, TRAIN)
    base = annotated.folder / given
    if given == "flat":
        base = tmp_path / "flat"
        base.mkdir()
        (annotated.folder / TRAIN).rename(base / "k600_train_mine.tar.gz")
        for name in (SURFING, HEADS):
            (annotated.folder / name).rename(base / Path(name).name)
    elif given == "one":
        base, clips = annotated.folder / HEADS, annotated.of(HEADS)
    elif given == "only validation":
        base, clips = annotated.folder, annotated.of(SURFING, HEADS)
        shutil.rmtree(annotated.folder / "600" / "train")

    done = annotated.fill("--json", base=base)

    assert annotated.cached() == clips, done.stderr
    assert done.returncode == (3 if given == "only validation" else 0), done.stderr
    assert ("cannot find archives of the split train" in done.stderr) == (given == "only validation")


def test_one_class_of_a_flat_folder_needs_one_archive(annotated: AnnotatedArchives) -> None:
    annotated.fill("--class", "massaging person's head", "--split", "validation", base=annotated.folder / "600/val")
    assert annotated.cached() == annotated.of(HEADS)


@pytest.mark.parametrize("given", ["600/val/", HEADS, "flat"])
def test_archives_are_found_at_another_level_of_a_server(annotated: AnnotatedArchives, given: str) -> None:
    validation = ["--split", "validation"]
    with annotated.site() as site:
        if given == "flat":  # the server has the folder of the split as its root
            site.files["600/val/k600_val_path.txt"] = f"{SURFING}\n{HEADS}\n".encode()
            for name in [name for name in site.files if name.startswith("600/val/")]:
                site.files[Path(name).name] = site.files.pop(name)
        done = annotated.fill(*validation, base=site.url if given == "flat" else f"{site.url}/{given}")
    assert done.returncode == 0, done.stderr
    assert annotated.cached() == (annotated.of(HEADS) if given == HEADS else annotated.of(SURFING, HEADS))


def test_an_address_without_archives_is_refused_with_the_one_that_is_expected(annotated: AnnotatedArchives) -> None:
    with annotated.site() as site:
        done = annotated.fill(base=f"{site.url}/elsewhere")
    assert done.returncode == 1
    assert "HTTP 404; --archive-url must be the location of 600/" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def begun(annotated: AnnotatedArchives, site: ArchiveSite, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a fill up to the moment when one archive is finished and another is in progress."""
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "fill", *map(str, annotated.arguments)]
    command += ["--archive-url", site.url, "--verify", "none", "--json", *arguments]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(list(annotated.cache.glob("clips/*/*.mp4"))) < 15 or not list(
                annotated.cache.glob("fills/*/*.done")
            ):
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
    return [pid for pid in children if "fill.job_process" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize("level", ["none", "container", "decode"])
def test_fill_stores_all_clips_of_a_folder_of_archives(annotated: AnnotatedArchives, level: str) -> None:
    first = annotated.fill("--verify", level, "--json")

    assert (first.returncode, first.stderr) == (0, "")
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)
    told = json_output(first)
    assert (told["stored"], told["already_cached"], told["indexed"]) == (8, 0, 8)
    assert told["archives"] == {"read": sorted(annotated.clips), "read_before": [], "failed": {}}
    assert annotated.report() == told | {"clips_not_stored": [], "clips_in_no_archive": []}

    again = annotated.fill("--json")
    assert again.returncode == 0
    assert (json_output(again)["bytes_read"], json_output(again)["stored"]) == (0, 0)
    assert sorted(json_output(again)["archives"]["read_before"]) == sorted(annotated.clips)
    with Store(annotated.cache) as store:
        history = store.history.samples()
    assert (history[-1].clips, sum(sample.fetched for sample in history)) == (8, 8)


def test_fill_reads_only_the_archives_of_the_selection(annotated: AnnotatedArchives) -> None:
    with annotated.site() as site:
        done = annotated.fill("--class", "massaging_persons_head", "--split", "validation", base=site.url)

        assert (done.returncode, done.stderr) == (0, "")
        assert {sent.name for sent in site.requests} == {HEADS, "600/val/k600_val_path.txt"}
        assert annotated.cached() == annotated.of(HEADS)
        assert done.stdout.splitlines() == [
            "3 clips stored, 0 already cached, 0 not in the annotations, 0 corrupt",
            "1 archive read, 0 read before, 0 failed",
            f"Report with the names of missing clips: {annotated.cache / 'fill-report.json'}",
        ]
        # Another selection needs the archive again, but no archive that it does not hold.
        site.requests.clear()
        assert annotated.fill("--split", "validation", base=site.url).returncode == 0
        assert annotated.cached() == annotated.of(HEADS, SURFING)
        assert sum(sent.bytes for sent in site.requests if sent.name == OTHER) == 0


def test_a_killed_fill_resumes(annotated: AnnotatedArchives) -> None:
    with annotated.site() as site, large_archive(annotated, site) as content:
        with begun(annotated, site) as process:
            left = workers(process)
            assert left
            process.kill()
        assert all(has_ended(pid, within=10) for pid in left), "they end with their parent"
        content.released.set()

        done = annotated.fill("--verify", "none", "--json", base=site.url)

        assert done.returncode == 0, done
        assert annotated.cached() == annotated.of(SURFING, HEADS)
        told = json_output(done)
        # The numbers cover the whole archive. A clip stored just before the kill counts as already cached.
        assert told["stored"] + told["already_cached"] == len(annotated.of(SURFING))
        assert told["archives"]["failed"] == {}


def test_an_interrupted_fill_resumes(annotated: AnnotatedArchives) -> None:
    with annotated.site() as site, large_archive(annotated, site) as content:
        with begun(annotated, site) as process:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
            threading.Timer(1, content.released.set).start()
            said, complaints = process.communicate(timeout=40)
        assert process.returncode == 130
        assert complaints == ""
        told = json.loads(said)
        assert told["interrupted"]
        # The small archive was finished, and is not read again.
        assert told["archives"]["read"] == [HEADS]
        assert SURFING not in told["archives"]["failed"]
        site.requests.clear()

        done = annotated.fill("--verify", "none", "--json", base=site.url)

        assert done.returncode == 0
        assert json_output(done)["archives"]["read_before"] == [HEADS]
        assert {sent.bytes for sent in site.requests if sent.name == HEADS} == {1}
        assert annotated.cached() == annotated.of(SURFING, HEADS)


def test_a_process_that_dies_fails_only_its_archive(annotated: AnnotatedArchives) -> None:
    with annotated.site() as site, large_archive(annotated, site) as content, begun(annotated, site) as process:
        [pid] = workers(process)
        os.kill(pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=40)
        content.released.set()

        assert process.returncode == 3
        assert "ended early" in json.loads(said)["archives"]["failed"][SURFING]
        assert json.loads(said)["archives"]["read"] == [HEADS]
        assert annotated.fill("--verify", "none", base=site.url).returncode == 0
        assert annotated.cached() == annotated.of(SURFING, HEADS)


def test_a_damaged_archive_does_not_stop_the_others(annotated: AnnotatedArchives) -> None:
    whole = (annotated.folder / SURFING).read_bytes()
    damage(annotated.folder / SURFING)

    done = annotated.fill("--split", "validation", "--json", "--jobs", "1")

    assert done.returncode == 3
    told = json_output(done)
    assert list(told["archives"]["failed"]) == [SURFING]
    assert told["archives"]["read"] == [HEADS]
    cached = annotated.cached()
    assert cached.items() >= annotated.of(HEADS).items()
    assert cached.items() <= annotated.of(HEADS, SURFING).items()
    lacking = sorted(clip.key for clip in set(annotated.of(SURFING)) - set(cached))
    assert lacking
    assert annotated.report()["clips_in_no_archive"] == lacking
    assert told["in_no_archive"] == len(lacking)
    # A damaged archive says nothing about the clips themselves.
    assert run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout.strip() == "[]"

    (annotated.folder / SURFING).write_bytes(whole)
    assert annotated.fill("--split", "validation").returncode == 0
    assert annotated.cached() == annotated.of(HEADS, SURFING)


def test_fill_exits_with_1_if_every_archive_fails(annotated: AnnotatedArchives) -> None:
    damage(annotated.folder / TRAIN)
    done = annotated.fill("--split", "train")
    assert done.returncode == 1
    assert f"failed: {TRAIN}: " in done.stdout

    (annotated.folder / TRAIN).rename(annotated.folder / "600/train/other class.tar.gz")
    gone = annotated.fill("--split", "train")
    assert gone.returncode == 1
    assert "No such file" in gone.stdout

    none = annotated.fill("--split", "train", base=annotated.folder / "nowhere")
    assert none.returncode == 1
    assert len(none.stderr.splitlines()) == 1


@pytest.mark.parametrize("indexed", [False, True])
def test_a_fill_that_does_not_fit_is_refused(annotated: AnnotatedArchives, indexed: bool) -> None:
    if indexed:
        built = run_command("index", "build", *annotated.arguments, "--archive-url", annotated.folder)
        assert built.returncode == 0, built.stderr
    size = sum(map(len, annotated.of(SURFING, HEADS, TRAIN).values()))
    archives = sum((annotated.folder / name).stat().st_size for name in annotated.clips)
    known = size if indexed else min(archives, 8 * 2 * 1024 * 1024)  # clips of unknown size are taken to be no larger

    small = annotated.fill("--cache-size", f"{known - 1}B")
    assert small.returncode == 1
    assert len(small.stderr.splitlines()) == 1
    assert "--cache-size" in small.stderr
    assert annotated.cached() == {}

    full = annotated.fill("--cache-size", "none", "--min-free", "1000TB")
    assert full.returncode == 1
    assert "was changed from " in full.stderr.splitlines()[0]
    assert "--cache-dir" in full.stderr
    assert annotated.cached() == {}

    size = max(size, known)
    assert annotated.fill("--cache-size", f"{size}B").returncode == 0
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)
    # All clips are cached: nothing more is needed, and nothing is refused.
    assert annotated.fill("--cache-size", f"{size}B").returncode == 0


def test_pins_of_another_selection_leave_less_space(annotated: AnnotatedArchives) -> None:
    size = sum(map(len, annotated.of(TRAIN).values()))
    assert annotated.fill("--split", "train").returncode == 0
    pinned = run_command("pin", "add", *annotated.arguments, "--split", "train")
    assert pinned.returncode == 0, pinned.stderr
    more = min(sum((annotated.folder / name).stat().st_size for name in (SURFING, HEADS)), 7 * 2 * 1024 * 1024)

    small = annotated.fill("--split", "validation", "--cache-size", f"{size + more - 1}B")
    assert small.returncode == 1
    assert "pin remove" in small.stderr
    assert annotated.cached() == annotated.of(TRAIN)
    more = max(more, sum(map(len, annotated.of(SURFING, HEADS).values())))
    assert annotated.fill("--split", "validation", "--cache-size", f"{size + more}B").returncode == 0
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)


def test_fill_counts_clips_that_are_corrupt_unknown_or_in_no_archive(annotated: AnnotatedArchives) -> None:
    more = dict(annotated.clips[SURFING])
    noise, unknown, absent = Clip("noise______", 0, 10), Clip("unknown____", 0, 10), Clip("absent_____", 0, 10)
    more[noise] = random.Random(1).randbytes(50_000)
    more[unknown] = more[next(iter(more))]
    annotated.write(SURFING, by_zlib(make_tar(more)))
    annotated.annotate([*annotated.clips[SURFING], noise, absent])

    done = annotated.fill("--json")

    assert done.returncode == 3
    told = json_output(done)
    assert (told["stored"], told["not_in_annotations"], sum(told["corrupt"].values())) == (4, 1, 1)
    assert annotated.report()["clips_not_stored"] == [noise.key]
    assert annotated.report()["clips_in_no_archive"] == [absent.key]
    assert annotated.cached() == annotated.of(SURFING)
    [gone] = json.loads(run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout)
    assert (gone["key"], gone["kind"], gone["reason"]) == (absent.key, "gone", "not in archives")
    # The archive was read to its end all the same.
    again = annotated.fill("--json")
    assert again.returncode == 3
    assert json_output(again)["archives"]["read_before"] == [SURFING]


@pytest.mark.parametrize("selection", [("--split", "validation"), ("--class", "surfing water")])
def test_a_fill_concludes_nothing_about_archives_of_other_splits_and_classes(
    annotated: AnnotatedArchives, selection: tuple[str, str]
) -> None:
    elsewhere = next(iter(annotated.clips[HEADS])) if selection[0] == "--class" else Clip("train_____0", 0, 10)
    absent = Clip("-absent____", 0, 10)
    rows = annotated.annotations.read_text()
    rows += "".join(
        f"surfing water,{clip.youtube_id},{clip.start},{clip.end},validate\n" for clip in (elsewhere, absent)
    )
    annotated.annotations.write_text(rows)
    assert annotated.fill(*selection).returncode == 3
    [gone] = json.loads(run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout)
    assert gone["key"] == absent.key
    annotated.fill()
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)


def test_an_archive_is_read_again_for_its_index_a_lost_clip_or_a_new_version(
    annotated: AnnotatedArchives, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    wanted = ("--split", "validation", "--report", report, "--json")

    def archives_read(*arguments: str) -> list[str]:
        done = annotated.fill(*wanted, *arguments)
        assert done.returncode == 0, done
        assert json.loads(report.read_text())["archives"] == json_output(done)["archives"]
        names = json_output(done)["archives"]["read"]
        assert isinstance(names, list)
        return names

    assert archives_read("--no-index") == [HEADS, SURFING]
    assert not CacheLayout(annotated.cache).archive_indexes.exists()
    assert not CacheLayout(annotated.cache).fill_report.exists()
    assert archives_read("--no-index") == []
    assert archives_read() == [HEADS, SURFING], "for their indexes"
    with ArchiveIndexDB(CacheLayout(annotated.cache).archive_indexes) as index_db:
        assert [one.archive for one in index_db.archives()] == [HEADS, SURFING]
    with Store(annotated.cache) as store:
        store.remove(next(iter(annotated.clips[SURFING])))
    assert archives_read() == [SURFING], "a clip of it is no longer here"
    assert archives_read() == []
    annotated.write(HEADS, by_zlib(make_tar(annotated.clips[HEADS]), 1))
    assert archives_read() == [HEADS], "it is another version"
    assert annotated.cached() == annotated.of(SURFING, HEADS)


def test_fill_reads_the_named_archives_only(annotated: AnnotatedArchives) -> None:
    done = annotated.fill("--archive", HEADS, "--archive", "600/val/nothing.tar.gz", "--json")

    assert done.returncode == 3
    assert list(json_output(done)["archives"]["failed"]) == ["600/val/nothing.tar.gz"]
    assert (json_output(done)["in_no_archive"], json_output(done)["not_stored"]) == (0, 0)
    assert annotated.cached() == annotated.of(HEADS)


def test_replacements_are_read_first(annotated: AnnotatedArchives) -> None:
    """A replacement is stored before the broken clips, however long it takes."""
    clip = next(iter(annotated.clips[TRAIN]))
    right = annotated.clips[SURFING][Clip("-surfing__3", 0, 10)]
    replacement = "400/replacement_for_corrupted_k400.tgz"
    filler = {Clip(f"filler___{number:02}", 0, 10): random.Random(number).randbytes(300_000) for number in range(40)}
    annotated.write(replacement, by_zlib(make_tar({**filler, clip: right}), 1))
    annotated.write("400/train/part_0.tar.gz", by_zlib(make_tar(annotated.clips[TRAIN])))

    done = annotated.fill("--release", "400", "--split", "train", "--jobs", "4", "--json")

    assert done.returncode == 0
    assert json_output(done)["archives"]["read"] == [replacement, "400/train/part_0.tar.gz"]
    assert annotated.cached() == {clip: right}


def test_invalid_options_are_refused(annotated: AnnotatedArchives) -> None:
    for arguments in (("--verify", "much"), ("--jobs", "0"), ("--report",)):
        done = annotated.fill(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    refused = annotated.fill("--split", "train", "--report", annotated.folder / "no" / "such" / "folder.json")
    assert refused.returncode == 1
    assert "cannot write" in refused.stderr
