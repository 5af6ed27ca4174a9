"""Log lines: above progress bars, as JSON, and for the journal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import termios
from datetime import datetime
from pathlib import Path

from tests.support.command_line import ENVIRONMENT


def test_a_log_line_is_written_above_a_progress_bar() -> None:
    code = """
import logging, sys
from kinetics_fs.cli.progress import ProgressBars
from kinetics_fs.util import logs
logs.set_up(logging.WARNING)
with ProgressBars() as bars:
    bars.add("reading", "clips").show(1, 2)
    logging.warning("a word")
"""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    try:
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, env={**ENVIRONMENT, "NO_COLOR": "1"}, check=True, timeout=30
        )
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "1 of 2 clips" in shown
    assert re.search(r"(?:[\r\n]|\x1b\[2K)[-0-9:, ]+WARNING a word\r\n", shown), shown


PROGRAM = """
import logging, sys
from kinetics_fs.util import logs
logs.set_up(logging.INFO)
logging.info("two\\nlines", extra={"clip": "a clip"})
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("oh")
"""


def logged(log: Path, *, journal: bool, **environment: str) -> list[str]:
    """Return the log of the program, written to a file that is the journal's or another one."""
    with log.open("wb") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino if journal else status.st_ino + 1}"
        run = [sys.executable, "-c", PROGRAM]
        subprocess.run(run, env={**ENVIRONMENT, "JOURNAL_STREAM": stream, **environment}, stderr=file, check=True)
    return log.read_text().splitlines()


def test_the_journal_gets_levels_and_no_times(tmp_path: Path) -> None:
    lines = logged(tmp_path / "log", journal=True)
    assert lines[:2] == ["<6>two lines", "<3>oh"]
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"
    assert all(line.startswith("<3>") for line in lines[1:])
    [first, second] = logged(tmp_path / "log", journal=True, KINETICS_FS_LOG_FORMAT="json")
    assert json.loads(first.removeprefix("<6>"))["clip"] == "a clip"
    assert "ZeroDivisionError" in json.loads(second.removeprefix("<3>"))["traceback"]


def test_what_is_not_the_journal_gets_times_and_no_levels(tmp_path: Path) -> None:
    lines = logged(tmp_path / "log", journal=False)
    assert lines[0].endswith(" INFO two lines")
    assert datetime.fromisoformat(" ".join(lines[0].split()[:2]))
    assert not [line for line in lines if line.startswith("<")]


def test_an_error_of_a_command_has_its_level_in_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        status = os.fstat(file.fileno())
        run = [sys.executable, "-m", "kinetics_fs", "umount", str(tmp_path)]
        environment = {**ENVIRONMENT, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert subprocess.run(run, env=environment, stderr=file, check=False).returncode == 1
    assert (tmp_path / "log").read_text().startswith(f"<3>kinetics-fs: cannot find a mount on {tmp_path}")
