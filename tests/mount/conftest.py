"""Fixtures of the tests of mounts, which run with each front end."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kinetics_fs.mount import find_mounts
from tests.conftest import MountFactory
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import fuse_device_open_to_all
from tests.support.mounts import CLASS, short_clips
from tests.support.user import User

FRONTENDS: dict[str, tuple[str, ...]] = {
    "native": ("--frontend", "native"),
    "fusepy": ("--frontend", "fusepy"),
}
"""Each front end, and the arguments of `kinetics-fs mount` that choose it."""


@pytest.fixture(scope="session", params=FRONTENDS)
def frontend(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Arguments of `kinetics-fs mount` that choose a front end."""
    return FRONTENDS[request.param]


@pytest.fixture
def mount(mount: MountFactory, frontend: tuple[str, ...]) -> MountFactory:
    return partial(mount, *frontend)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache directory of `mount`."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation file with clips of one second, all in one class of validation, to mount besides the dataset."""
    rows = [Labelled(CLASS, clip, "validate") for clip in short_clips(1)]
    return write_annotations(tmp_path_factory.mktemp("annotations") / "short.csv", rows)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on; whatever is mounted there in the end is unmounted."""
    folder = tmp_path / "mountpoint"
    folder.mkdir()
    yield folder
    while folder in find_mounts():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def user() -> Iterator[User]:
    """A user without privileges, to whom /dev/fuse is open; whatever is mounted in its home is unmounted in the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    # Not below pytest's folder, into which nobody else may look.
    home = Path(tempfile.mkdtemp(prefix="kinetics-fs-"))
    try:
        user = User(home)
        with fuse_device_open_to_all():
            yield user
    finally:
        for mountpoint in find_mounts():
            if mountpoint.is_relative_to(home):
                subprocess.run(["umount", "-l", mountpoint], check=False)
        shutil.rmtree(home)
