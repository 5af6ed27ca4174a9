"""Fetching many clips, with progress: what `prefetch` and `failures retry` share."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kinetics_fs.catalog import Clip
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.errors import FailureKind
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
    from kinetics_fs.cli.rooms import fetcher_of
    from kinetics_fs.fetch.prefetch import Prefetch

    fetcher = fetcher_of(settings, store, catalog)
    if fetcher.rate and wanted > fetcher.rate:
        click.echo(f"At most {fetcher.rate:,} clips are asked for in an hour (see --rate).", err=True)
    interrupted = False
    with progress_bar(wanted) as show:
        prefetch = Prefetch(
            fetcher, store, clips, wanted, window=2 * settings.workers, changed=lambda: show(prefetch.report())
        )
        try:
            prefetch.run()
        except KeyboardInterrupt:
            interrupted = True
            prefetch.cancel()
        finally:
            fetcher.close()
    result = {name: value for name, value in prefetch.report().items() if name not in ("state", "reason")}
    if as_json:
        click.echo(json.dumps({**result, "interrupted": interrupted}))
    else:
        say_result(result)
        if prefetch.failed:
            where = shlex.quote(str(settings.cache_dir))
            click.echo(f"Why, clip by clip: kinetics-fs failures list --cache-dir {where}")
        if interrupted:
            click.echo("Interrupted; the same command goes on from here.")
    if interrupted:
        return 130
    problem = prefetch.problem
    if problem and problem.kind is not FailureKind.BLOCKED:
        raise problem
    if problem:
        click.echo(f"Stopped: {problem.source}: {problem}. The same command goes on from here.", err=True)
    return DONE_IN_PART if prefetch.failed else 0


@contextmanager
def progress_bar(wanted: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar on a terminal; what is yielded moves it to where a `Prefetch.report` says. Silent elsewhere."""
    from tqdm import tqdm

    lock = threading.Lock()
    with tqdm(total=wanted, unit="clip", disable=None, file=sys.stderr, dynamic_ncols=True) as bar:

        def show(report: Mapping[str, Any]) -> None:
            with lock:
                if report["failed"]:
                    bar.set_postfix(failed=report["failed"], refresh=False)
                bar.update(report["fetched"] + report["already_here"] + report["failed"] - bar.n)

        yield show


def say_result(report: Mapping[str, Any]) -> None:
    """Prints how a `Prefetch` went."""
    click.echo(
        f"{report['fetched']:,} fetched, {report['already_here']:,} already here, {report['failed']:,} not to be had"
    )
    for kind, number in report["failures"].items():
        click.echo(f"  {number:,} {kind}")
