"""Messages and exit code of the commands that fetch many clips: `prefetch`, `jobs`, `failures retry` and `verify`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.prefetch import PrefetchResult
from kinetics_fs.util.text import count


def warn_of_rate(settings: Settings, clips: int) -> None:
    """Say so if not all clips can be requested within an hour."""
    from kinetics_fs.app import fetches_per_hour

    limit = fetches_per_hour(settings)
    if limit and clips > limit:
        click.echo(f"Requests at most {count(limit, 'clip')} per hour (see --max-fetches-per-hour).", err=True)


def print_fetched(result: PrefetchResult, cache: Path) -> None:
    """Print the result of a prefetch, and how to see more or to resume."""
    click.echo(f"{result.fetched:,} fetched, {result.already_cached:,} already cached, {result.failed:,} unavailable")
    for kind, clips in result.failures.items():
        click.echo(f"  {clips:,} {kind}")
    if result.failed:
        click.echo(f"To list the reasons by clip: kinetics-fs failures list --cache-dir {shlex.quote(str(cache))}")
    if result.interrupted:
        click.echo("Interrupted. Run the same command again to resume.")


def report_fetched(result: PrefetchResult, settings: Settings, as_json: bool) -> int:
    """Print the result of a prefetch, and return the exit code.

    Raises:
        FetchError: this machine or its configuration failed, so that no further clip was tried.
    """
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        print_fetched(result, settings.cache_dir)
    return fetched_exit_code(result)


def fetched_exit_code(result: PrefetchResult) -> int:
    """Return the exit code of a prefetch; say so if a source that blocks this address ended it.

    Raises:
        FetchError: this machine or its configuration failed, so that no further clip was tried.
    """
    if result.interrupted:
        return 130
    if result.problem and result.problem.kind is not FailureKind.BLOCKED:
        raise result.problem
    if result.problem:
        click.echo(
            f"Stopped: {result.problem.source}: {result.problem}. Run the same command again later to resume.", err=True
        )
    return DONE_IN_PART if result.failed else 0
