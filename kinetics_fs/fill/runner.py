"""Passing over many archives, with progress: what `fill` and `index build` share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill import Job, Summary
from kinetics_fs.fill.executors import ProcessExecutor
from kinetics_fs.fill.plan import is_replacement, remember_done
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.store import ActivityCounts

_ASKED_AT_ONCE = 8
_LOOK_EVERY = 1.0


@dataclass
class Outcome:
    """How it went.

    Attributes:
        read: to its end, by name.
        earlier: names of those that were read to their end before, and so not again.
        failed: name → why.
        hopeless: a failure of this machine, which every further archive would meet, too.
        interrupted: by a person.
    """

    read: dict[str, Summary] = field(default_factory=dict)
    earlier: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    hopeless: FetchError | None = None
    interrupted: bool = False

    def refused(self) -> Counter[str]:
        """How many members of the archives are no clips, by reason."""
        return sum((summary.refused for summary in self.read.values()), Counter[str]())

    def counts(self) -> ActivityCounts:
        """What came of the archives that are through, for the history of the cache."""
        summaries = list(self.read.values())  # at once, for others are added meanwhile
        return ActivityCounts(
            fetched=sum(summary.stored for summary in summaries),
            failed=sum(summary.failed.total() for summary in summaries),
        )

    def as_json(self) -> dict[str, Any]:
        return {"read": sorted(self.read), "read_before": sorted(self.earlier), "failed": self.failed}

    def exit_code(self, *, complete: bool = True) -> int:
        """The exit code, where nothing worse is to be told.

        Args:
            complete: all was had that was wanted, but for archives that failed.
        """
        if self.interrupted:
            return 130
        if self.failed and not (self.read or self.earlier):
            return 1
        return DONE_IN_PART if self.failed or not complete else 0


def find_versions(settings: Settings, names: Sequence[str], outcome: Outcome) -> dict[str, Version]:
    """Which version of each archive is there. Those that cannot be read are put down as failed."""

    def ask(name: str) -> Version | KineticsError:
        try:
            return open_archive(archive_address(settings.archive_url, name)).version()
        except KineticsError as error:
            return error

    pool = ThreadPoolExecutor(_ASKED_AT_ONCE)
    try:
        found = dict(zip(names, pool.map(ask, names), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    outcome.failed.update((name, str(answer)) for name, answer in found.items() if isinstance(answer, KineticsError))
    return {name: answer for name, answer in found.items() if isinstance(answer, Version)}


def pass_over(
    jobs: Iterable[Job],
    versions: Mapping[str, Version],
    outcome: Outcome,
    *,
    at_once: int,
    clips_here: Callable[[], int] | None = None,
) -> None:
    """Does all jobs, and puts down how they went; remembers which archives need not be read again.

    Args:
        jobs: one for each archive.
        versions: of the archives, by name.
        outcome: to be added to.
        at_once: archives to read at the same time.
        clips_here: how many clips the cache has, to be shown; None if they do not matter.
    """
    jobs = list(jobs)
    progress = _Progress(sum(versions[job.archive].size for job in jobs), clips_here)
    executor = ProcessExecutor(at_once, progress.show)
    under_way: dict[Future[Summary], Job] = {}
    try:
        # The store keeps the first of each clip, so replacements must all be in it before what they replace.
        for group in (
            [job for job in jobs if is_replacement(job.archive)],
            [job for job in jobs if not is_replacement(job.archive)],
        ):
            under_way = {executor.submit(job): job for job in group}
            while under_way and outcome.hopeless is None:
                done, _ = wait(under_way, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
                for future in done:
                    job = under_way.pop(future)
                    _take(job, future, versions[job.archive], outcome)
                    progress.end(job)
                progress.look()
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        executor.end()
        progress.close()
    for future, job in under_way.items():  # those that were through just before all was ended
        if not future.cancelled() and future.exception() is None:
            _take(job, future, versions[job.archive], outcome)


def say_failed(outcome: Outcome) -> None:
    """Prints which archives failed, and how to go on."""
    for name, reason in outcome.failed.items():
        click.echo(f"  failed: {name}: {reason}")
    if outcome.interrupted:
        click.echo("Interrupted; the same command goes on from here.")


def _take(job: Job, future: Future[Summary], version: Version, outcome: Outcome) -> None:
    try:
        summary = future.result()
    except KineticsError as error:
        outcome.failed[job.archive] = str(error)
        if isinstance(error, FetchError) and error.kind is FailureKind.LOCAL:
            outcome.hopeless = error
        return
    outcome.read[job.archive] = summary
    if not summary.busy:  # who fetches those may fail
        remember_done(job.states, job.archive, version)


class _Progress:
    """Bars on a terminal: one for all, and one for each archive that is being read. Silent elsewhere."""

    def __init__(self, total: int, clips_here: Callable[[], int] | None) -> None:
        from kinetics_fs.cli.progress import progress_bars

        self._clips_here = clips_here
        self._lock = threading.Lock()
        self._bars = progress_bars("bytes")
        self._bars.start()
        self._all = self._bars.add_task("all archives", total=total, note="")
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}

    def show(self, job: Job, done: int, total: int) -> None:
        with self._lock:
            task = self._tasks.get(job.archive)
            if task is None:
                task = self._tasks[job.archive] = self._bars.add_task(Path(job.archive).name[:32], total=total, note="")
            self._bars.advance(self._all, done - self._done.get(job.archive, 0))
            self._done[job.archive] = done
            self._bars.update(task, completed=done)

    def end(self, job: Job) -> None:
        with self._lock:
            if (task := self._tasks.pop(job.archive, None)) is not None:
                self._bars.remove_task(task)

    def look(self) -> None:
        if self._clips_here is not None and not self._bars.disable:
            self._bars.update(self._all, note=f"{self._clips_here():,} clips")

    def close(self) -> None:
        self._bars.stop()
