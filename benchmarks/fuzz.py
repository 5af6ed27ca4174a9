"""Mutated input for all that reads files, messages and answers from outside: see `tests.support.fuzzing`.

Each target runs in a process with the memory limit of workers. Every run has the same inputs.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.report import Row, Target
from kinetics_fs.util.processes import limit_memory
from tests.support.command_line import ENVIRONMENT
from tests.support.fuzzing import MAX_SECONDS, TARGETS, fuzz

_QUICK = 0.1
_NONE = Target("ours", "<=", 0)
_FAST = Target("ours", "<=", MAX_SECONDS)


def run(*, quick: bool) -> Sequence[Row]:
    """Run all targets; every finding is printed."""
    rows = []
    for name in TARGETS:
        command = [sys.executable, "-m", "benchmarks.fuzz", name, str(_QUICK if quick else 1.0)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: the process ended with status {done.returncode}: {done.stderr[-2000:]}")
            rows.append(Row(f"{name}: findings", 1, target=_NONE))
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        for finding in result["findings"]:
            print(f"{name}: {finding}")
        rows += [
            Row(f"{name}: findings in {result['inputs']:,} inputs", len(result["findings"]), target=_NONE),
            Row(f"{name}: slowest input, s", round(result["slowest"], 2), target=_FAST),
        ]
    return rows


if __name__ == "__main__":
    limit_memory()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(asdict(fuzz(sys.argv[1], Path(temporary), float(sys.argv[2])))))
