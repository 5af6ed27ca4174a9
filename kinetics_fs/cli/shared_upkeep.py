"""`kinetics-fs shared verify` and `prune`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.shared.verification import SharedCheck

_DAMAGED_SHOWN = 100


@click.command("verify", cls=Command, short_help="Verify the clips in a shared store.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of clips to verify, at random.",
)
@click.option("--all", "everything", is_flag=True, help="Verify all clips, of all profiles.")
@click.option("--decode", is_flag=True, help="Also decode each clip. This is slow.")
@click.option("--repair", is_flag=True, help="Delete damaged clips, so that machines fetch and upload them again.")
@with_settings("cache", "--shared", "--release", "--annotations")
@json_option
def verify(sample: int, everything: bool, decode: bool, repair: bool, settings: Settings, as_json: bool) -> int:
    """Download clips from a shared store, and verify that they are what their writers stored.

    Each clip is compared with its size and its SHA-256, and its container is read, as a mount does before it uses a
    clip of the store. Without --repair, nothing is changed. With --repair, the completion records of archives that had
    damaged clips are deleted, too, so that the next fill reads these archives again. Exits with 3 if clips are damaged,
    or could not be read.

    \b
    kinetics-fs shared verify --shared s3://bucket/kinetics
    kinetics-fs shared verify --shared /lustre/project/kinetics --all --repair
    """
    from kinetics_fs.api import Library
    from kinetics_fs.cli.progress import ProgressBars

    with Library(settings) as library, ProgressBars() as bars:
        listing, verifying = bars.add("listing", "clips", visible=False), bars.add("verifying", "clips", visible=False)

        def show(check: SharedCheck) -> None:
            if check.verified:
                notes = [f"{check.damaged:,} damaged" if check.damaged else ""]
                verifying.show(check.verified, check.total, size=check.bytes, notes=notes)
            else:
                listing.show(check.listed, None)

        result = library.shared.verify(
            sample=None if everything else sample, decode=decode, repair=repair, on_progress=show
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print_check(result)
    if result.interrupted:
        return 130
    return DONE_IN_PART if result.damaged or result.unreadable else 0


def _print_check(check: SharedCheck) -> None:
    for one in check.first_damaged[:_DAMAGED_SHOWN]:
        click.echo(f"{one.clip.key:<25}  {one.profile:<16}  {one.reason}")
    if check.damaged > _DAMAGED_SHOWN:
        click.echo(f"and {check.damaged - _DAMAGED_SHOWN:,} more")
    of = f" of {check.listed:,}" if check.total is not None else ""
    click.echo(f"{check.verified:,}{of} clips verified, {filesize.decimal(check.bytes)}: {check.damaged:,} damaged")
    if check.unreadable:
        click.echo(f"{count(check.unreadable, 'clip')} could not be read: the store did not answer")
    if check.deleted:
        fills = f", and {count(check.forgotten_fills, 'completion record')} of fills" if check.forgotten_fills else ""
        click.echo(f"{count(check.deleted, 'clip')} deleted{fills}")
    elif check.damaged:
        click.echo("To delete them, so that they are fetched again, run the same command with --repair.")
    if check.interrupted:
        click.echo("Interrupted.")
