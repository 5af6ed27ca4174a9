"""Progress, messages and exit code of the commands that read whole archives: `fill` and `index build`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.progress import Bar, ProgressBars
from kinetics_fs.fill.runner import ArchiveProgress, ArchiveResults
from kinetics_fs.util.text import count

_NAME_WIDTH = 32


class ArchiveBars(ArchiveProgress):
    """A progress bar for all archives, and one for each archive that is being read. Use it as a context.

    Args:
        note: returns the text at the end of the bar for all archives; called once per second.
    """

    def __init__(self, note: Callable[[], str] = lambda: "") -> None:
        self._note = note
        self._lock = threading.Lock()
        self._bars = ProgressBars()
        self._all = self._bars.add("all archives", "bytes")
        self._total: int | None = None
        self._note_now = ""
        self._elsewhere = ""
        self._parts: dict[str, Bar] = {}
        self._begins: dict[str, int] = {}
        """Where the reading of each archive began: the part before it was read by an earlier run."""
        self._done: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> ArchiveBars:
        self._bars.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.__exit__(None, None, None)

    def start(self, total: int) -> None:
        """Show how many bytes there are."""
        with self._lock:
            self._total = total
            self._show()

    def advance(self, archive: str, done: int, total: int) -> None:
        """Move the bars of an archive and of all archives."""
        with self._lock:
            if archive not in self._parts:
                self._parts[archive] = self._bars.add(Path(archive).name[:_NAME_WIDTH], "bytes", detail=True)
            begin = self._begins.setdefault(archive, done)
            self._done[archive], self._sizes[archive] = done, total
            self._parts[archive].show(done, total, without_work=begin)
            self._show()

    def finish(self, archive: str) -> None:
        """Remove the bar of an archive."""
        with self._lock:
            if (part := self._parts.pop(archive, None)) is not None:
                self._bars.remove(part)
                rest = self._sizes[archive] - self._done[archive]
                self._done[archive] += rest
                self._begins[archive] += rest  # of an archive that failed
                self._show()

    def wait_for(self, archives: int) -> None:
        """Say that other machines are reading archives, in the next note."""
        with self._lock:
            self._elsewhere = f"other machines read {count(archives, 'archive')}" if archives else ""

    def tick(self) -> None:
        """Update the note."""
        note = self._note()
        with self._lock:
            self._note_now = note
            self._show()

    def _show(self) -> None:
        done, before = sum(self._done.values()), sum(self._begins.values())
        self._all.show(done, self._total, without_work=before, notes=[self._note_now, self._elsewhere])


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM, by which schedulers end a job, like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    if results.failed and not (results.read or results.read_before or results.read_elsewhere or results.partly_read):
        return 1
    return DONE_IN_PART if results.failed or not complete else 0
