"""`kinetics-fs failures`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from kinetics_fs.catalog import Clip, parse_clip_name
from kinetics_fs.cli.command import Group
from kinetics_fs.cli.failure_lists import export, import_
from kinetics_fs.cli.failure_table import failure_table, print_failures_csv
from kinetics_fs.cli.options import (
    check_format,
    csv_option,
    json_option,
    kind_option,
    selection_given,
    with_settings,
)
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind, SharedStoreError
from kinetics_fs.util.text import count

_WHICH_CLIPS = "cannot {} failures: none are chosen; {}"


_filter_by_kind = kind_option(f"Kind of failure to include: {', '.join(FailureKind)}. Repeatable.  [default: all]")


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

    A source that begins with `imported` means that another machine found the failure: it comes from `failures import`,
    or from the shared store.

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
        print_failures_csv(failures)
    elif not failures:
        click.echo("No failures are remembered." if whole_cache and not kinds else "No such failures are remembered.")
    else:
        click.echo("\n".join(failure_lines(FailureCounts.of(failures)) if summarize else failure_table(failures)))


@command.command("retry", short_help="Fetch clips again that failed.")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Retry all failures.")
@with_settings("selection", "cache", "limits", "shared", "cut", "sources", "network", "archive")
@_filter_by_kind
@json_option
def retry(
    keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool
) -> int:
    """Fetch clips again that failed, without waiting until they are due.

    Name the clips, or give a selection, a kind of failure, or both. CLIP is a file name, or its part before `.mp4`.
    With --shared, their failures in the shared store are forgotten first; a CLIP that you name is also fetched if only
    the shared store has a failure of it. Exits with 3 if some clips fail again.

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
        failed = [failure.clip for failure in library.failures(kinds, clips, whole_cache=whole_cache)]
        if settings.shared is not None and clips and not kinds:
            with contextlib.suppress(SharedStoreError):  # which the retry reports
                failed += [clip for clip in library.shared.gone(clips) if clip not in failed]
        warn_of_rate(settings, len(failed))
        with ProgressBars() as bars:
            result = library.retry(failed, whole_cache=whole_cache, on_progress=bars.add_prefetch())
    return report_fetched(result, settings, as_json)


@command.command("clear", short_help="Forget failures.")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget all failures.")
@with_settings("cache", "--shared", "--rate-group")
@_filter_by_kind
def clear(keys: tuple[str, ...], everything: bool, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Forget failures, so that the next open retries the clip. CLIP is a file name, or its part before `.mp4`.

    With --all alone, or with --kind blocked, sources that kinetics-fs has stopped using may be used again at once. Do
    this after a change of the address or of the cookies.

    With --shared, the failures that machines have shared are forgotten, too, and blocked sources may be used again by
    all machines of the rate group. Other machines remember what they learned before until it is due: run the command
    there as well.

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
        forgotten = library.forget_failures(clips or None, kinds)
    of_sources = set(kinds) == {FailureKind.BLOCKED}  # no clip is remembered as blocked, only its source
    if forgotten.unblocked_sources:
        click.echo(f"{count(forgotten.unblocked_sources, 'blocked source')} may be used again")
    if forgotten.unblocked_for_all:
        sources = count(forgotten.unblocked_for_all, "blocked source")
        click.echo(f"{sources} may be used again by the machines of the rate group {settings.rate_group}")
    unblocked = forgotten.unblocked_sources or forgotten.unblocked_for_all
    if of_sources and not unblocked:
        click.echo("No source is blocked.")
    if forgotten.failures or not (unblocked or of_sources):
        click.echo(f"{count(forgotten.failures, 'failure')} forgotten")
    if settings.shared is not None and not of_sources:
        click.echo(f"{count(forgotten.shared_failures, 'failure')} of the shared store forgotten")


command.add_command(export)
command.add_command(import_)


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
