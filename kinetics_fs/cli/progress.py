"""Progress bars on standard error, by rich. Nothing is shown if standard error is not a terminal.

Importing rich takes 50 ms, so commands import this module when they begin to work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from kinetics_fs.control.status import PrefetchProgress


class ProgressBars(Progress):
    """Progress bars, to be used as a context. Safe for threads.

    While they are shown, `sys.stderr` writes above them, so that log lines stay whole.
    """

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            _AmountColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            redirect_stdout=False,  # standard output may be a file or a pipe
        )

    def add_bar(self, unit: str, description: str = "", *, total: int | None = None, visible: bool = True) -> TaskID:
        """Add a bar.

        Args:
            unit: unit of the bar; sizes are shown if it is `bytes`.
            description: text before the bar.
            total: number at which the bar is full; None if it is unknown yet.
            visible: show the bar at once.
        """
        return self.add_task(description, total=total, visible=visible, unit=unit, note="")

    def add_prefetch_bar(self, *, visible: bool = True) -> Callable[[PrefetchProgress], None]:
        """Add a bar for a prefetch, and return the function that moves it and makes it visible."""
        bar = self.add_bar("clips", visible=visible)

        def show(progress: PrefetchProgress) -> None:
            note = f"{progress.failed:,} unavailable" if progress.failed else ""
            self.update(bar, completed=progress.finished, total=progress.clips, note=note, visible=True)

        return show


class _AmountColumn(ProgressColumn):
    """A column with the completed part and the total in the unit of the bar, and the speed if the unit is bytes."""

    def render(self, task: Task) -> Text:
        if task.fields["unit"] == "bytes":
            speed = task.finished_speed or task.speed
            amounts = [filesize.decimal(int(amount)) for amount in (task.completed, task.total) if amount is not None]
            return Text("/".join(amounts) + (f" {filesize.decimal(int(speed))}/s" if speed else ""))
        amounts = [f"{amount:,.0f}" for amount in (task.completed, task.total) if amount is not None]
        return Text(f"{'/'.join(amounts)} {task.fields['unit']}")
