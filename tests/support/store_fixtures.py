"""Fixtures for tests of a store. A `conftest.py` imports those that its tests use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from kinetics_fs.store import Store
from tests.support.store import SmallDisk, fast_folder


@pytest.fixture
def fast_tmp_path() -> Iterator[Path]:
    """An empty folder, faster than `tmp_path`."""
    with fast_folder() as folder:
        yield folder


@pytest.fixture
def folder(fast_tmp_path: Path) -> Path:
    """The path of a cache directory that does not exist yet."""
    return fast_tmp_path / "cache"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """An empty store without limits."""
    with Store(folder) as store:
        yield store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Create a small disk; skip the test if this process may not."""
    with ExitStack() as mounted:

        def make(size: int) -> Path:
            mountpoint = tmp_path / "disk"
            mountpoint.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mountpoint], capture_output=True, text=True
            )
            if done.returncode:
                pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
            mounted.callback(_unmount_all, mountpoint)
            return mountpoint

        yield make


def _unmount_all(mountpoint: Path) -> None:
    while mountpoint.is_mount():
        subprocess.run(["umount", "-l", mountpoint], check=True)


def make_read_only(disk: Path) -> None:
    """Mount a `small_disk` read-only, under whatever uses it. Files that are open for writing stay writable."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)


def make_writable(disk: Path) -> None:
    """Undo `make_read_only`."""
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike those of `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def without_privileges() -> Callable[[], AbstractContextManager[None]]:
    """Make this process obey permissions while a block runs: root becomes the user nobody."""

    @contextlib.contextmanager
    def drop() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop
