"""Filesystems for tests, each of which is a program that serves one mount: `python -m MODULE FOLDER MOUNTPOINT …`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts import wait_until


@contextmanager
def mounted_program(module: str, folder: Path, mountpoint: Path, *arguments: str) -> Iterator[Path]:
    """Mount a filesystem while the block runs. The folder and the mountpoint are made."""
    folder.mkdir()
    mountpoint.mkdir()
    process = subprocess.Popen([sys.executable, "-m", module, folder, mountpoint, *arguments])
    try:
        wait_until(mountpoint.is_mount)
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=False)
        process.wait(20)
