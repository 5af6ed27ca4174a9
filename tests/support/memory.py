"""The memory that processes take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.command_line import ENVIRONMENT

BOUND = 2_200_000_000
"""Bytes that a process with the limit may take: its data, and the code of its libraries."""

_SHOW_PEAK = """
import json, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_DATA, (4 * 10**9,) * 2)  # a machine with less memory must survive the test
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([done.returncode, done.stdout, done.stderr, peak]))
"""


class Measured(NamedTuple):
    """The result of `kinetics-fs`, and the bytes of memory that the largest of its processes has taken."""

    returncode: int
    stdout: str
    stderr: str
    peak: int


def measured(*arguments: str | Path) -> Measured:
    """Run `kinetics-fs` without a configuration file, and measure it and its children."""
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-c", _SHOW_PEAK, *command], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return Measured(*json.loads(done.stdout))


def peak_of(pid: int) -> int:
    """Return the bytes of memory that a running process has taken at most."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def in_limited_process(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process with the memory limit of those that read files from outside."""
    code = f"from kinetics_fs.util.processes import limit_memory\nlimit_memory()\n{script}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
