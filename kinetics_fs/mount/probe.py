"""A look at a place by a process of its own, which is left behind if the place never answers.

A network filesystem whose server is gone, and a mount whose process hangs, keep whoever touches them, in a sleep from
which often not even a signal wakes. As a program (`python look.py PATH`) this is that process: it imports nothing of
ours, and prints one JSON object.
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

PATIENCE = 3.0
"""Seconds."""


_LONGEST_STATUS = 100_000


class PathProbe(NamedTuple):
    """What is at a path.

    Attributes:
        path: itself, or the nearest folder above it that is there; absolute, without symbolic links.
        exists: whether it is itself.
        errno: why it could not be looked at; 0 if it could.
        free: bytes of its disk that may be used.
        inodes: how many more files its disk may take; None if it does not count them.
        empty: whether it is a folder without anything in it; None if that cannot be told.
        status: what `.kinetics/status.json` in it says; None if that cannot be read.
    """

    path: str
    exists: bool
    errno: int
    free: int = 0
    inodes: int | None = None
    empty: bool | None = None
    status: str | None = None


def look_at(path: Path, patience: float = PATIENCE) -> PathProbe | None:
    """What is at a path; None if it does not answer."""
    done = run_or_leave(
        [sys.executable, "-I", "-S", __file__, os.path.abspath(path)],  # noqa: PTH100  # `resolve` may not answer
        patience,
    )
    return None if done is None else PathProbe(**json.loads(done.stdout))


def run_or_leave(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[str] | None:
    """Runs a command that may never end, as it touches a place; None if it does not end in so many seconds.

    Raises:
        OSError: it cannot be run.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, complaints = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()  # and it is not waited for: it may sleep on
        return None
    return subprocess.CompletedProcess(command, process.returncode, said, complaints)


def _look(path: str) -> PathProbe:
    exists = True
    try:
        while not _is_there(path):
            path, exists = str(Path(path).parent), False
        path = os.path.realpath(path)
        disk = os.statvfs(path)
    except OSError as error:
        return PathProbe(path, exists, error.errno or errno.EIO)
    empty = status = None
    try:
        empty = next(Path(path).iterdir(), None) is None
        with Path(path, ".kinetics/status.json").open() as file:
            status = file.read(_LONGEST_STATUS)
    except (OSError, ValueError):
        pass
    return PathProbe(
        path, exists, 0, disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None, empty, status
    )


def _is_there(path: str) -> bool:
    """Not `lexists`, which takes a dead mount for nothing at all."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])._asdict()))
