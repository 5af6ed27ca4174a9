"""Fetching many clips, with progress: what `prefetch` and `failures retry` share."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kinetics_fs.catalog import Clip
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.settings import Settings
from kinetics_fs.store import Store


@dataclass
class Outcome:
    """How it went.

    Attributes:
        wanted: how many clips were asked for.
        fetched: how many came.
        already_here: how many were here.
        failed: how many could not be had, by kind of failure.
        hopeless: a failure of this machine or installation, which every further clip would meet, too.
        blocked: the same of a source that wants to be left alone.
        interrupted: by a person.
    """

    wanted: int
    fetched: int = 0
    already_here: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    hopeless: FetchError | None = None
    blocked: FetchError | None = None
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "clips": self.wanted,
            "fetched": self.fetched,
            "already_here": self.already_here,
            "failed": self.failed.total(),
            "failures": dict(self.failed),
            "interrupted": self.interrupted,
        }

    def exit_code(self) -> int:
        """The exit code, after a word on why it did not go further, if it did not.

        Raises:
            FetchError: this machine or installation is at fault.
        """
        if self.interrupted:
            return 130
        if self.hopeless:
            raise self.hopeless
        if self.blocked:
            click.echo(f"Stopped: {self.blocked.source}: {self.blocked}. The same command goes on from here.", err=True)
        return DONE_IN_PART if self.failed else 0


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
    from tqdm import tqdm

    from kinetics_fs.cli.rooms import fetcher_of

    fetcher = fetcher_of(settings, store, catalog)
    if fetcher.rate and wanted > fetcher.rate:
        click.echo(f"At most {fetcher.rate:,} clips are asked for in an hour (see --rate).", err=True)
    bar = tqdm(total=wanted, unit="clip", disable=None, file=sys.stderr, dynamic_ncols=True)
    outcome = Outcome(wanted)
    progress = _Progress(outcome, bar, window=settings.workers * 2)
    try:
        for clip in clips:
            if outcome.hopeless or outcome.blocked:
                break
            if store.holds(clip):
                progress.here()
            else:
                progress.watch(fetcher, clip)
        progress.wait()
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        progress.end()
        fetcher.close()
        bar.close()
    return outcome


def say_fetched(outcome: Outcome, cache: Path) -> None:
    """Prints how it went."""
    click.echo(
        f"{outcome.fetched:,} fetched, {outcome.already_here:,} already here, {outcome.failed.total():,} not to be had"
    )
    for kind, number in outcome.failed.items():
        click.echo(f"  {number:,} {kind}")
    if outcome.failed:
        click.echo(f"Why, clip by clip: kinetics-fs failures list --cache-dir {shlex.quote(str(cache))}")
    if outcome.interrupted:
        click.echo("Interrupted; the same command goes on from here.")


class _Progress:
    """Keeps a few clips under way, and counts how they end."""

    def __init__(self, outcome: Outcome, bar: Any, window: int) -> None:
        self._outcome = outcome
        self._bar = bar
        self._window = window
        self._room = threading.Semaphore(window)
        self._lock = threading.Lock()
        self._ended_by_us = False

    def here(self) -> None:
        """Counts one that need not be fetched."""
        with self._lock:
            self._outcome.already_here += 1
            self._bar.update()

    def watch(self, fetcher: Any, clip: Any) -> None:
        """Asks for a clip, and waits while too many are under way."""
        from kinetics_fs.fetch import Priority

        self._room.acquire()
        fetcher.request(clip, Priority.BACKGROUND).add_done_callback(self._ended)

    def wait(self) -> None:
        """Waits for those under way."""
        for _ in range(self._window):
            self._room.acquire()

    def end(self) -> None:
        """What ends from now on was ended by us, and is not counted."""
        with self._lock:
            self._ended_by_us = True

    def _ended(self, flight: Future[None]) -> None:
        error = flight.exception()
        with self._lock:
            if error is None:
                self._outcome.fetched += 1
                self._bar.update()
            elif not self._ended_by_us:
                if isinstance(error, FetchError) and error.kind in (FailureKind.LOCAL, FailureKind.CONFIG):
                    self._outcome.hopeless = error
                elif isinstance(error, FetchError) and error.kind is FailureKind.BLOCKED:
                    self._outcome.blocked = error
                self._outcome.failed[str(getattr(error, "kind", "unexpected"))] += 1
                self._bar.set_postfix(failed=self._outcome.failed.total())
                self._bar.update()
        self._room.release()
