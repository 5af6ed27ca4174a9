"""Clips that the annotations list in several classes or splits: entries count as often as they are, bytes once."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import CacheLayout
from tests.integration.cli.conftest import Prefetch
from tests.support.command_line import Mounted, run_command
from tests.support.demo_clips import as_csv
from tests.support.mounts import wait_until
from tests.support.store import query

Arguments = tuple[str | Path, ...]

SURF, DEAD = Clip("-demo_video", 10, 12), Clip(GONE, 5, 15)
ROWS = [
    ("surfing water", *SURF, "validate"),
    ("water sports", *SURF, "validate"),
    ("surfing water", *SURF, "train"),
    ("surfing water", *DEAD, "validate"),
    ("water sports", *DEAD, "train"),
    ("water sports", "demo-video2", 0, 2, "validate"),
]


@pytest.fixture(name="annotations")
def repeating_annotations(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.csv"
    path.write_text(as_csv(ROWS))
    return path


@pytest.fixture
def filled(prefetch: Prefetch, chosen: Arguments) -> Arguments:
    assert prefetch().returncode == 3
    return chosen


def run_json(*arguments: str | Path, code: int = 0) -> Any:
    done = run_command(*arguments, "--json")
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    return json.loads(done.stdout)


def bytes_of(cache: Path, clip: Clip) -> int:
    [(size,)] = query(CacheLayout(cache).state_database, f"SELECT size FROM clip WHERE key = '{clip.key}'")
    assert isinstance(size, int)
    return size


def test_prefetch_fetches_a_clip_once_and_counts_each_entry(prefetch: Prefetch, site: VideoSite) -> None:
    counts = json.loads(prefetch("--json").stdout)
    assert (counts["clips"], counts["fetched"], counts["already_cached"], counts["failed"]) == (6, 2, 2, 2)
    assert len([path for path, _ in site.requests if GONE in path]) == 1


def test_a_prefetch_of_a_list_counts_each_line(prefetch: Prefetch, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{SURF.key}\n" * 20)
    counts = json.loads(prefetch("--json", "--list", tmp_path / "list.txt").stdout)
    assert (counts["clips"], counts["fetched"], counts["already_cached"]) == (20, 1, 19)


def test_coverage_counts_entries(filled: Arguments) -> None:
    coverage = run_json("status", "--coverage", *filled)
    assert [coverage[name] for name in ("clips", "cached", "evicted", "untried", "unavailable")] == [6, 4, 0, 0, 2]
    assert [(one["split"], one["label"], one["cached"], one["unavailable"]) for one in coverage["classes"]] == [
        ("train", "surfing water", 1, 0),
        ("train", "water sports", 0, 1),
        ("validation", "surfing water", 1, 1),
        ("validation", "water sports", 2, 0),
    ]
    assert coverage["kinds"]["gone"]["clips"] == 2
    table = run_command("status", "--coverage", "--csv", *filled).stdout
    assert [row["path"].rpartition("/")[0] for row in csv.DictReader(io.StringIO(table))] == [
        "train/water sports",
        "validation/surfing water",
    ]


def test_bytes_count_once(filled: Arguments, cache: Path) -> None:
    both = bytes_of(cache, SURF) + bytes_of(cache, Clip("demo-video2", 0, 2))
    status = run_json("status", "--cache-dir", cache)
    assert (status["cache"]["clips"], status["cache"]["bytes"]) == (2, both)
    assert run_json("pin", "add", *filled, "--class", "surfing water") == {
        "clips": 2,
        "cached": 1,
        "bytes": bytes_of(cache, SURF),
        "new": 2,
        "total": {"clips": 2, "cached": 1, "bytes": bytes_of(cache, SURF)},
    }
    assert run_json("pin", "add", *filled, "--class", "water sports")["new"] == 1
    listed = run_json("pin", "list", *filled)
    assert listed["total"] == {"clips": 3, "cached": 2, "bytes": both}
    assert [(row["split"], row["label"], row["clips"], row["cached"]) for row in listed["classes"]] == [
        ("train", "surfing water", 1, 1),
        ("train", "water sports", 1, 0),
        ("validation", "surfing water", 2, 1),
        ("validation", "water sports", 2, 2),
    ]
    assert run_json("pin", "remove", *filled, "--split", "train")["clips"] == 2
    assert run_json("pin", "list", *filled)["total"]["clips"] == 1


def test_failures_are_of_clips(filled: Arguments) -> None:
    assert [one["key"] for one in run_json("failures", "list", *filled)] == [DEAD.key]
    assert run_json("failures", "list", "--summary", *filled)["clips"] == 1
    assert run_json("failures", "list", *filled, "--class", "water sports")[0]["key"] == DEAD.key
    assert run_json("failures", "retry", *filled, "--video-url", "http://127.0.0.1:1/{id}", code=3)["clips"] == 1


def test_export_writes_each_entry(filled: Arguments, cache: Path, tmp_path: Path) -> None:
    result = run_json("export", *filled, tmp_path / "out", code=3)
    assert (result["written"], result["missing"]) == (4, 2)
    files = sorted((tmp_path / "out").rglob(SURF.name))
    assert [str(file.relative_to(tmp_path / "out").parent) for file in files] == [
        "train/surfing water",
        "validation/surfing water",
        "validation/water sports",
    ]
    assert len({file.read_bytes() for file in files}) == 1


def test_import_takes_a_clip_once_from_several_classes(filled: Arguments, tmp_path: Path, annotations: Path) -> None:
    run_json("export", *filled, tmp_path / "out", code=3)
    other = "--annotations", annotations, "--cache-dir", tmp_path / "other"
    result = run_json("import", *other, tmp_path / "out")
    assert (result["imported"], result["already_cached"], result["not_in_annotations"]) == (2, 2, 0)
    assert run_json("status", "--coverage", *other)["cached"] == 4


def test_fill_stores_a_clip_once_from_the_archives_of_its_classes(
    filled: Arguments, annotations: Path, tmp_path: Path
) -> None:
    run_json("export", *filled, tmp_path / "out", code=3)
    for label in ("surfing water", "water sports"):
        archive = tmp_path / f"archives/600/val/{label}.tar.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as tar:
            for clip in (tmp_path / "out/validation" / label).iterdir():
                tar.add(clip, clip.name)
    other = "--annotations", annotations, "--cache-dir", tmp_path / "other"
    done = run_command(
        "fill", *other, "--archive-url", tmp_path / "archives", "--split", "validation", "--jobs", "1", "--json"
    )
    filled_with = json.loads(done.stdout)
    assert (filled_with["stored"], filled_with["already_cached"]) == (2, 1)
    coverage = run_json("status", "--coverage", *other)
    # The archives of the other split were not read, so nothing is known about its clips.
    assert (coverage["cached"], coverage["untried"], coverage["unavailable"]) == (4, 2, 0)


def test_verify_checks_a_clip_once(filled: Arguments) -> None:
    checked = run_json("verify", *filled)
    assert (checked["clips"], checked["good"]) == (2, 2)


def test_a_mount_hides_a_clip_in_all_classes_and_shows_it_again(filled: Arguments, tmp_path: Path) -> None:
    with Mounted(tmp_path / "mount", *filled, "--hide-unavailable") as mounted:
        folders = [mounted.root / "train/water sports", mounted.root / "validation/surfing water"]
        assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [[], [SURF.name]]
        status = mounted.status()
        assert (status["clips"], status["hidden"]) == (6, 2)
        run_command("failures", "clear", *filled[2:], DEAD.key)
        wait_until(lambda: all((folder / DEAD.name).exists() for folder in folders))
        assert mounted.status()["hidden"] == 0


def test_a_prefetch_is_not_offline_because_of_one_clip(chosen: Arguments, tmp_path: Path) -> None:
    lines = [SURF.key] * 20 + ["demo-video2_000000_000002"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    nowhere = "--video-url", "http://127.0.0.1:1/{id}"
    counts = run_json("prefetch", *chosen, "--list", tmp_path / "list.txt", *nowhere, code=3)
    assert counts["failed"] == 21


def test_all_entries_of_a_mount_are_the_same_clip(chosen: Arguments, tmp_path: Path, site: VideoSite) -> None:
    with Mounted(tmp_path / "mount", *chosen, "--video-url", site.url_template) as mounted:
        first, *others = sorted(mounted.root.glob(f"[tv]*n/*/{SURF.name}"))
        estimates = {path.stat().st_size for path in (first, *others)}
        content = first.read_bytes()
        assert estimates != {len(content)}
        for other in others:
            assert os.getxattr(other, "user.kinetics.state") == b"cached"
            assert other.read_bytes() == content
            assert other.stat().st_size == len(content)
        assert len({path.stat().st_ino for path in (first, *others)}) == 3
