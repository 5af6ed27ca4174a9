"""Start-up time of the command line.

The peer is an interpreter that imports click and nothing else: the least that any program on click takes. Ours and the
peer run in turn, so that the load of the machine affects both alike; the numbers are medians.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.report import Row, Target

_PAIRS = 41
_PEER = (sys.executable, "-c", "import click")


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure, in about ten seconds; with `quick` in about three."""
    pairs = 11 if quick else _PAIRS
    rows = []
    for arguments, target in ((("--help",), Target("ratio", "<=", 2)), (("mount", "--help"), None)):
        ours, peer = [], []
        for _ in range(pairs):
            peer.append(_seconds(_PEER))
            ours.append(_seconds((sys.executable, "-m", "kinetics_fs", *arguments)))
        name = f"kinetics-fs {' '.join(arguments)}, ms"
        rows.append(Row(name, median(ours) * 1e3, median(peer) * 1e3, 'python -c "import click"', target))
    return rows


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started
