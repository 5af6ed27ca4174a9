"""Fetching many clips, with progress: what `prefetch` and `failures retry` share."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click

from kinetics_fs.catalog import Clip
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.settings import Settings
from kinetics_fs.store import Store


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
    from tqdm import tqdm

    from kinetics_fs.cli.rooms import fetcher_of

    fetcher = fetcher_of(settings, store, catalog)
    if fetcher.rate and wanted > fetcher.rate:
        click.echo(f"At most {fetcher.rate:,} clips are asked for in an hour (see --rate).", err=True)
    bar = tqdm(total=wanted, unit="clip", disable=None, file=sys.stderr, dynamic_ncols=True)
    progress = _Progress(bar, window=settings.workers * 2)
    interrupted = False
    try:
        for clip in clips:
            if progress.hopeless or progress.blocked:
                break
            if store.holds(clip):
                progress.count("already_here")
            else:
                progress.watch(fetcher, clip)
        progress.wait()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.end()
        fetcher.close()
        bar.close()
    result = progress.result(wanted)
    if as_json:
        click.echo(json.dumps({**result, "interrupted": interrupted}))
    else:
        _print(result, interrupted, settings.cache_dir)
    if interrupted:
        return 130
    if progress.hopeless:
        raise progress.hopeless
    if progress.blocked:
        click.echo(
            f"Stopped: {progress.blocked.source}: {progress.blocked}. The same command goes on from here.", err=True
        )
    return DONE_IN_PART if result["failed"] else 0


class _Progress:
    """Keeps a few clips under way, and counts how they end."""

    def __init__(self, bar: Any, window: int) -> None:
        self._bar = bar
        self._window = window
        self._room = threading.Semaphore(window)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._ended_by_us = False
        self.hopeless: FetchError | None = None
        """A failure of this machine or installation, which every further clip would meet, too."""
        self.blocked: FetchError | None = None
        """The same of a source that wants to be left alone."""

    def count(self, outcome: str) -> None:
        with self._lock:
            self._counts[outcome] += 1
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

    def result(self, wanted: int) -> dict[str, Any]:
        return {
            "clips": wanted,
            "fetched": self._counts["fetched"],
            "already_here": self._counts["already_here"],
            "failed": sum(self._failed.values()),
            "failures": dict(self._failed),
        }

    def _ended(self, flight: Future[None]) -> None:
        error = flight.exception()
        if error is None:
            self.count("fetched")
        elif not self._ended_by_us:
            with self._lock:
                if isinstance(error, FetchError) and _is_hopeless(error):
                    self.hopeless = error
                elif isinstance(error, FetchError) and error.kind is FailureKind.BLOCKED:
                    self.blocked = error
                self._failed[str(getattr(error, "kind", "unexpected"))] += 1
                self._bar.set_postfix(failed=sum(self._failed.values()))
                self._bar.update()
        self._room.release()


def _is_hopeless(error: FetchError) -> bool:
    # A clip that no source has is CONFIG, too, but of no source; the next one may be there.
    return error.kind is FailureKind.LOCAL or (error.kind is FailureKind.CONFIG and bool(error.source))


def _print(result: dict[str, Any], interrupted: bool, cache: Path) -> None:
    click.echo(
        f"{result['fetched']:,} fetched, {result['already_here']:,} already here, {result['failed']:,} not to be had"
    )
    for kind, number in result["failures"].items():
        click.echo(f"  {number:,} {kind}")
    if result["failed"]:
        click.echo(f"Why, clip by clip: kinetics-fs failures list --cache-dir {shlex.quote(str(cache))}")
    if interrupted:
        click.echo("Interrupted; the same command goes on from here.")
