"""`kinetics-fs prefetch`."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.settings import Settings


@click.command("prefetch")
@with_settings("selection", "store", "fetch")
@json_option
def command(settings: Settings, as_json: bool) -> int:
    """Fetch the clips of a selection into the cache.

    May be interrupted: what is there stays, and the next run goes on. A mount on the same cache sees each clip as it
    arrives, and its own readers go first. Exits with 3 if some clips could not be had.

    \b
    kinetics-fs prefetch --split validation --class "surfing water" --class "springboard diving"
    kinetics-fs prefetch --split train --max-samples 1000 --shuffle --seed 1
    """
    from tqdm import tqdm

    from kinetics_fs.cli.rooms import catalog_of, fetcher_of, store_of

    with catalog_of(settings) as catalog, store_of(settings) as store:
        fetcher = fetcher_of(settings, store)
        bar = tqdm(total=catalog.clip_count, unit="clip", disable=None, file=sys.stderr, dynamic_ncols=True)
        progress = _Progress(bar, window=settings.workers * 2)
        interrupted = False
        try:
            for entry in catalog.clips():
                if progress.hopeless:
                    break
                if store.holds(entry.clip):
                    progress.count("already_here")
                else:
                    progress.watch(fetcher, entry.clip)
            progress.wait()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.end()
            fetcher.close()
            bar.close()
    result = progress.result(catalog.clip_count)
    if as_json:
        click.echo(json.dumps({**result, "interrupted": interrupted}))
    else:
        _print(result, interrupted, settings.cache_dir)
    if interrupted:
        return 130
    if progress.hopeless:
        raise progress.hopeless
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
                if isinstance(error, FetchError) and error.kind in (FailureKind.LOCAL, FailureKind.CONFIG):
                    self.hopeless = error
                self._failed[str(getattr(error, "kind", "unexpected"))] += 1
                self._bar.set_postfix(failed=sum(self._failed.values()))
                self._bar.update()
        self._room.release()


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
