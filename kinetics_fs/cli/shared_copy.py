"""`kinetics-fs shared sync` and `import`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, selection_given, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.shared.sync import SyncResult


@click.command("sync", cls=Command, short_help="Upload the cached clips that a shared store lacks.")
@click.option("--dry-run", is_flag=True, help="Only count the clips.")
@with_settings("selection", "cache", "cut", "--shared", "--shared-write")
@json_option
def sync(dry_run: bool, settings: Settings, as_json: bool) -> int:
    """Upload the cached clips that a shared store lacks: all clips, or those of a selection if you give one.

    Run it after an outage of the store, or after `kinetics-fs status` shows that a full queue dropped clips. It uploads
    clips as their source has them, and clips that were cut with the present settings. Without a selection, it also
    uploads all that mounts have queued. You can interrupt or kill the command and run it again: it resumes. Exits with
    3 if some clips are damaged or too large.

    \b
    kinetics-fs shared sync --shared s3://bucket/kinetics
    kinetics-fs shared sync --shared /lustre/project/kinetics --split validation --dry-run
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    selection = selection_given()
    with open_library(settings, whole_cache=not selection) as library, ProgressBars() as bars:
        result = library.shared.sync(selection=selection, dry_run=dry_run, on_progress=add_sync(bars))
    if as_json:
        click.echo(json.dumps(result.to_json()))
    elif dry_run:
        click.echo(
            f"{count(result.to_upload, 'clip')}, {filesize.decimal(result.to_upload_bytes)}, would be uploaded;"
            f" {result.already_stored:,} stored already"
        )
    else:
        print_sync(result)
    if result.problem is not None:
        raise result.problem
    if result.interrupted:
        return 130
    return 0 if result.complete else DONE_IN_PART


def add_sync(bars: ProgressBars) -> Callable[[SyncResult], object]:
    """Add bars for a sync, and return the function that moves them."""
    listing, uploading = bars.add("listing", "clips", visible=False), bars.add("uploading", "clips", visible=False)

    def show(result: SyncResult) -> None:
        if result.done:
            uploading.show(result.done, result.to_upload, size=result.bytes)
        else:
            listing.show(result.listed, None)

    return show


def print_sync(result: SyncResult) -> None:
    """Print the result of a sync."""
    click.echo(
        f"{count(result.uploaded, 'clip')} uploaded, {filesize.decimal(result.bytes)}; {result.already_stored:,} stored"
        f" already, {result.evicted:,} evicted meanwhile, {result.refused:,} refused"
    )
    if result.interrupted:
        click.echo("Interrupted. Run the same command again to resume.", err=True)
