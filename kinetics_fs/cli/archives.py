"""Progress, messages and exit code of the commands that read whole archives: `fill` and `index build`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import click
from rich.progress import TaskID

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.progress import ProgressBars
from kinetics_fs.fill.runner import ArchiveProgress, ArchiveResults

_NAME_WIDTH = 32


class ArchiveBars(ArchiveProgress):
    """A progress bar for all archives, and one for each archive that is being read. Use it as a context.

    Args:
        note: returns the text at the end of the bar for all archives; called once per second while bars are shown.
    """

    def __init__(self, note: Callable[[], str] = lambda: "") -> None:
        self._note = note
        self._lock = threading.Lock()
        self._bars = ProgressBars()
        self._all = self._bars.add_bar("bytes", "all archives")
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> ArchiveBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, total: int) -> None:
        """Show how many bytes there are."""
        self._bars.update(self._all, total=total)

    def advance(self, archive: str, done: int, total: int) -> None:
        """Move the bars of an archive and of all archives."""
        with self._lock:
            if archive not in self._tasks:
                self._tasks[archive] = self._bars.add_bar("bytes", Path(archive).name[:_NAME_WIDTH], total=total)
            self._bars.update(self._tasks[archive], completed=done)
            self._bars.advance(self._all, done - self._done.get(archive, 0))
            self._done[archive] = done

    def finish(self, archive: str) -> None:
        """Remove the bar of an archive."""
        with self._lock:
            if (task := self._tasks.pop(archive, None)) is not None:
                self._bars.remove_task(task)

    def tick(self) -> None:
        """Update the note."""
        if not self._bars.disable:
            self._bars.update(self._all, note=self._note())


def print_failures(results: ArchiveResults) -> None:
    """Print which archives failed, and how to resume after Ctrl-C."""
    for name, reason in results.failed.items():
        click.echo(f"  failed: {name}: {reason}")
    if results.interrupted:
        click.echo("Interrupted. Run the same command again to resume.")


def exit_code(results: ArchiveResults, *, complete: bool = True) -> int:
    """Return the exit code of the command.

    Args:
        results: results of reading the archives.
        complete: nothing is missing but what failed archives have.

    Raises:
        FetchError: this machine failed, so that no further archive was tried.
    """
    if results.problem:
        raise results.problem
    if results.interrupted:
        return 130
    if results.failed and not (results.read or results.read_before or results.partly_read):
        return 1
    return DONE_IN_PART if results.failed or not complete else 0
