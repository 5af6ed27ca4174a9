"""`kinetics-fs verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, selection_given, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.api import VerifyResult
    from kinetics_fs.store.repair import CacheCheck


@click.command("verify", cls=Command, short_help="Verify the cached clips, and repair damaged ones.")
@click.option("--decode", is_flag=True, help="Also decode each clip. This is slow.")
@click.option("--repair", is_flag=True, help="Remove damaged clips and fetch them again.")
@with_settings("selection", "cache", "limits", "shared", "cut", "sources", "network", "archive")
@json_option
def command(decode: bool, repair: bool, settings: Settings, as_json: bool) -> int:
    """Verify that cached clips have the bytes that were stored: all clips, or those of a selection if you give one.

    Each clip is compared with the size and the SHA-256 that it had when it was fetched. Mounts can stay in use
    meanwhile. Without --repair no clip is changed. The command also measures clips whose duration is unknown, because
    they were stored with --verify none. Exits with 3 if clips are damaged or lost, and were not all fetched
    again. With --shared, a clip that the shared store has is fetched from there.

    \b
    kinetics-fs verify
    kinetics-fs verify --split validation --decode
    kinetics-fs verify --repair
    """
    from kinetics_fs.cli.fetching import fetched_exit_code
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    whole_cache = not selection_given()
    with open_library(settings, whole_cache=whole_cache) as library, ProgressBars() as bars:
        bar = bars.add("verifying", "bytes")

        def show(check: CacheCheck) -> None:
            bar.show(check.bytes, check.total_bytes, notes=[f"{len(check.bad):,} bad" if check.bad else ""])

        result = library.verify(
            decode=decode,
            repair=repair,
            whole_cache=whole_cache,
            on_progress=show,
            on_fetch_progress=bars.add_prefetch(visible=False),
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print(result, settings.cache_dir)
    if result.check.interrupted:
        return 130
    fetched = fetched_exit_code(result.fetched) if result.fetched else 0
    return fetched or (DONE_IN_PART if result.check.unrepaired else 0)


def _print(result: VerifyResult, cache: Path) -> None:
    from kinetics_fs.cli.fetching import print_fetched
    from kinetics_fs.store import Condition, one_line

    check = result.check
    for verdict in check.bad:
        click.echo(f"{verdict.clip.key:<25}  {verdict.condition:<10}  {verdict.reason}")
    for path in check.unknown_files:
        click.echo(f"unknown file: {one_line(str(path))}")
    conditions = [condition for condition in Condition if check.counts[condition] or condition is Condition.GOOD]
    numbers = ", ".join(f"{check.counts[condition]:,} {condition}" for condition in conditions)
    click.echo(f"{count(check.counts.total(), 'clip')}, {filesize.decimal(check.bytes)}: {numbers}")
    if check.unknown_files:
        click.echo(f"{count(len(check.unknown_files), 'unknown file')} (of no clip; wasted space)")
    if check.repair and (check.bad or check.unknown_files):
        click.echo(
            f"{count(len(check.removed), 'clip')} and {count(check.unknown_files_removed, 'unknown file')} removed"
        )
    elif check.bad:
        click.echo("To fetch the bad clips again, run the same command with --repair.")
    if result.fetched:
        print_fetched(result.fetched, cache)
    if check.interrupted:
        click.echo("Interrupted.")
        if check.removed:
            click.echo("Removed clips are fetched when they are opened, or by kinetics-fs prefetch.")
