"""The systems under comparison: the disk, other FUSE filesystems that show a folder, and the front ends of kinetics-fs.

All show the same tree. Each is mounted for one round and always unmounted afterwards. A system that is not installed,
or that this machine does not allow, gives the reason instead of numbers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.support.command_line import ENVIRONMENT, fuse_device_open_to_all, has_ended

NOBODY = 65534
_AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    # May read everything, because the interpreter can be in a home directory that is closed to others.
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--",
)
_READY_WITHIN = 30.0
_END_WITHIN = 20.0


@dataclass(frozen=True)
class Mounted:
    """A tree of files to read.

    Attributes:
        root: its folder.
        ready: seconds from the command to the first answer.
        pid: of the process that serves it; 0 for a tree on the disk.
    """

    root: Path
    ready: float = 0.0
    pid: int = 0

    def memory(self) -> float:
        """Return the resident memory of the process that serves it, in MB; 0 if there is none."""
        return resident(self.pid) if self.pid else 0.0

    def status(self) -> dict[str, Any]:
        """Return `.kinetics/status.json`, which only a mount of kinetics-fs has."""
        status: dict[str, Any] = json.loads((self.root / ".kinetics/status.json").read_text())
        return status


def resident(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else 0.0


class System:
    """A system that shows the tree.

    Attributes:
        name: for the table.
        reader: prefix of the command of a process that reads from it.
    """

    name: str
    reader: tuple[str, ...] = ()

    def absent(self) -> str:
        """Return why this machine cannot measure it; empty if it can."""
        raise NotImplementedError

    @contextmanager
    def mounted(self, mountpoint: Path) -> Iterator[Mounted]:
        """Mount it on an empty folder until the end of the block."""
        raise NotImplementedError
        yield


class Disk(System):
    """The tree on the disk."""

    def __init__(self, tree: Path) -> None:
        self.name = f"{_filesystem(tree)} itself"
        self._tree = tree

    def absent(self) -> str:
        return ""

    @contextmanager
    def mounted(self, mountpoint: Path) -> Iterator[Mounted]:
        yield Mounted(self._tree)


class Program(System):
    """Another filesystem, whose program stays in the foreground.

    Args:
        name: for the table.
        command: its first word is the program; `{mountpoint}` is replaced by the mount point.
        scratch: a folder that is emptied before each mount.
    """

    def __init__(self, name: str, command: Sequence[str], scratch: Path | None = None) -> None:
        self.name = name
        self._command = command
        self._scratch = scratch

    def absent(self) -> str:
        return "" if shutil.which(self._command[0]) else "not installed"

    @contextmanager
    def mounted(self, mountpoint: Path) -> Iterator[Mounted]:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        started = time.perf_counter()
        command = [word.replace("{mountpoint}", str(mountpoint)) for word in self._command]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while not mountpoint.is_mount():
                    if process.poll() is not None or time.perf_counter() - started > _READY_WITHIN:
                        process.kill()
                        assert process.stderr is not None
                        raise RuntimeError(f"{self.name} did not mount: {process.stderr.read()}")
                    time.sleep(0.001)
                yield Mounted(mountpoint, time.perf_counter() - started, process.pid)
            finally:
                unmount(mountpoint)
                if not has_ended(process.pid, within=_END_WITHIN):
                    process.kill()


class Ours(System):
    """`kinetics-fs mount`.

    Args:
        name: for the table.
        arguments: of the command.
        nobody: mount and read as a user without privileges, not as the current user.
        needs: a requirement that this machine does not meet; empty if it meets all.
        config: configuration file; by default none is read.
    """

    def __init__(
        self,
        name: str,
        arguments: Iterable[object],
        *,
        nobody: bool = False,
        needs: str = "",
        config: Path = Path(os.devnull),
    ) -> None:
        self.name = name
        self._arguments = list(map(str, arguments))
        self._nobody = nobody
        self._needs = needs
        self._config = config
        self.reader = _AS_NOBODY if nobody else ()

    def absent(self) -> str:
        return self._needs

    @contextmanager
    def mounted(self, mountpoint: Path) -> Iterator[Mounted]:
        log = mountpoint.with_name(mountpoint.name + ".log")
        if self._nobody:
            log.touch()
            for path in (mountpoint, log):
                os.chown(path, NOBODY, NOBODY)
        command = [*self.reader, sys.executable, "-m", "kinetics_fs", "--config", str(self._config), "mount"]
        command += ["--log-file", str(log), *self._arguments, str(mountpoint)]
        pid = 0
        try:
            started = time.perf_counter()
            with fuse_device_open_to_all() if self._nobody else nullcontext():
                done = subprocess.run(
                    command,
                    env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_READY_WITHIN * 4,  # the first one compiles the catalog
                    check=False,
                )
            ready = time.perf_counter() - started
            match = re.search(r"\(process (\d+), log", done.stdout)
            if done.returncode or match is None:
                raise RuntimeError(f"{self.name} did not mount: {done.stderr}")
            pid = int(match[1])
            yield Mounted(mountpoint, ready, pid)
        finally:
            unmount(mountpoint)
            if pid and not has_ended(pid, within=_END_WITHIN):
                os.kill(pid, signal.SIGKILL)


def unmount(mountpoint: Path) -> None:
    """Unmount `mountpoint` if something is mounted on it."""
    subprocess.run(["umount", "-l", mountpoint], capture_output=True, check=False)
    if os.geteuid() != 0:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], capture_output=True, check=False)


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Make SIGTERM unmount everything, as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _filesystem(path: Path) -> str:
    """Return the type of the filesystem of a path."""
    best = ("", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mountpoint = fields.split()[4]
        if path.resolve().is_relative_to(mountpoint) and len(mountpoint) >= len(best[0]):
            best = (mountpoint, rest.split()[0])
    return best[1]
