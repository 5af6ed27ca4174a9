"""A cache that cannot be written, or is gone, under a mount: the mount lives on and names the cause."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Dataset, MountFactory
from tests.support.command_line import kinetics_fs, reason, run_command
from tests.support.mounts import open_errno
from tests.support.store import SmallDisk, fill
from tests.support.store_fixtures import make_read_only, make_writable
from tests.support.store_fixtures import small_disk as small_disk

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"
OTHER = "validation/surfing water/_demo_vid3__000003_000013.mp4"


def remove_table(cache: Path) -> None:
    for path in (cache / "clips").glob("cache.db*"):
        path.unlink()


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (shutil.rmtree, "it was removed or renamed while it was in use"),
    "table removed": (remove_table, "cache.db was removed or renamed"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mount_whose_cache_is_gone_says_so_and_can_be_unmounted(mount: MountFactory, cache: Path, loss: str) -> None:
    mounted = mount(cache=cache)
    (mounted.root / SURFING).read_bytes()
    lose, cause = LOSSES[loss]
    lose(cache)
    for _ in range(3):
        assert open_errno(mounted.root / OTHER) == errno.EIO
    assert cause in reason(mounted.root / OTHER)
    control = sorted(path.name for path in (mounted.root / ".kinetics").iterdir())
    assert "status.json" in control and "failures.csv" in control
    assert cause in json.loads((mounted.root / ".kinetics/status.json").read_text())["cache"]["error"]
    os.statvfs(mounted.root)
    status = run_command("status", mounted.root)
    assert status.returncode == 0
    assert cause in status.stdout
    assert "kill" not in status.stdout
    again = kinetics_fs("mount", mounted.root, "--cache-dir", cache.with_name("another"))
    assert "it is mounted already" in again.stderr
    assert (
        f"answers, but: cannot use {cache} as the cache directory"
        in run_command("doctor", "--offline", "--cache-dir", cache.with_name("another"), mounted.root).stdout
    )
    assert run_command("umount", mounted.root).returncode == 0
    log = mounted.log.read_text()
    assert log.count("ERROR cannot use") == 1
    assert "Traceback" not in log


DISKS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], int, str]] = {
    "read-only": (make_read_only, make_writable, errno.EROFS, "the disk is mounted read-only; mount it for writing"),
    "full": (fill, lambda disk: (disk / "filler").unlink(), errno.ENOSPC, "the disk is full; free space on it"),
}


@pytest.mark.parametrize("kind", DISKS)
def test_clips_of_a_disk_that_cannot_be_written_are_read_before_and_after_a_restart(
    mount: MountFactory, dataset: Dataset, small_disk: SmallDisk, tmp_path: Path, kind: str
) -> None:
    disk = small_disk(12_000_000)
    spoil, repair, number, cause = DISKS[kind]
    mounted = mount(cache=disk / "cache")
    content = (mounted.root / SURFING).read_bytes()
    spoil(disk)
    for _ in range(2):
        assert (mounted.root / SURFING).read_bytes() == content
        assert open_errno(mounted.root / OTHER) == number
        assert cause in reason(mounted.root / OTHER)
        assert cause in run_command("status", mounted.root).stdout
        assert run_command("umount", mounted.root).returncode == 0
        mounted = mount(cache=disk / "cache")
    done = run_command("status", "--cache-dir", disk / "cache")
    assert "1 clip" in done.stdout and cause in done.stdout
    exported = tmp_path / "exported"
    run_command("export", exported, "--annotations", dataset.annotations, "--cache-dir", disk / "cache")
    assert (exported / SURFING).read_bytes() == content
    findings = run_command("doctor", "--offline", "--cache-dir", disk / "cache").stdout
    assert f"{cause.partition(';')[0]}; cached clips can be read" in findings
    assert "move" not in findings
    repair(disk)
    assert "cannot write" not in run_command("status", mounted.root).stdout
    assert open_errno(mounted.root / OTHER) is None
    assert "Traceback" not in mounted.log.read_text()
