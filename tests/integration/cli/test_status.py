"""`status`, `top` and `umount`, of mounts that are well, that hang, and that are dead."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.control import socket_path
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.fetch.stats import BOUNDS, Durations, Recent
from kinetics_fs.mount import find_mounts
from tests.conftest import MountFactory
from tests.support.command_line import ENVIRONMENT, has_ended, kinetics_fs

CLIP = "validation/surfing water/-demo_video_000010_000020.mp4"


def begun(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command, which goes on beside others."""
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str], status: int) -> str:
    """All that it says; it must end with this status."""
    text, _ = process.communicate(timeout=60)
    assert process.returncode == status, text
    return " ".join(text.split())


def test_mount_that_hangs_and_then_dies(mount: MountFactory, tmp_path: Path) -> None:
    mounted = mount()
    pid, root = mounted.pid, mounted.root
    link = tmp_path / "link"
    link.symlink_to(root)
    os.kill(pid, signal.SIGSTOP)
    try:
        processes = [
            (begun("status", root), 1),
            (begun("top", root), 0),
            (begun("umount", root), 1),
            (begun("prefetch", root, "--list"), 1),
        ]
        by_link = begun("prefetch", link, "--list")
        for process, status in processes:
            text = said(process, status)
            assert f"{root}: its process {pid} does not answer" in text
            assert f"kinetics-fs umount --lazy '{root}', then kill -KILL {pid}" in text
        assert f"{link} does not answer" in said(by_link, 1)
        assert root in find_mounts()
        text = said(begun("umount", "--lazy", root), 1)
        assert f"{root} is unmounted, but its process does not answer: kill -KILL {pid}" in text
        assert root not in find_mounts()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert has_ended(pid, within=20)
    mounted.pid = 0

    other = mount()
    os.kill(other.pid, signal.SIGKILL)
    assert has_ended(other.pid, within=20)
    text = said(begun("status", other.root), 1)
    assert text == f"{other.root}: its process has ended; clear it: kinetics-fs umount '{other.root}'"
    assert said(begun("umount", other.root), 0) == ""
    assert "is not a mount of kinetics-fs" in said(begun("status", other.root), 1)


def test_without_a_socket_the_files_tell(mount: MountFactory) -> None:
    """As of a mount of another user's."""
    mounted = mount()
    path = socket_path(mounted.root)
    path.rename(path.with_suffix(".away"))
    try:
        done = kinetics_fs("status", "--json", mounted.root)
        assert json.loads(done.stdout)["mounts"][0]["pid"] == mounted.pid
        refused = kinetics_fs("status", "--classes", mounted.root)
        assert (refused.returncode, "--classes is for who mounted" in refused.stderr) == (1, True)
    finally:
        path.with_suffix(".away").rename(path)
    assert kinetics_fs("status", "--classes").returncode == 2


@pytest.mark.parametrize("end", [lambda terminal, _: os.write(terminal, b"xq"), lambda _, pid: os.kill(pid, 2)])
def test_top(mount: MountFactory, site: VideoSite, end: Callable[[int, int], object]) -> None:
    mounted = mount()
    site.delay["-demo_video"] = 600.0
    ours, theirs = pty.openpty()
    reader = subprocess.Popen(["cat", mounted.root / CLIP], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    top = subprocess.Popen(
        [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "top", mounted.root],
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        text = ""
        # What is under way stands there, and a second look is taken without being asked.
        while len(re.findall(r"-demo_video_000010_000020 +foreground +youtube +[0-9]+ s", text)) < 2:
            assert select.select([ours], [], [], 60)[0], text
            text += os.read(ours, 65536).decode(errors="replace")
        end(ours, top.pid)
        assert top.wait(timeout=60) == 0
        assert "1 waiting" in text
    finally:
        for process in (reader, top):
            process.kill()
            process.wait()
        os.close(ours)


def test_rates() -> None:
    now = 1000.0
    recent = Recent(60.0, lambda: now)
    recent.add(600)
    recent.add(600)
    assert recent.rates() == {"clips_per_minute": 2.0, "bytes_per_second": 20}
    now = 1030.0
    recent.add(1200)
    assert recent.rates() == {"clips_per_minute": 3.0, "bytes_per_second": 40}
    now = 1060.0  # the first two are too long ago, and their place in the ring is taken
    recent.add(600)
    assert recent.rates() == {"clips_per_minute": 2.0, "bytes_per_second": 30}
    now = 1091.0
    assert recent.rates() == {"clips_per_minute": 1.0, "bytes_per_second": 10}
    now = 1060.0 + 60 * 10**6
    assert recent.rates() == {"clips_per_minute": 0.0, "bytes_per_second": 0}

    now = 0.0
    recent = Recent(3600.0, lambda: now)
    recent.add(60)
    now = 120.0  # over what time there was
    assert recent.rates() == {"clips_per_minute": 0.5, "bytes_per_second": 0}


def test_durations() -> None:
    durations = Durations()
    for seconds in (0.1, 0.2, 1000.0):
        durations.add(seconds)
    assert durations.counts == [1, 1, *[0] * (len(BOUNDS) - 2), 1]
    assert durations.sum == pytest.approx(1000.3)
