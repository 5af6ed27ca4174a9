"""A Debian that boots in namespaces: systemd is process 1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.mounts import wait_until

ROOTS = Path("/var/tmp/kinetics-fs-tests")
"""Folder of the roots, which are kept for the next run: to create one takes a minute and a Debian mirror."""

SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian releases by their Python: the wheels for this Python must run in the root."""

PACKAGES = "systemd,systemd-sysv,dbus,fuse3,python3,python3-venv,mount"

PROJECT = Path(__file__).parents[2]


def debian() -> Path:
    """Return a root with systemd, python3 and fuse3, and without kinetics-fs; create it if there is none yet.

    Raises:
        LookupError: no Debian release has this Python.
        subprocess.CalledProcessError: debootstrap failed.
    """
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        raise LookupError(f"no Debian release has Python {sys.version_info[0]}.{sys.version_info[1]}")
    root = ROOTS / f"debian-{suite}"
    if not root.exists():
        ROOTS.mkdir(exist_ok=True)
        making = ROOTS / f"making-{suite}"
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, making], check=True)
        making.rename(root)
    return root


class Container:
    """A root folder that is booted, as a context.

    Args:
        root: folder of the root; the system writes to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        hierarchy = Path("/sys/fs/cgroup")
        unified = hierarchy / "unified"
        self._cgroup = (unified if unified.is_dir() else hierarchy) / f"kinetics-fs-test-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        try:
            self.boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(subprocess.SubprocessError):
                print(self.output("journalctl", "--no-pager", "-b", "-o", "short-monotonic"), file=sys.stderr)
        self._end()

    def boot(self) -> None:
        """Start systemd, and wait until it reports that the system is running."""
        self._init = 0
        self._process = subprocess.Popen(
            [Path(__file__).with_name("boot.sh"), self._cgroup, self.root], stdin=subprocess.DEVNULL
        )
        wait_until(self._find_init)
        wait_until(lambda: self._state() in ("running", "degraded"))
        assert self._state() == "running", self.output("systemctl", "--failed")

    def reboot(self) -> None:
        """Shut the system down as for a reboot, and boot it again."""
        assert self._process is not None
        self.run("systemctl", "reboot")
        self._process.wait(120)
        self.boot()

    def run(self, *command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the container to its end."""
        return subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "--", *command],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
                "SYSTEMD_COLORS": "0",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, *command: str | Path, timeout: float = 60) -> str:
        """Return the output of a command in the container, which must succeed."""
        done = self.run(*command, timeout=timeout)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in the root, and create its folder."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running").stdout.strip()

    def _find_init(self) -> bool:
        """Return whether systemd has started; the namespaces can be entered from then on."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the container ended with status {self._process.returncode}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
            return False
        self._init = int(children[0])
        return True

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # When process 1 ends, the kernel kills all others in its namespace.
            if self._init:
                os.kill(self._init, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait(30)
        for folder in sorted(self._cgroup.rglob("*/"), reverse=True):
            folder.rmdir()
        self._cgroup.rmdir()
