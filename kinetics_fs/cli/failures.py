"""`kinetics-fs failures`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from kinetics_fs.catalog import Clip, parse_clip_name
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import (
    check_format,
    csv_option,
    json_option,
    open_output,
    print_csv,
    selection_given,
    with_settings,
)
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind

if TYPE_CHECKING:
    from kinetics_fs.store import Failure

R = TypeVar("R")

_WHICH_CLIPS = "cannot {} failures: none are chosen; {}"


def _kind_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    return click.option(
        "--kind",
        "kinds",
        type=click.Choice([str(kind) for kind in FailureKind]),
        metavar="KIND",
        multiple=True,
        help=help,
        callback=lambda context, option, values: tuple(FailureKind(value) for value in values),
    )


_filter_by_kind = _kind_option(f"Kind of failure to include: {', '.join(FailureKind)}. Repeatable.  [default: all]")


@click.group("failures", cls=Group, short_help="List, retry, forget or share the failures of clips.")
def command() -> None:
    """List, retry, forget or share the failures of clips.

    kinetics-fs remembers why a clip could not be fetched, and when to retry it.
    """


@command.command("list", short_help="List the remembered failures, the latest first.")
@click.option("--summary", "summarize", is_flag=True, help="Count the failures by kind and reason instead.")
@with_settings("selection", "cache")
@_filter_by_kind
@json_option
@csv_option
def list_(summarize: bool, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool, as_csv: bool) -> None:
    """List the remembered failures, the latest first: those of a selection, or all if no selection is given.

    With --summary, reasons that differ only in ids and numbers count as one; … replaces the differences.

    \b
    kinetics-fs failures list
    kinetics-fs failures list --kind gone --kind credentials --csv
    kinetics-fs failures list --summary --release 400 --split validation
    """
    from kinetics_fs.cli.coverage import failure_lines
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.store.coverage import FailureCounts

    check_format(as_json, as_csv)
    if summarize and as_csv:
        raise click.UsageError(
            "cannot print a summary as CSV: --summary and --csv exclude each other; give one of them"
        )
    whole_cache = not selection_given()
    with open_library(settings, whole_cache=whole_cache) as library:
        failures = list(library.failures(kinds, whole_cache=whole_cache))
    if summarize and as_json:
        counts = FailureCounts.of(failures)
        click.echo(json.dumps({"clips": counts.clips, "kinds": counts.to_json()}, indent=2, ensure_ascii=False))
    elif as_json:
        click.echo(json.dumps([asdict(failure) for failure in failures], indent=2, ensure_ascii=False))
    elif as_csv:
        # The columns of .kinetics/failures.csv, with the clip in place of its paths.
        header = ["clip", "kind", "reason", "source", "attempts", "first", "last", "retry_after"]
        rows = (
            [
                *(failure.key, failure.kind, failure.reason, failure.source, failure.attempts),
                *(_timestamp(at) for at in (failure.first_at, failure.last_at, failure.retry_at)),
            ]
            for failure in failures
        )
        print_csv(header, rows)
    elif not failures:
        click.echo("No failures are remembered." if whole_cache and not kinds else "No such failures are remembered.")
    else:
        click.echo("\n".join(failure_lines(FailureCounts.of(failures)) if summarize else _table(failures)))


@command.command("retry", short_help="Fetch clips again that failed.")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Retry all failures.")
@with_settings("selection", "cache", "sources", "network", "archive")
@_filter_by_kind
@json_option
def retry(
    keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool
) -> int:
    """Fetch clips again that failed, without waiting until they are due.

    Name the clips, or give a selection, a kind of failure, or both. CLIP is a file name, or its part before `.mp4`.
    Exits with 3 if some clips fail again.

    \b
    kinetics-fs failures retry --kind blocked --kind transient
    kinetics-fs failures retry --split validation --class "surfing water"
    kinetics-fs failures retry -- -abcdefghij_000010_000020
    """
    from kinetics_fs.cli.fetching import report_fetched, warn_of_rate
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    clips = _parse_clips(keys)
    if (keys and everything) or not (keys or everything or kinds or selection_given()):
        raise click.UsageError(_WHICH_CLIPS.format("retry", "name clips, give a selection or --kind, or give --all"))
    whole_cache = not selection_given()
    with open_library(settings, whole_cache=whole_cache) as library:
        failures = list(library.failures(kinds, clips, whole_cache=whole_cache))
        warn_of_rate(settings, len(failures))
        with ProgressBars() as bars:
            result = library.retry(failures, whole_cache=whole_cache, on_progress=bars.add_prefetch_bar())
    return report_fetched(result, settings, as_json)


@command.command("clear", short_help="Forget failures.")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget all failures.")
@with_settings("cache")
@_filter_by_kind
def clear(keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Forget failures, so that the next open retries the clip. CLIP is a file name, or its part before `.mp4`.

    With --all or --kind blocked, sources that kinetics-fs has stopped using may be used again at once. Do this after a
    change of the address or of the cookies.

    \b
    kinetics-fs failures clear --all
    kinetics-fs failures clear --kind blocked
    kinetics-fs failures clear -- -abcdefghij_000010_000020
    """
    from kinetics_fs.cli.library import open_library

    clips = _parse_clips(keys)
    if (keys and everything) or not (keys or everything or kinds):
        raise click.UsageError(_WHICH_CLIPS.format("clear", "name clips, or give --kind or --all"))
    with open_library(settings, whole_cache=True) as library:
        number = library.store.failures.forget(clips or None, kinds)
        sources = library.store.throttle.reset_blocks() if everything or FailureKind.BLOCKED in kinds else 0
    click.echo(f"{number:,} {'failure' if number == 1 else 'failures'} forgotten")
    if sources:
        click.echo("Sources that were blocked may be used again.")


@command.command("export", short_help="Write a list of dead clips to a file.")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@with_settings("cache")
@_kind_option("Kind of failure to write: gone, corrupt or credentials. Repeatable.  [default: gone]")
def export(file: Path, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Write the clips that failed to FILE, for other caches to import; `-` is standard output.

    By default, the list contains only clips that are `gone`, because that is true everywhere. If you name the kinds,
    it also contains clips that arrived damaged (`corrupt`), or that need an account or another country
    (`credentials`). Other kinds describe a network or a machine rather than a clip, and cannot be exported.

    \b
    kinetics-fs failures export dead-clips.jsonl
    kinetics-fs failures export --kind gone --kind credentials - | gzip > dead-clips.jsonl.gz
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library, open_output(file) as stream:
        number = library.export_failures(stream, kinds)
    click.echo(f"{number:,} failures written", err=True)


@command.command("import", short_help="Read a list of dead clips from a file.")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@with_settings("cache")
@_kind_option("Kind of failure to read: gone, corrupt or credentials. Repeatable.  [default: gone]")
@json_option
def import_(file: BinaryIO, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool) -> int:
    """Read the clips that failed elsewhere from FILE, which an export wrote; `-` is standard input.

    Failures that this cache remembers with a later date stay, and so do cached clips. An imported failure is due for a
    retry when it would have been in the cache that exported it. Invalid lines are skipped and listed; the exit code is
    then 3.

    \b
    kinetics-fs failures import dead-clips.jsonl
    gunzip -c dead-clips.jsonl.gz | kinetics-fs failures import -
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library:
        result = library.import_failures(file, kinds)
    if result.invalid:
        click.echo(f"kinetics-fs: {result.invalid:,} invalid lines were skipped:", err=True)
        for line in result.first_invalid:
            click.echo(f"  line {line.number:,}: {line.reason}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        click.echo(
            f"{result.imported:,} imported; skipped: {result.known:,} already known, {result.cached:,} cached,"
            f" {result.other_kind:,} of other kinds, {result.invalid:,} invalid"
        )
    return DONE_IN_PART if result.invalid else 0


# What commands share


def _parse_clips(keys: Sequence[str]) -> list[Clip]:
    clips = []
    for key in keys:
        clip = parse_clip_name(key.removesuffix(".mp4") + ".mp4")
        if clip is None:
            raise click.UsageError(
                f"cannot find the clip {key!r}: it has no valid name; write it as <YouTube id>_<start>_<end>"
            )
        clips.append(clip)
    return clips


def _table(failures: Sequence[Failure]) -> Iterator[str]:
    now = time.time()
    width = max(5, *(len(f"{failure.attempts:,}") for failure in failures))
    yield f"{'clip':<25}  {'kind':<11}  {'tries':>{width}}  {'last failure':<16}  {'next retry':<16}  reason"
    for failure in failures:
        next_retry = _local_time(failure.retry_at) if failure.retry_at > now else "when opened"
        source = f"{failure.source}: " if failure.source else ""
        yield (
            f"{failure.key:<25}  {failure.kind:<11}  {failure.attempts:>{width},}  {_local_time(failure.last_at):<16}"
            f"  {next_retry:<16}  {source}{failure.reason}"
        )


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
