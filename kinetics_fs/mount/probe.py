"""Probe a path in a process of its own, which is abandoned if the path never answers.

A network filesystem whose server is down, and a mount whose process hangs, block every process that touches them, often
in a sleep from which no signal wakes it. As a program (`python probe.py PATH`) this module is that process: it imports
nothing of kinetics-fs, and prints one JSON object.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 3.0
"""Seconds to wait for a probe."""

_MAX_STATUS_BYTES = 100_000


class PathProbe(NamedTuple):
    """The state of a path.

    Attributes:
        path: the path itself, or the nearest directory above it that exists; absolute, without symbolic links.
        exists: True if the path itself exists.
        errno: why the path cannot be probed; 0 if it can.
        free: bytes available on its disk.
        inodes: number of files that can still be created on its disk; None if the disk has no such limit.
        empty: True if it is an empty directory; None if that is unknown.
        status: content of `.kinetics/status.json` below it; None if that cannot be read.
    """

    path: str
    exists: bool
    errno: int
    free: int = 0
    inodes: int | None = None
    empty: bool | None = None
    status: str | None = None


def probe_path(path: Path, timeout: float = TIMEOUT) -> PathProbe | None:
    """Return the state of a path; None if it does not answer within `timeout` seconds."""
    done = run_or_abandon(
        [sys.executable, "-I", "-S", __file__, os.path.abspath(path)],  # noqa: PTH100  # `resolve` may block
        timeout,
    )
    return None if done is None else PathProbe(**json.loads(done.stdout))


def run_or_abandon(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str] | None:
    """Run a command that may block for ever in a path that it touches.

    Returns:
        The completed process; None if the command did not end within `timeout` seconds.

    Raises:
        OSError: the command cannot be run.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting for it: it may sleep on
        return None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _probe(path: str) -> PathProbe:
    exists = True
    try:
        while not _exists(path):
            path, exists = str(Path(path).parent), False
        path = os.path.realpath(path)
        disk = os.statvfs(path)
    except OSError as error:
        return PathProbe(path, exists, error.errno or errno.EIO)
    empty = status = None
    try:
        empty = next(Path(path).iterdir(), None) is None
        with Path(path, ".kinetics/status.json").open() as file:
            status = file.read(_MAX_STATUS_BYTES)
    except (OSError, ValueError):
        pass
    return PathProbe(
        path, exists, 0, disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None, empty, status
    )


def _exists(path: str) -> bool:
    """Return True if a path exists, even as a dead mount, which `lexists` takes for missing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1])._asdict()))
