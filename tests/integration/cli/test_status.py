"""`status` and `umount` with mounts that work, that hang, and that are dead."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kinetics_fs.control import ControlServer, RequestHandler, socket_path
from kinetics_fs.control.status import UnreachableMount
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts
from kinetics_fs.mount.query import query_status
from tests.conftest import MountFactory
from tests.support.command_line import ENVIRONMENT, has_ended, run_command

CLIP = "validation/surfing water/-demo_video_000010_000020.mp4"


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command in the background."""
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str], status: int) -> str:
    """Return the output; the exit code must be `status`."""
    text, _ = process.communicate(timeout=60)
    assert process.returncode == status, text
    return " ".join(text.split())


def test_commands_say_what_to_do_about_a_hung_and_a_dead_mount(mount: MountFactory, tmp_path: Path) -> None:
    mounted = mount()
    pid, root = mounted.pid, mounted.root
    link = tmp_path / "link"
    link.symlink_to(root)
    os.kill(pid, signal.SIGSTOP)
    try:
        processes = [
            (started("status", root), 1),
            (started("status", "--watch", root), 0),
            (started("umount", root), 1),
            (started("jobs", "list", root), 1),
        ]
        by_link = started("jobs", "list", link)
        for process, status in processes:
            text = output_of(process, status)
            assert f"{root}: its process {pid} does not answer" in text
            assert f"kinetics-fs umount --lazy '{root}', then kill -KILL {pid}" in text
        assert f"cannot find the mount on {link}: the path does not answer" in output_of(by_link, 1)
        assert root in find_mounts()
        text = output_of(started("umount", "--lazy", root), 1)
        assert (
            f"the mount on {root}: it is unmounted, but its process does not answer; kill -KILL {pid} ends it" in text
        )
        assert root not in find_mounts()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert has_ended(pid, within=20)
    mounted.pid = 0

    other = mount()
    os.kill(other.pid, signal.SIGKILL)
    assert has_ended(other.pid, within=20)
    text = output_of(started("status", other.root), 1)
    assert text == f"{other.root}: its process has ended; clear it: kinetics-fs umount '{other.root}'"
    assert output_of(started("umount", other.root), 0) == ""
    assert "is not a mount of kinetics-fs" in output_of(started("status", other.root), 1)


def test_mount_whose_socket_is_full_is_not_called_hung(mount: MountFactory) -> None:
    mounted = mount()
    with ExitStack() as opened:
        for _ in range(64):  # clients that connect and say nothing
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(socket_path(mounted.root)))
        done = run_command("status", "--json", mounted.root)
        assert json.loads(done.stdout)["mounts"][0]["pid"] == mounted.pid
        refused = run_command("jobs", "list", mounted.root)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "the mount is busy with the requests of other programs" in refused.stderr
        assert run_command("umount", mounted.root).returncode == 0
    assert has_ended(mounted.pid, within=20)
    mounted.pid = 0


def test_status_json_file_is_read_if_there_is_no_socket(mount: MountFactory) -> None:
    """The mount of another user has no socket for this one."""
    mounted = mount()
    path = socket_path(mounted.root)
    path.rename(path.with_suffix(".away"))
    try:
        done = run_command("status", "--json", mounted.root)
        assert json.loads(done.stdout)["mounts"][0]["pid"] == mounted.pid
        refused = run_command("status", "--coverage", mounted.root)
        assert refused.returncode == 1
        assert "only the user who mounted it and root may" in refused.stderr
    finally:
        path.with_suffix(".away").rename(path)
    assert "leave out MOUNTPOINT" in run_command("status", "--coverage", "--split", "train", mounted.root).stderr
    assert run_command("status", "--split", "train").returncode == 2
    assert run_command("status", "--watch", "--json").returncode == 2


def test_status_of_another_version_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinetics_fs.control.paths._runtime_dir", lambda: tmp_path)
    answers: list[object] = [{"version": "0.0.1", "clips": 5}, {"clips": []}, [], "nonsense"]
    with ControlServer(Path("/mnt/old"), {"status": RequestHandler(lambda request: answers.pop(0))}):
        statuses = [query_status(Path("/mnt/old")) for _ in range(4)]
    sentences = list(map(str, statuses))
    assert sentences[0] == (
        "/mnt/old: it runs kinetics-fs 0.0.1, and this version cannot read its status ('mountpoint' is missing);"
        " unmount it and mount it again: kinetics-fs umount /mnt/old"
    )
    assert all("this version cannot read its status" in sentence for sentence in sentences)
    assert [status.pid for status in statuses] == [os.getpid()] * 4, "umount must find the process"


@pytest.mark.parametrize("end", [lambda terminal, _: os.write(terminal, b"xq"), lambda _, pid: os.kill(pid, 2)])
def test_watch_updates_until_it_is_quit(
    mount: MountFactory, site: VideoSite, end: Callable[[int, int], object]
) -> None:
    mounted = mount()
    site.delay["-demo_video"] = 600.0
    ours, theirs = pty.openpty()
    reader = subprocess.Popen(["cat", mounted.root / CLIP], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watch = subprocess.Popen(
        [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "status", "--watch", mounted.root],
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        text = ""
        # The fetch is shown, and a second update comes by itself.
        while len(re.findall(r"-demo_video_000010_000020 \(surfing water\) +foreground +youtube +[0-9]+ s", text)) < 2:
            assert select.select([ours], [], [], 60)[0], text
            text += os.read(ours, 65536).decode(errors="replace")
        end(ours, watch.pid)
        assert watch.wait(timeout=60) == 0
        assert "1 waiting" in text
    finally:
        for process in (reader, watch):
            process.kill()
            process.wait()
        os.close(ours)


def test_mount_that_refuses_the_request_is_not_called_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount of an older version does not know the request, but its process works."""
    monkeypatch.setattr("kinetics_fs.control.paths._runtime_dir", lambda: tmp_path / "run")
    (tmp_path / "mount/.kinetics").mkdir(parents=True)
    (tmp_path / "mount/.kinetics/status.json").write_text('{"version": "0.0.1"}')
    with ControlServer(tmp_path / "mount", {}):
        status = query_status(tmp_path / "mount")
    assert isinstance(status, UnreachableMount)
    assert (status.hung, status.pid) == (False, os.getpid())
    assert "runs kinetics-fs 0.0.1" in status.reason
