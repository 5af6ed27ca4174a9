"""Fetching many clips, with progress: what `prefetch`, `failures retry` and `verify` share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kinetics_fs.catalog import Clip
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.config import Settings
from kinetics_fs.control.status import PrefetchProgress
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import ActivityCounts, HistoryRecorder, Store


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
        report: what `Prefetch.progress` said at the end.
        problem: why it stopped before the end, if it did.
        interrupted: by a person.
    """

    report: PrefetchProgress
    problem: FetchError | None
    interrupted: bool

    def as_json(self) -> dict[str, Any]:
        told = {name: value for name, value in self.report.to_json().items() if name not in ("state", "reason")}
        return {**told, "interrupted": self.interrupted}

    def exit_code(self) -> int:
        """The exit code, after a word on why it did not go further, if it did not.

        Raises:
            FetchError: this machine or installation is at fault.
        """
        if self.interrupted:
            return 130
        if self.problem and self.problem.kind is not FailureKind.BLOCKED:
            raise self.problem
        if self.problem:
            click.echo(f"Stopped: {self.problem.source}: {self.problem}. The same command goes on from here.", err=True)
        return DONE_IN_PART if self.report.failed else 0


def fetch_clips(
    clips: Iterable[Clip], wanted: int, store: Store, settings: Settings, *, catalog: Path | None, as_json: bool
) -> int:
    """Fetches those clips that are not here, says how it went, and returns the exit code.

    Args:
        clips: drawn one by one, a few before they are fetched.
        wanted: how many they are.
        store: where they go.
        settings: of the fetcher.
        catalog: file of the catalog in which the clips are; None if it is not known.
        as_json: print JSON.

    Raises:
        FetchError: this machine or installation is at fault, so that the others were not tried.
    """
    outcome = fetch_with_progress(clips, wanted, store, settings, catalog=catalog)
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    else:
        say_fetched(outcome, settings.cache_dir)
    return outcome.exit_code()


def fetch_with_progress(
    clips: Iterable[Clip], wanted: int, store: Store, settings: Settings, *, catalog: Path | None
) -> Outcome:
    """The same, but says nothing of how it went."""
    from kinetics_fs.app import make_fetcher
    from kinetics_fs.fetch.prefetch import Prefetch

    fetcher = make_fetcher(settings, store, catalog)
    hourly = fetcher.max_fetches_per_hour
    if hourly and wanted > hourly:
        click.echo(f"At most {hourly:,} clips are requested per hour (--max-fetches-per-hour).", err=True)
    interrupted = False
    stats = fetcher.stats
    with (
        HistoryRecorder(store.history, lambda: ActivityCounts(stats.fetched, stats.failed)),
        progress_bar(wanted) as show,
    ):
        prefetch = Prefetch(
            fetcher, store, clips, wanted, window=2 * settings.workers, changed=lambda: show(prefetch.progress())
        )
        try:
            prefetch.run()
        except KeyboardInterrupt:
            interrupted = True
            prefetch.cancel()
        finally:
            fetcher.close()
    return Outcome(prefetch.progress(), prefetch.problem, interrupted)


@contextmanager
def progress_bar(wanted: int) -> Iterator[Callable[[PrefetchProgress], None]]:
    """A bar on a terminal; what is yielded moves it to where a `Prefetch.progress` says. Silent elsewhere."""
    from kinetics_fs.cli.progress import progress_bars

    with progress_bars("clips") as bars:
        task = bars.add_task("", total=wanted, note="")

        def show(report: PrefetchProgress) -> None:
            note = f"{report.failed:,} failed" if report.failed else ""
            bars.update(task, completed=report.finished, note=note)

        yield show


def say_report(report: PrefetchProgress) -> None:
    """Prints how a `Prefetch` went, or is going."""
    click.echo(f"{report.fetched:,} fetched, {report.already_cached:,} already cached, {report.failed:,} unavailable")
    for kind, number in report.failures.items():
        click.echo(f"  {number:,} {kind}")


def say_fetched(outcome: Outcome, cache: Path) -> None:
    """Prints how it went."""
    say_report(outcome.report)
    if outcome.report.failed:
        click.echo(f"Why, clip by clip: kinetics-fs failures list --cache-dir {shlex.quote(str(cache))}")
    if outcome.interrupted:
        click.echo("Interrupted; the same command goes on from here.")
