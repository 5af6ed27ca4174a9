"""Tests of `kinetics-fs demo`, the first command of the README."""

from __future__ import annotations

import os
from pathlib import Path

from kinetics_fs.demo.dataset import GONE, ROWS
from kinetics_fs.mount import find_mounts
from tests.support.command_line import kinetics_fs


def test_demo_once_checks_every_step_and_removes_everything(tmp_path: Path) -> None:
    done = kinetics_fs("demo", "--once", timeout=110, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ROWS:
        assert row.clip.name in done.stdout
    assert f"/watch/{GONE}" in done.stdout
    assert [path for path in find_mounts() if path.is_relative_to(tmp_path)] == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_failing_demo_reports_the_cause_and_removes_everything(tmp_path: Path) -> None:
    (tmp_path / "in use").write_text("")
    done = kinetics_fs("demo", "--once", tmp_path, timeout=110, TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in use"]  # noqa: PTH208
