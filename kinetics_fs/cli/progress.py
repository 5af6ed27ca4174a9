"""Progress on standard error: bars on a terminal, by rich, and otherwise a line now and then.

Importing rich takes 50 ms, so commands import this module when they begin to work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import click
from rich import filesize
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from kinetics_fs.cli.command import QUIET
from kinetics_fs.control.describe import describe_progress, describe_time_left, prefetch_notes
from kinetics_fs.control.status import PrefetchProgress
from kinetics_fs.errors import printable

_FIRST_LINE, _LINE_INTERVAL = 5.0, 60.0
"""Seconds until the first line, and between two lines in the end: the time doubles from line to line."""

_PERIOD = 20.0
"""Seconds over which a speed is measured."""
_SAMPLE_INTERVAL = 0.5
_WIDE = 100
"""Columns of a terminal from which on bars are long."""


class ProgressBars:
    """Progress bars, to be used as a context. Safe for threads.

    While bars are shown, `sys.stderr` writes above them, so that log lines stay whole. With `--quiet`, nothing is
    shown.

    Args:
        transient: remove the bars in the end.
    """

    def __init__(self, *, transient: bool = False) -> None:
        console = Console(stderr=True)
        context = click.get_current_context(silent=True)
        is_quiet = context is not None and bool(context.meta.get(QUIET))
        self._are_shown = sys.stderr.isatty() and not is_quiet
        self.prints_lines = not self._are_shown and not is_quiet
        self._bars: list[Bar] = []
        self._screen = _Screen(
            TextColumn("{task.description}", markup=False),
            BarColumn(30 if console.width >= _WIDE else 12),
            TaskProgressColumn(),
            _WordsColumn(),
            console=console,
            disable=not self._are_shown,
            transient=transient,
            redirect_stdout=False,  # standard output may be a file or a pipe
        )
        self._end = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._screen.start()
        if self.prints_lines:
            self._lines.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        self._screen.stop()
        if self.prints_lines:
            self._lines.join()

    def add(self, description: str, unit: str, *, visible: bool = True, detail: bool = False) -> Bar:
        """Add a bar.

        Args:
            description: text before the bar.
            unit: unit of the bar; sizes are shown if it is `bytes`.
            visible: show the bar at once; else when it is first moved.
            detail: a part of another bar, which is shown on terminals only.
        """
        bar = Bar(self._screen, description, unit, visible=visible, detail=detail)
        self._bars.append(bar)
        return bar

    def remove(self, bar: Bar) -> None:
        """Remove a bar."""
        self._bars.remove(bar)
        self._screen.remove_task(bar.task)

    def add_prefetch(self, *, visible: bool = True) -> Callable[[PrefetchProgress], None]:
        """Add a bar for a prefetch, and return the function that moves it and makes it visible."""
        return self.add("prefetch", "clips", visible=visible).show_prefetch

    def _print_lines(self) -> None:
        wait = _FIRST_LINE
        while not self._end.wait(wait):
            for bar in list(self._bars):
                if bar.has_moved and not bar.detail and not bar.is_full:
                    print(printable("; ".join((f"{bar.description}: {bar.words()}", *bar.notes))), file=sys.stderr)
            wait = min(2 * wait, _LINE_INTERVAL)


class Bar:
    """One bar.

    Attributes:
        description: text before the bar.
        detail: see `ProgressBars.add`.
        has_moved: whether there is any progress.
        task: id of the bar for rich.
        notes: further facts.
    """

    def __init__(self, screen: Progress, description: str, unit: str, *, visible: bool, detail: bool) -> None:
        self.description = description
        self.detail = detail
        self.has_moved = False
        self.notes: Sequence[str] = ()
        self._screen = screen
        self._unit = unit
        self._done = 0.0
        self._total: float | None = None
        self._size: int | None = None
        self._work, self._bytes = _Meter(), _Meter()
        self._prefetch: PrefetchProgress | None = None
        self.task: TaskID = screen.add_task(description, total=None, visible=visible, bar=self)

    def show(
        self,
        done: float,
        total: float | None,
        *,
        without_work: float = 0,
        size: int | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        """Move the bar.

        Args:
            done: the part that is done.
            total: the whole; None if it is unknown.
            without_work: share of `done` that took no time, because it was there before; it does not count as speed.
            size: bytes of the part that took work; None if there are none, or the unit is `bytes`.
            notes: further facts.
        """
        self._done, self._total, self._size, self.notes = done, total, size, [note for note in notes if note]
        self._work.add(done - without_work)
        self._bytes.add(done - without_work if self._unit == "bytes" else size or 0)
        self._move()

    def show_prefetch(self, progress: PrefetchProgress) -> None:
        """Move the bar of a prefetch."""
        self._prefetch = progress
        self._done, self._total = min(progress.clips, progress.finished + progress.in_progress), progress.clips
        self.notes = prefetch_notes(progress)
        self._move()

    def words(self) -> str:
        """Return the progress in words, as of now."""
        if self._prefetch is not None:
            return describe_progress(self._prefetch)
        amounts = [self._amount(amount) for amount in (self._done, self._total) if amount is not None]
        parts = [" of ".join(amounts) + ("" if self._unit == "bytes" else f" {self._unit}")]
        if self._size:
            parts.append(filesize.decimal(self._size))
        if speed := self._bytes.rate():
            parts.append(f"{filesize.decimal(round(speed))}/s")
        if self._total is not None and (work := self._work.rate()) and self._done < self._total:
            parts.append(describe_time_left((self._total - self._done) / work))
        return ", ".join(parts)

    @property
    def is_full(self) -> bool:
        """Whether everything is done."""
        return self._total is not None and self._done >= self._total

    def _move(self) -> None:
        self.has_moved = True
        self._screen.update(self.task, completed=self._done, total=self._total, visible=True)

    def _amount(self, amount: float) -> str:
        return filesize.decimal(round(amount)) if self._unit == "bytes" else f"{amount:,.0f}"


class _Meter:
    """The speed at which a number grows, over the last seconds of the clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()
        self._last = 0.0

    def add(self, value: float) -> None:
        """Note the number as it is now."""
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_INTERVAL:
            self._samples.append((now, value))
        self._last = value

    def rate(self) -> float:
        """Return the growth per second; 0 if it is unknown yet."""
        now = time.monotonic()
        while len(self._samples) > 1 and self._samples[1][0] < now - _PERIOD:
            self._samples.popleft()
        if not self._samples or now - self._samples[0][0] < 1.0:
            return 0.0
        at, value = self._samples[0]
        return (self._last - value) / (now - at)


class _Screen(Progress):
    """The bars, and below them the notes."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.visible:
                yield from (Text(f"  {note}", no_wrap=True, overflow="ellipsis") for note in task.fields["bar"].notes)


class _WordsColumn(ProgressColumn):
    """The progress in words. It is computed for each picture, so that speeds follow the clock."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].words(), no_wrap=True, overflow="ellipsis")
