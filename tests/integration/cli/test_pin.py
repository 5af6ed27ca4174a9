"""`kinetics-fs pin`: its output, and its effect on a running mount."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import CacheLayout, Store
from tests.support.command_line import Mounted, reason, run_command
from tests.support.demo_clips import ROWS
from tests.support.store import UNIT, query

Arguments = tuple[str | Path, ...]

MASSAGE, SURFING = "massaging person's head", "surfing water"


@pytest.fixture
def filled(fetched: Path, chosen: Arguments, cache: Path) -> Arguments:
    """A cache with three clips of validation; the arguments that make a command use it."""
    shutil.copytree(fetched, cache)
    return chosen


def run_json(name: str, *arguments: str | Path, code: int = 0, **environment: str) -> Any:
    """Return the JSON output of `kinetics-fs pin`, or of `status`."""
    done = run_command(*(("pin",) if name != "status" else ()), name, *arguments, "--json", **environment)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    return json.loads(done.stdout)


def bytes_of(cache: Path, which: str) -> int:
    [(size,)] = query(CacheLayout(cache).state_database, f"SELECT sum(size) FROM clip WHERE {which}")
    assert isinstance(size, int)
    return size


def test_pin_add_and_remove_print_the_counts(filled: Arguments, cache: Path) -> None:
    surfing = bytes_of(cache, "key NOT LIKE 'demo%'")
    assert run_command("pin", "list", *filled).stdout == "No clips are pinned.\n"

    assert run_json("add", *filled, "--class", SURFING) == {
        "clips": 4,
        "cached": 2,
        "bytes": surfing,
        "new": 4,
        "total": {"clips": 4, "cached": 2, "bytes": surfing},
    }
    limit = f"{bytes_of(cache, 'cached') + 1000}B"
    again = run_command("pin", "add", *filled, "--split", "validation", "--cache-size", limit)
    assert again.returncode == 0
    assert again.stdout.startswith("4 clips pinned, 3 of them cached (")
    assert again.stdout.endswith("; 2 of them were not pinned before\n")
    assert "hardly any other clip can be fetched; raise --cache-size" in again.stderr
    listed = run_json("list", *filled)
    assert listed["total"]["clips"] == 6
    assert "; 6 clips pinned, 3 of them cached, " in run_command("status", "--cache-dir", cache).stdout
    assert [(row["split"], row["label"], row["clips"], row["cached"]) for row in listed["classes"]] == [
        ("train", SURFING, 2, 0),
        ("validation", MASSAGE, 1, 1),
        ("validation", ROWS[3][0], 1, 0),
        ("validation", SURFING, 2, 2),
    ]
    lines = run_command("pin", "list", *filled, "--split", "train").stdout.splitlines()
    assert [line.split()[:5] for line in lines[1:]] == [
        ["train", "surfing", "water", "2", "0"],
        ["Total:", "6", "clips", "pinned,", "3"],
    ]

    assert run_json("remove", *filled, "--class", SURFING) == {"clips": 4, "cached": 2, "bytes": surfing}
    assert run_json("remove", "--all", "--cache-dir", cache)["clips"] == 2
    assert run_json("status", "--cache-dir", cache)["cache"]["pinned_clips"] == 0


def test_pin_needs_a_selection(cache: Path, annotations: Path) -> None:
    with Store(cache):
        pass
    options = "--cache-dir", cache
    for wrong in (["pin", "add"], ["pin", "remove"], ["pin", "remove", "--all", "--split", "train"]):
        done = run_command(*wrong, *options)
        assert done.returncode == 2
        assert "selection" in done.stderr
    # A selection in the environment does not restrict --all.
    run_json("remove", "--all", *options, KINETICS_FS_SPLIT="train")
    wrong_class = run_command("pin", "add", *options, "--annotations", annotations, "--class", "surfing watr")
    assert wrong_class.returncode == 1
    assert SURFING in wrong_class.stderr


def test_a_running_mount_spares_pinned_clips(filled: Arguments, cache: Path, site: VideoSite, tmp_path: Path) -> None:
    size = bytes_of(cache, "key LIKE 'demo%'") + UNIT
    limit = "--cache-size", f"{size}B", "--shrink"
    with Mounted(tmp_path / "mount", *filled, *limit, "--video-url", site.url_template) as mounted:
        oldest = mounted.root / f"validation/{MASSAGE}/demo-video2_000000_000002.mp4"
        first, second = sorted((mounted.root / f"train/{SURFING}").iterdir())

        run_json("add", *filled, "--class", MASSAGE)
        first.read_bytes()
        states = [os.getxattr(path, "user.kinetics.state") for path in mounted.root.glob("validation/*/*.mp4")]
        assert sorted(states) == [b"absent", b"absent", b"absent", b"cached"]
        assert os.getxattr(oldest, "user.kinetics.state") == b"cached", "although it is the oldest"

        run_json("add", *filled, "--split", "train")
        with pytest.raises(OSError) as caught:
            second.read_bytes()
        assert caught.value.errno == errno.ENOSPC
        assert "kinetics-fs pin remove" in reason(second)
        assert not any(second.name[:11] in path for path, _ in site.requests), "no source was asked"
        status = mounted.status()["cache"]
        assert (status["pinned_clips"], status["pinned_cached"]) == (3, 2)

        run_json("remove", "--all", *filled[2:])
        assert len(second.read_bytes()) == second.stat().st_size
