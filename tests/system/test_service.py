"""A mount as a service: the notifications to the service manager, and their times."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts
from tests.conftest import Dataset
from tests.support.command_line import ENVIRONMENT, run_command
from tests.support.mounts import command_line, descendants, wait_until

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"


class Manager:
    """The service manager's side of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.messages: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_for(self, name: str, begins: str = "", within: float = 60) -> None:
        """Receive messages until one has this variable.

        Raises:
            TimeoutError: no such message came in time.
        """
        self._socket.settimeout(within)
        while True:
            message = dict(line.split("=", 1) for line in self._socket.recv(65536).decode().split("\n"))
            self.messages.append(message)
            if name in message and message[name].startswith(begins):
                return

    def drain(self) -> None:
        """Receive the messages that have come so far."""
        self._socket.settimeout(0)
        try:
            while True:
                self._socket.recv(65536)
        except BlockingIOError:
            pass


class Services:
    """Services that mount on `mountpoint`. Their processes are killed at the end of the test."""

    def __init__(self, dataset: Dataset, site: VideoSite, folder: Path, stack: ExitStack) -> None:
        self.mountpoint = folder / "mountpoint"
        self.mountpoint.mkdir()
        self._stack = stack
        self._arguments: list[str | Path] = [
            *("--annotations", dataset.annotations, "--video-url", site.url_template),
            *("--cache-dir", folder / "cache", "--min-free", "0"),
        ]

    def start(self, address: str, *arguments: str, **environment: str) -> tuple[Manager, subprocess.Popen[bytes]]:
        manager = self._stack.enter_context(Manager(address))
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "mount", "--foreground"]
        process = subprocess.Popen(
            [*command, *self._arguments, *arguments, self.mountpoint],
            env={**ENVIRONMENT, **environment, "NOTIFY_SOCKET": address},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._stack.callback(self._end, process)
        return manager, process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)


@pytest.fixture
def services(dataset: Dataset, site: VideoSite, tmp_path: Path) -> Iterator[Services]:
    with ExitStack() as stack:
        yield Services(dataset, site, tmp_path, stack)


@pytest.mark.parametrize("frontend", ["native", "fusepy"])
def test_it_says_when_it_is_ready_and_how_it_is(services: Services, tmp_path: Path, frontend: str) -> None:
    manager, process = services.start(str(tmp_path / "notify"), "--frontend", frontend, WATCHDOG_USEC="400000")
    manager.wait_for("READY", "1")
    assert (services.mountpoint / SURFING).stat()
    manager.wait_for("STATUS", "0 clips in the cache")
    assert (services.mountpoint / SURFING).read_bytes()
    manager.wait_for("STATUS", "1 clip in the cache")
    manager.wait_for("WATCHDOG", "1")

    process.send_signal(signal.SIGHUP)
    manager.drain()
    manager.wait_for("WATCHDOG", "1")
    assert (services.mountpoint / SURFING).read_bytes()

    process.terminate()
    manager.wait_for("STOPPING", "1")
    assert services.mountpoint not in find_mounts()
    assert process.wait(30) == 0


def test_without_a_watchdog_there_are_no_signs_of_life(services: Services) -> None:
    manager, process = services.start(f"@kinetics-fs-test-{os.getpid()}", WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    manager.wait_for("STATUS", "0 clips in the cache")
    assert not [pid for pid in descendants(process.pid) if "mount.systemd" in command_line(pid)]
    process.terminate()
    manager.wait_for("STOPPING", "1")
    assert not [message for message in manager.messages if "WATCHDOG" in message]


def test_what_fails_is_never_ready(services: Services, tmp_path: Path) -> None:
    manager, process = services.start(str(tmp_path / "notify"), "--class", "no such class")
    assert process.wait(60) == 1
    with pytest.raises(BlockingIOError):
        manager.wait_for("READY", within=0)


def test_no_sign_of_life_while_the_loop_is_stuck(services: Services, tmp_path: Path) -> None:
    """Only the thread that answers the kernel is stuck; all others run."""
    if os.geteuid() != 0:
        pytest.skip("looking into the kernel's waits needs root")
    manager, process = services.start(str(tmp_path / "notify"), WATCHDOG_USEC="400000")
    manager.wait_for("WATCHDOG", "1")
    [watchdog] = [pid for pid in descendants(process.pid) if "mount.systemd" in command_line(pid)]
    assert b"NOTIFY_SOCKET" not in Path(f"/proc/{watchdog}/environ").read_bytes()
    with held_up(process.pid):
        wait_until(lambda: "request_wait_answer" in Path(f"/proc/{watchdog}/wchan").read_text())
        manager.drain()
        with pytest.raises(TimeoutError):
            manager.wait_for("WATCHDOG", within=1.5)
    manager.wait_for("WATCHDOG", "1")


@contextmanager
def held_up(thread: int) -> Iterator[None]:
    """Stop one thread, as a debugger does."""
    seize, interrupt, detach, any_thread = 0x4206, 0x4207, 17, 0x40000000
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    wait_until(lambda: "poll" in Path(f"/proc/{thread}/wchan").read_text())
    assert ptrace(seize, thread, None, None) == 0
    assert ptrace(interrupt, thread, None, None) == 0
    os.waitpid(thread, any_thread)
    try:
        yield
    finally:
        assert ptrace(detach, thread, None, None) == 0


def test_only_a_dead_mount_is_cleared(services: Services, tmp_path: Path) -> None:
    manager, process = services.start(str(tmp_path / "notify"))
    manager.wait_for("READY", "1")
    assert run_command("umount", "--dead", services.mountpoint).returncode == 0
    assert services.mountpoint in find_mounts()
    process.kill()
    process.wait(30)
    assert services.mountpoint in find_mounts()
    for _ in range(2):
        done = run_command("umount", "--dead", services.mountpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert services.mountpoint not in find_mounts()
