"""Who is compared: the disk itself, other FUSE filesystems that show a folder, and our own front ends.

All show the same tree. Each is mounted anew for every round, and gone afterwards in any case; one that this machine
does not have, or does not allow, says so instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.support.command_line import ENVIRONMENT, has_ended

NOBODY = 65534
_AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    # May read everything, for the interpreter can be in a home that is closed to others; may do nothing else.
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--",
)
_DEVICE = Path("/dev/fuse")
_READY_WITHIN = 30.0
_END_WITHIN = 20.0


@dataclass(frozen=True)
class Mounted:
    """A tree that can be read.

    Attributes:
        root: where it is.
        ready: seconds from the command to the first answer.
        pid: of the process behind it; 0 for a tree on the disk.
    """

    root: Path
    ready: float = 0.0
    pid: int = 0

    def memory(self) -> float:
        """What the process behind it keeps in memory, in MB; 0 if there is none."""
        return resident(self.pid) if self.pid else 0.0

    def status(self) -> dict[str, Any]:
        """What `.kinetics/status.json` says; only a mount of ours has it."""
        status: dict[str, Any] = json.loads((self.root / ".kinetics/status.json").read_text())
        return status


def resident(pid: int) -> float:
    """What a process keeps in memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else 0.0


class System:
    """Something that shows the tree.

    Attributes:
        name: for the table.
        reader: words before the command of who reads it.
    """

    name: str
    reader: tuple[str, ...] = ()

    def absent(self) -> str:
        """Why it cannot be measured here; empty if it can."""
        raise NotImplementedError

    @contextmanager
    def mounted(self, place: Path) -> Iterator[Mounted]:
        """Mounts it on an empty folder, until the end of the block."""
        raise NotImplementedError
        yield


class Disk(System):
    """The tree as it is."""

    def __init__(self, tree: Path) -> None:
        self.name = f"{_filesystem(tree)} itself"
        self._tree = tree

    def absent(self) -> str:
        return ""

    @contextmanager
    def mounted(self, place: Path) -> Iterator[Mounted]:
        yield Mounted(self._tree)


class Program(System):
    """Another filesystem, whose program stays in the foreground.

    Args:
        name: for the table.
        command: its first word is the program; `{place}` stands for the mount point.
        scratch: a folder that is emptied before each mount.
    """

    def __init__(self, name: str, command: Sequence[str], scratch: Path | None = None) -> None:
        self.name = name
        self._command = command
        self._scratch = scratch

    def absent(self) -> str:
        return "" if shutil.which(self._command[0]) else "not installed"

    @contextmanager
    def mounted(self, place: Path) -> Iterator[Mounted]:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        started = time.perf_counter()
        command = [word.replace("{place}", str(place)) for word in self._command]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while not place.is_mount():
                    if process.poll() is not None or time.perf_counter() - started > _READY_WITHIN:
                        process.kill()
                        assert process.stderr is not None
                        raise RuntimeError(f"{self.name} did not mount: {process.stderr.read()}")
                    time.sleep(0.001)
                yield Mounted(place, time.perf_counter() - started, process.pid)
            finally:
                unmount(place)
                if not has_ended(process.pid, within=_END_WITHIN):
                    process.kill()


class Ours(System):
    """`kinetics-fs mount`.

    Args:
        name: for the table.
        arguments: of the command.
        nobody: mount and read as a user without rights, instead of as who runs this.
        needs: what keeps it from being measured; empty if nothing does.
        config: its configuration file; none otherwise, whatever the user has.
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
    def mounted(self, place: Path) -> Iterator[Mounted]:
        log = place.with_name(place.name + ".log")
        if self._nobody:
            log.touch()
            for path in (place, log):
                os.chown(path, NOBODY, NOBODY)
        command = [*self.reader, sys.executable, "-m", "kinetics_fs", "--config", str(self._config), "mount"]
        command += ["--log-file", str(log), *self._arguments, str(place)]
        pid = 0
        try:
            started = time.perf_counter()
            with _device_open_to_all() if self._nobody else nullcontext():
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
            yield Mounted(place, ready, pid)
        finally:
            unmount(place)
            if pid and not has_ended(pid, within=_END_WITHIN):
                os.kill(pid, signal.SIGKILL)


def unmount(place: Path) -> None:
    """Takes away what is mounted there, if anything is."""
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    if os.geteuid() != 0:
        subprocess.run(["fusermount3", "-u", "-z", place], capture_output=True, check=False)


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Lets SIGTERM unwind all that is mounted, as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _device_open_to_all() -> Iterator[None]:
    """Some machines keep /dev/fuse to root; a user's mount needs it for as long as it is being made."""
    before = stat.S_IMODE(_DEVICE.stat().st_mode)
    if before & 0o006 == 0o006:
        yield
        return
    _DEVICE.chmod(0o666)
    try:
        yield
    finally:
        _DEVICE.chmod(before)


def _filesystem(path: Path) -> str:
    """The type of the filesystem that a path is on."""
    best = ("", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        place = fields.split()[4]
        if path.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, rest.split()[0])
    return best[1]
