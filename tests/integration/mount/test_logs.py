"""The log of a mount: failures as JSON, and a log file that is rotated."""

from __future__ import annotations

import json
import os
import signal
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from tests.conftest import MountFactory
from tests.support.mounts import command_line, descendants, open_paths, wait_until

SURFING = "validation/surfing water"
FIRST, SECOND = "-demo_video_000010_000020", "_demo_vid3__000003_000013"
DEAD = f"validation/passing American football (in game)/{GONE}_000005_000015.mp4"


def objects(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_failure_is_one_json_object_with_all_its_facts(mount: MountFactory, site: VideoSite) -> None:
    mounted = mount("--log-format", "json")
    with pytest.raises(OSError):
        (mounted.root / DEAD).read_bytes()
    [failure] = [line for line in objects(mounted.log) if "clip" in line]
    assert (failure["clip"], failure["source"]) == (f"{GONE}_000005_000015", "youtube")
    assert (failure["kind"], failure["level"]) == ("gone", "warning")
    assert "404" in failure["reason"]
    assert f"{failure['clip']}: youtube: gone: {failure['reason']}; next retry after" in failure["message"]
    assert datetime.fromisoformat(failure["next_retry"]) > datetime.fromisoformat(failure["time"])

    site.fail["-demo_video"] = 429
    with pytest.raises(OSError):
        (mounted.root / SURFING / f"{FIRST}.mp4").read_bytes()
    [*_, blocked] = [line for line in objects(mounted.log) if "clip" in line]
    assert (blocked["clip"], blocked["kind"]) == (FIRST, "blocked")
    assert datetime.fromisoformat(blocked["next_retry"]) > datetime.fromisoformat(blocked["time"])


@pytest.mark.parametrize("frontend", ["native", "fusepy"])
def test_sighup_opens_the_log_file_again(mount: MountFactory, frontend: str) -> None:
    mounted = mount("--workers", "1", "--frontend", frontend)
    (mounted.root / SURFING / f"{FIRST}.mp4").read_bytes()
    [worker] = [pid for pid in descendants(mounted.pid) if "fetch.worker" in command_line(pid)]
    old = mounted.log.with_name("rotated")
    mounted.log.rename(old)
    for pid in (mounted.pid, worker):  # as fuser(1) does, to all that have the file open
        os.kill(pid, signal.SIGHUP)
    wait_until(mounted.log.exists)
    (mounted.root / SURFING / f"{SECOND}.mp4").read_bytes()
    assert f"{SECOND}: fetched" in mounted.log.read_text()
    assert FIRST in old.read_text()
    assert SECOND not in old.read_text()
    assert stat.S_IMODE(mounted.log.stat().st_mode) == 0o600
    assert Path(f"/proc/{worker}/fd/2").readlink() == mounted.log
    for pid in (mounted.pid, worker):
        assert str(old) not in open_paths(pid)
    size = old.stat().st_size
    mounted.end()
    assert old.stat().st_size == size
