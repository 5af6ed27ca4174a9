"""A mount as a systemd service: readiness, status and watchdog, by the protocol of sd_notify(3).

As a program, `python -m kinetics_fs.mount.systemd MOUNTPOINT` is the process that asks a mount from outside whether it
answers; see `Watchdog`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.control.status import MountStatus

_log = logging.getLogger(__name__)

_STATUS_INTERVAL = 10.0
"""Seconds between two status lines."""

_CHECKS_PER_WATCHDOG_PERIOD = 4
_STOP_TIMEOUT = 1.0
_NOTIFY_TIMEOUT = 1.0


class Notifier:
    """A client of the service manager that started this process.

    A notifier without an address sends nothing, and is false.

    Args:
        address: path of the manager's datagram socket, with a leading `@` for an abstract one; empty for none.
        watchdog: seconds within which the manager expects a notification again and again; 0 for never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog if address else 0.0

    @classmethod
    def from_environment(cls) -> Notifier:
        """Create a notifier from the environment, and remove the variables so that no child process notifies."""
        environment = {name: os.environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
        return cls(environment["NOTIFY_SOCKET"], _watchdog_seconds(environment))

    def __bool__(self) -> bool:
        return bool(self._address)

    def send(self, **states: str) -> None:
        """Send states, for example `send(READY="1", STATUS="8 clips")`. A manager that is gone is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in states.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_NOTIFY_TIMEOUT)
            channel.sendto(message.encode(), self._address)


class Service:
    """The notifications of a mount to its service manager, for the duration of the context.

    Args:
        notifier: the client of the service manager.
        mountpoint: absolute path of the mount point.
        status: returns the status of the mount; called from a thread.
    """

    def __init__(self, notifier: Notifier, mountpoint: Path, status: Callable[[], MountStatus]) -> None:
        self._notifier = notifier
        self._status = status
        self._last_line = ""
        self._ended = threading.Event()
        self._watchdog = Watchdog(mountpoint)
        self._interval = _STATUS_INTERVAL
        if notifier.watchdog:
            self._interval = min(_STATUS_INTERVAL, notifier.watchdog / _CHECKS_PER_WATCHDOG_PERIOD)
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def __enter__(self) -> Self:
        return self

    def ready(self) -> None:
        """Notify that the mount is ready, and start to report its status."""
        if self._notifier:
            self._notifier.send(READY="1", STATUS="mounted")
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watchdog.close()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)
        self._notifier.send(STOPPING="1", STATUS="ending fetches")

    def _run(self) -> None:
        while not self._ended.is_set():
            # Ask from outside: that this thread runs does not prove that the mount answers.
            if self._notifier.watchdog and self._watchdog.answers(within=self._interval):
                self._notifier.send(WATCHDOG="1")
            self._send_status()
            self._ended.wait(self._interval)

    def _send_status(self) -> None:
        try:
            line = _status_line(self._status())
        except Exception:  # without its status line a mount is still alive
            if not self._ended.is_set():
                _log.exception("unexpected error in the status line for the service manager")
            return
        if line != self._last_line and not self._ended.is_set():
            self._notifier.send(STATUS=line)
            self._last_line = line


class Watchdog:
    """A check from outside whether a mount answers. For one thread.

    The check runs in a process of its own, because a process that waits for a hung mount cannot be killed. A thread of
    the mount's own process would keep that process from ending, and so keep the mount alive.

    Args:
        mountpoint: absolute path of the mount point.
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self, within: float) -> bool:
        """Return whether the mount answered within `within` seconds."""
        try:
            process = self._running_process()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], within)[0]:
                return False
            return bool(os.read(process.stdout.fileno(), 4096))
        except OSError:
            return False

    def close(self) -> None:
        """End the process, without waiting for it."""
        if self._process is not None:
            self._process.kill()

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kinetics_fs.mount.systemd", str(self._mountpoint)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        return self._process


def check_mount() -> None:
    """Run the process of `Watchdog`: for each line of input, ask the mount, and print a line if it answers."""
    mountpoint = sys.argv[1]
    for _ in sys.stdin:
        try:
            os.statvfs(mountpoint)  # the kernel never answers this from its caches
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                continue  # there is no server; any other error is an answer of one
        print(flush=True)


def _status_line(status: MountStatus) -> str:
    fetch = status.fetch
    return (
        f"{count(status.cache.clips, 'clip')} in the cache; fetches: {fetch.pending:,} pending,"
        f" {fetch.fetched:,} done, {fetch.failed:,} failed"
    )


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    if environment["WATCHDOG_PID"] not in ("", str(os.getpid())):
        return 0.0
    try:
        return max(0.0, int(environment["WATCHDOG_USEC"] or 0) / 1_000_000)
    except ValueError:
        return 0.0


if __name__ == "__main__":
    check_mount()
