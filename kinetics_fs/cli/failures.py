"""`kinetics-fs failures`."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from kinetics_fs.catalog import Clip, parse_clip_name
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import json_option, open_output, selection_given, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind

if TYPE_CHECKING:
    from kinetics_fs.store import Failure, Store

R = TypeVar("R")

_REFUSALS_SHOWN = 3


def _kind_option(help: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    return click.option(
        "--kind",
        "kinds",
        type=click.Choice([str(kind) for kind in FailureKind]),
        multiple=True,
        help=help,
        callback=lambda context, option, values: tuple(FailureKind(value) for value in values),
    )


_of_kind = _kind_option("Only failures of this kind; repeatable.")
_csv_option = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")


@click.group("failures", cls=Group)
def command() -> None:
    """Show, retry, forget or share why clips could not be had."""


@command.command("list", short_help="List the remembered failures, the latest first.")
@with_settings("selection", "cache")
@_of_kind
@json_option
@_csv_option
def list_(settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool, as_csv: bool) -> None:
    """List the remembered failures, the latest first: all, or those of a selection if one is given.

    \b
    kinetics-fs failures list
    kinetics-fs failures list --kind gone --kind credentials --csv
    kinetics-fs failures list --release 400 --split validation --json
    """
    _check_format(as_json, as_csv)
    with _store(settings) as store:
        failures = _chosen(store, settings, kinds)
    if as_json:
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
        _print_csv(header, rows)
    elif failures:
        click.echo("\n".join(_table(failures)))
    else:
        click.echo("No such failures are remembered." if kinds or selection_given() else "No failures are remembered.")


@command.command("summary", short_help="Count the remembered failures by kind and reason.")
@with_settings("selection", "cache")
@_of_kind
@json_option
def summary(settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool) -> None:
    """Count the remembered failures by kind and reason: all, or those of a selection if one is given.

    Reasons count as one where only ids and numbers in them differ; these are shown as `…`.

    \b
    kinetics-fs failures summary
    kinetics-fs failures summary --release 400 --split validation --json
    """
    from kinetics_fs.store.coverage import FailureCounts

    tally = FailureCounts()
    with _store(settings) as store:
        for failure in _chosen(store, settings, kinds):
            tally.add(failure)
    if as_json:
        click.echo(json.dumps({"clips": tally.clips, "kinds": tally.as_json()}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(tally.lines()) if tally.clips else "No such failures are remembered.")


@command.command("report", short_help="Say before a training what is here, and what is not and why.")
@with_settings("selection", "cache")
@json_option
@_csv_option
def report(settings: Settings, as_json: bool, as_csv: bool) -> None:
    """Say before a training what of a selection is here, and what cannot be had and why.

    Asks the cache alone, not the network: of clips that were never tried nobody knows. With --csv: path, label, kind
    and reason of each clip that could not be had, to leave it out.

    \b
    kinetics-fs failures report --split train --split validation
    kinetics-fs failures report --release 400 --csv > missing.csv
    """
    from kinetics_fs.cli.rooms import catalog_of
    from kinetics_fs.store.coverage import Coverage, survey

    _check_format(as_json, as_csv)
    with catalog_of(settings) as catalog, _store(settings) as store:
        if as_csv:
            _print_csv(
                ["path", "label", "kind", "reason"],
                (
                    [f"{place.split}/{place.label}/{clip.name}", place.label, failure.kind, failure.reason]
                    for place, _, failures in survey(catalog, store)
                    for clip, failure in failures.items()
                ),
            )
            return
        found = Coverage(catalog, store)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(found.lines()))


@command.command("retry", short_help="Fetch clips that could not be had again, now.")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Try all of them.")
@with_settings("selection", "cache", "sources", "network", "archive")
@_of_kind
@json_option
def retry(
    keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool
) -> int:
    """Fetch clips again that could not be had, now, whatever time was to be left to them.

    Those that are named, or those of a selection, of a kind, or of both. CLIP is a file name, or its part before
    `.mp4`. Exits with 3 if some still cannot be had.

    \b
    kinetics-fs failures retry --kind blocked --kind transient
    kinetics-fs failures retry --split validation --class "surfing water"
    kinetics-fs failures retry -- -abcdefghij_000010_000020
    """
    from kinetics_fs.cli.fetching import fetch_clips

    clips = _clips(keys)
    if (keys and everything) or not (keys or everything or kinds or selection_given()):
        raise click.UsageError("name clips, give a selection or --kind, or else --all")
    with _store(settings) as store:
        failures = _chosen(store, settings, kinds, clips)

        def due() -> Iterator[Clip]:
            for failure in failures:
                store.failure_log.make_due(failure.clip)
                yield failure.clip

        return fetch_clips(due(), len(failures), store, settings, catalog=None, as_json=as_json)


@command.command("clear")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget all of them.")
@with_settings("cache")
@_of_kind
def clear(keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Forget failures, so that the next open tries again. CLIP is a file name, or its part before `.mp4`.

    With `--all` or `--kind blocked`, a source that is being left alone may be asked again at once, too: after a change
    of address or cookies, say.

    \b
    kinetics-fs failures clear --all
    kinetics-fs failures clear --kind blocked
    kinetics-fs failures clear -- -abcdefghij_000010_000020
    """
    clips = _clips(keys)
    if (keys and everything) or not (keys or everything or kinds):
        raise click.UsageError("name clips, or give --kind or --all")
    with _store(settings) as store:
        number = store.failure_log.forget(clips or None, kinds)
        sources = store.origins.forgive() if everything or FailureKind.BLOCKED in kinds else 0
    click.echo(f"{number:,} forgotten")
    if sources:
        click.echo("Sources that were left alone may be asked again.")


@command.command("export", short_help="Write the clips that nobody can have to a file.")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@with_settings("cache")
@_kind_option("Kind to write: gone, corrupt or credentials; repeatable.  [default: gone]")
def export(file: Path, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Write the clips that nobody can have to FILE, for others to import; `-` is standard output.

    By itself only what is `gone`: that alone is true everywhere. What a connection spoiled (`corrupt`) and what takes
    an account or another country (`credentials`) goes along if you name it; blocks, network trouble and faults of a
    machine say nothing of a clip, and never do.

    \b
    kinetics-fs failures export dead-clips.jsonl
    kinetics-fs failures export --kind gone --kind credentials - | gzip > dead-clips.jsonl.gz
    """
    from kinetics_fs.store import report_line

    wanted = _travelling(kinds)
    with _store(settings) as store:
        failures = sorted(store.failure_log.all(wanted), key=lambda failure: failure.key)
    with open_output(file) as stream:
        stream.writelines(f"{report_line(failure)}\n".encode() for failure in failures)
    click.echo(f"{len(failures):,} written", err=True)


@command.command("import", short_help="Take over which clips cannot be had from such a file.")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@with_settings("cache")
@_kind_option("Kind to read: gone, corrupt or credentials; repeatable.  [default: gone]")
@json_option
def import_(file: BinaryIO, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool) -> int:
    """Take over from FILE, which an export wrote, which clips cannot be had; `-` is standard input.

    What is newer here stays, and so does every clip that is here. Each is tried again when its time has come, counted
    from when it was last seen to fail. Lines that make no sense are refused, and told; then the exit code is 3.

    \b
    kinetics-fs failures import dead-clips.jsonl
    gunzip -c dead-clips.jsonl.gz | kinetics-fs failures import -
    """
    from kinetics_fs.store import FailureReport, RefusedLine, read_reports

    wanted = _travelling(kinds)
    counts = Counter[str]()
    refused: list[RefusedLine] = []

    def reports() -> Iterator[FailureReport]:
        for line in read_reports(file):
            if isinstance(line, RefusedLine):
                counts["refused"] += 1
                if len(refused) < _REFUSALS_SHOWN:
                    refused.append(line)
            elif line.kind in wanted:
                yield line
            else:
                counts["other_kind"] += 1

    with _store(settings) as store:
        taken = store.failure_log.import_reports(reports())
    if counts["refused"]:
        click.echo(f"kinetics-fs: {counts['refused']:,} lines were refused:", err=True)
        for line in refused:
            click.echo(f"  line {line.number:,}: {line.reason}", err=True)
    result = {
        "imported": taken.new,
        "known": taken.known,
        "clip_cached": taken.cached,
        "other_kind": counts["other_kind"],
        "refused": counts["refused"],
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{taken.new:,} imported, {taken.known:,} known as well here, {taken.cached:,} of clips that were had here,"
            f" {counts['other_kind']:,} of other kinds, {counts['refused']:,} refused"
        )
    return DONE_IN_PART if counts["refused"] else 0


# What commands share


def _store(settings: Settings) -> Store:
    from kinetics_fs.app import open_store

    return open_store(settings)


def _clips(keys: Sequence[str]) -> list[Clip]:
    clips = []
    for key in keys:
        clip = parse_clip_name(key.removesuffix(".mp4") + ".mp4")
        if clip is None:
            raise click.UsageError(f"{key!r} is not a clip: they are named <youtube id>_<start>_<end>")
        clips.append(clip)
    return clips


def _chosen(
    store: Store, settings: Settings, kinds: Collection[FailureKind], clips: Collection[Clip] = ()
) -> list[Failure]:
    """The remembered failures, the latest first: of these kinds, of these clips, of the selection, where given."""
    from kinetics_fs.cli.rooms import catalog_of

    failures = store.failure_log.all(kinds)
    if clips:
        named = set(clips)
        failures = (failure for failure in failures if failure.clip in named)
    if not selection_given():
        return list(failures)
    with catalog_of(settings) as catalog:
        return [failure for failure in failures if catalog.locate(failure.clip)]


def _travelling(kinds: Collection[FailureKind]) -> Collection[FailureKind]:
    """The kinds to write or read: those named, or else what goes along unasked."""
    from kinetics_fs.store import KINDS_SHARED_BY_DEFAULT, SHAREABLE_KINDS

    for kind in kinds:
        if kind not in SHAREABLE_KINDS:
            raise click.UsageError(f"--kind {kind} says nothing of a clip, only of a machine or its network")
    return kinds or KINDS_SHARED_BY_DEFAULT


def _check_format(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")


def _table(failures: Sequence[Failure]) -> Iterator[str]:
    now = time.time()
    width = max(5, *(len(f"{failure.attempts:,}") for failure in failures))
    yield f"{'clip':<25}  {'kind':<11}  {'tries':>{width}}  {'last try':<16}  {'next try':<16}  reason"
    for failure in failures:
        next_try = _local_time(failure.retry_at) if failure.retry_at > now else "when opened"
        source = f"{failure.source}: " if failure.source else ""
        yield (
            f"{failure.key:<25}  {failure.kind:<11}  {failure.attempts:>{width},}  {_local_time(failure.last_at):<16}"
            f"  {next_try:<16}  {source}{failure.reason}"
        )


def _print_csv(header: list[str], rows: Iterable[Sequence[object]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    sys.stdout.flush()


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
