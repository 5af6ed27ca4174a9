"""Tests of `kinetics-fs demo`, the first command of the README."""

from __future__ import annotations

import os
from pathlib import Path

from kinetics_fs.demo.dataset import GONE, ROWS
from kinetics_fs.mount import find_mounts
from tests.support.command_line import kinetics_fs
from tests.support.namespaces import NO_SYS_ADMIN
from tests.support.native_mounts import NEEDS_FUSE


def test_demo_once_checks_every_step_and_removes_everything(tmp_path: Path) -> None:
    done = kinetics_fs("demo", "--once", timeout=110, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ROWS:
        assert row.clip.name in done.stdout
    assert f"/watch/{GONE}" in done.stdout
    assert [path for path in find_mounts() if path.is_relative_to(tmp_path)] == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@NEEDS_FUSE
def test_demo_without_the_right_to_mount_reads_the_clips_by_the_library(tmp_path: Path) -> None:
    done = kinetics_fs("demo", timeout=110, wrapper=NO_SYS_ADMIN, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot have CAP_SYS_ADMIN" in done.stdout and "left out: files under a mount point" in done.stdout
    clips = [row.clip for row in ROWS if row.clip.youtube_id != GONE]
    [folder] = tmp_path.iterdir()
    assert {path.name for path in (folder / "clips").rglob("*.mp4")} == {clip.name for clip in clips}
    for clip in clips:
        assert done.stdout.count(clip.name) == 3, "it is read twice and exported"
    assert f"To remove them: rm -r {folder}" in done.stdout
    assert not (folder / "kinetics").exists()
    assert "Traceback" not in done.stderr


def test_a_failing_demo_reports_the_cause_and_removes_everything(tmp_path: Path) -> None:
    (tmp_path / "in use").write_text("")
    done = kinetics_fs("demo", "--once", tmp_path, timeout=110, TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in use"]  # noqa: PTH208
