"""`kinetics-fs shared verify` and `prune`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import WHOLE, json_option, selection_flags, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.shared.pruning import PruneResult
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

    if everything and click.get_current_context().get_parameter_source("sample") is not ParameterSource.DEFAULT:
        raise click.UsageError("cannot verify the store: --sample and --all exclude each other; give one of them")
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
    if result.problem is not None:
        raise result.problem
    return DONE_IN_PART if result.damaged or result.unreadable else 0


def _print_check(check: SharedCheck) -> None:
    for one in check.first_damaged[:_DAMAGED_SHOWN]:
        click.echo(f"{one.clip.key:<25}  {one.profile:<16}  {one.reason}")
    if check.damaged > _DAMAGED_SHOWN:
        click.echo(f"and {check.damaged - _DAMAGED_SHOWN:,} more")
    of = f" of {check.listed:,}" if check.total is not None else ""
    click.echo(
        f"{count(check.verified, 'clip')}{of} verified, {filesize.decimal(check.bytes)}: {check.damaged:,} damaged"
    )
    if check.unreadable:
        click.echo(f"{count(check.unreadable, 'clip')} could not be read: the store did not answer")
    if check.deleted:
        fills = f", and {count(check.forgotten_fills, 'completion record')} of fills" if check.forgotten_fills else ""
        click.echo(f"{count(check.deleted, 'clip')} deleted{fills}")
    elif check.damaged:
        click.echo("To delete them, so that they are fetched again, run the same command with --repair.")
    if check.interrupted:
        click.echo("Interrupted.")


@click.command("prune", cls=Command, short_help="Delete clips and left-over objects from a shared store.")
@click.option("--all", "everything", is_flag=True, help="Delete all clips of the release.")
@click.option(
    "--profile",
    "profiles",
    metavar="NAME",
    multiple=True,
    help="Profile of the clips to delete, from kinetics-fs shared status. Repeatable.  [default: all profiles]",
)
@click.option("--yes", is_flag=True, help="Delete the objects. Without this, they are only counted.")
@with_settings("selection", "cache", "cut", "--shared")
@json_option
def prune(everything: bool, profiles: tuple[str, ...], yes: bool, settings: Settings, as_json: bool) -> int:
    """Delete the clips of a selection from a shared store, and objects that dead processes have left in it.

    Without --yes, nothing is deleted: the command prints how many objects would be. Clips that are younger than 7 days
    stay, by the clock of the store. Only a selection on the command line counts, not one in the environment or in the
    configuration file. Without a selection, --profile and --all, no clip is deleted: only leases that are over,
    failures whose time to retry passed a month ago, and objects with which machines tried the store.

    Machines that need a deleted clip fetch it again. The completion records of archives that may have had the clips are
    deleted, too, so that the next fill reads these archives again.

    \b
    kinetics-fs shared prune --shared s3://bucket/kinetics
    kinetics-fs shared prune --shared s3://bucket/kinetics --class "surfing water" --yes
    kinetics-fs shared prune --shared s3://bucket/kinetics --profile 0123456789abcdef --yes
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.shared.store import is_profile

    narrowed = bool(selection_flags() - WHOLE)
    if everything and narrowed:
        raise click.UsageError("cannot prune: a selection and --all exclude each other; give one of them")
    for profile in profiles:
        if not is_profile(profile):
            raise click.UsageError(
                f"cannot prune the profile {profile!r}: it is not the name of one; kinetics-fs shared status lists them"
            )
    if not narrowed:  # a selection in the environment or in the file is meant for mounts
        settings = settings.with_values(split=(), classes=(), max_samples=None, shuffle=False, available=False)
    selection = narrowed or everything
    with open_library(settings, whole_cache=not (selection or profiles)) as library, ProgressBars() as bars:
        bar = bars.add("listing", "clips", visible=False)
        result = library.shared.prune(
            selection=selection,
            profiles=profiles,
            delete=yes,
            on_progress=lambda now: bar.show(now.listed, None, notes=[f"{now.clips:,} chosen"]),
        )
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        _print_pruned(result)
    return 130 if result.interrupted else 0


def _print_pruned(result: PruneResult) -> None:
    done = "deleted" if result.deleted else "would be deleted"
    click.echo(f"{count(result.clips, 'clip')}, {filesize.decimal(result.bytes)}, {done}")
    if result.young:
        click.echo(f"  {count(result.young, 'clip')} younger than 7 days stay{'s' if result.young == 1 else ''}")
    for number, noun in (
        (result.fills, "completion record"),
        (result.leases, "lease"),
        (result.failures, "failure"),
        (result.probes, "probe"),
    ):
        if number:
            click.echo(f"  {count(number, noun)} {done}")
    if result.interrupted:
        click.echo("Interrupted. Run the same command again to resume.", err=True)
    elif not result.deleted and result.clips + result.leases + result.failures + result.probes:
        click.echo("Run the same command with --yes to delete them.")
