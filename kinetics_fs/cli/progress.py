"""Progress bars on standard error, by rich. Nothing is shown if standard error is not a terminal.

Importing rich takes 50 ms, so commands import this module when they begin to work.
"""

from __future__ import annotations

import sys
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def progress_bars(unit: Literal["bytes", "clips", "files"]) -> Progress:
    """Return progress bars to be used as a context; each `add_task` adds one.

    While they are shown, `sys.stderr` writes above them: log lines stay whole. Safe for threads.

    Args:
        unit: what the bars count. A task needs a `note`, text that is shown at its end.
    """
    clips_or_files: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(unit))
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else clips_or_files),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        redirect_stdout=False,  # standard output may be a file or a pipe
    )
