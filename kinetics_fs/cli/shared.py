"""`kinetics-fs shared`."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.cli.shared_copy import import_, sync
from kinetics_fs.cli.shared_upkeep import prune, verify
from kinetics_fs.config import Settings
from kinetics_fs.errors import StoreError
from kinetics_fs.util.text import count, duration

if TYPE_CHECKING:
    from kinetics_fs.shared.leases import LeaseState
    from kinetics_fs.shared.store import Capabilities
    from kinetics_fs.shared.summary import GroupBudget, StoreContent, StoreSummary
    from kinetics_fs.shared.upload_queue import QueueStatus

_LEASES_SHOWN = 20


@click.group("shared", cls=Group, short_help="Create, check and fill a store of clips that several machines use.")
def command() -> None:
    """Create, check, fill and prune a store of clips that several machines use.

    The store is a bucket, or a folder on a shared filesystem. Mounts and commands use it with --shared.

    \b
    kinetics-fs shared init s3://bucket/kinetics
    kinetics-fs mount --shared s3://bucket/kinetics /mnt/kinetics
    kinetics-fs shared status --shared s3://bucket/kinetics
    """


@command.command("init", short_help="Create a shared store in an empty place.")
@click.argument("address", metavar="URL|PATH")
def init(address: str) -> None:
    """Create a shared store in an empty bucket, prefix or folder, and print what the store can do.

    URL|PATH is s3://BUCKET/PREFIX, gs:// or az:// (extra shared), or a folder on a shared filesystem, which is created
    if its parent exists. Credentials and endpoints come from the environment, as for other programs of the cloud. If
    the place is a store already, nothing changes.

    Files in a folder get the permissions of the folder, whatever the umask of the process that writes them. So a folder
    of mode 2775 is a store for all users of its group.

    \b
    kinetics-fs shared init s3://bucket/kinetics
    kinetics-fs shared init /lustre/project/kinetics
    """
    from kinetics_fs.shared import create_store

    path = str(Path(address).absolute()) if "://" not in address else address
    store, is_new = create_store(path)
    click.echo(f"{store.backend.address} {'is a shared store now' if is_new else 'is a shared store already'}")
    _print_capabilities(store.probe())
    if "://" not in address:
        _print_permissions(Path(path))


def _print_capabilities(capabilities: Capabilities) -> None:
    if not capabilities.can_write:
        click.echo(f"  writing             no: {capabilities.reason}")
    elif capabilities.has_conditional_writes:
        click.echo("  conditional writes  yes: machines share leases and the budgets of sources")
    else:
        click.echo(f"  conditional writes  no: {capabilities.reason}")
        click.echo("                      clips stay correct; machines may fetch a clip more than once")


def _print_permissions(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    writers = "all users" if mode & 0o002 else "its group" if mode & 0o020 else "only its owner"
    click.echo(f"  permissions         mode {mode:04o}: {writers} can write")
    if not mode & 0o022:
        path = shlex.quote(str(folder))
        click.echo(
            f"                      for a group: chgrp -R GROUP {path} && chmod -R g+rwX {path} && chmod g+s {path}"
        )


@command.command("status", short_help="Show what a shared store has, and which machines use it.")
@click.option("--quick", is_flag=True, help="Do not list the clips, which takes a request for each 1,000 of them.")
@with_settings("cache", "--shared")
@json_option
def status(quick: bool, settings: Settings, as_json: bool) -> None:
    """Show the clips of a shared store by profile, the leases in force, the budgets, and the uploads of this cache.

    The profile says how the bytes of clips were made: `source` (as an archive or a folder has them), or a digest of the
    settings with which they were cut. A lease says which machine fetches a clip or reads an archive.

    \b
    kinetics-fs shared status --shared s3://bucket/kinetics
    kinetics-fs shared status --shared /lustre/project/kinetics --quick --json
    """
    from kinetics_fs.api import Library
    from kinetics_fs.cli.progress import ProgressBars

    with Library(settings) as library, ProgressBars() as bars:
        bar = bars.add("listing", "clips", visible=False)

        def show(content: StoreContent) -> None:
            bar.show(content.clips, None, size=content.bytes)

        summary = library.shared.status(quick=quick, on_progress=show)
        try:
            uploads = library.shared.uploads()
        except StoreError as error:  # of this machine, not of the store
            click.echo(f"kinetics-fs: {error}", err=True)
            uploads = None
    if as_json:
        queue = uploads and uploads._asdict()
        click.echo(json.dumps({**summary.to_json(), "uploads": queue}, indent=2, ensure_ascii=False))
    else:
        _print_summary(summary, uploads)


def _print_summary(summary: StoreSummary, uploads: QueueStatus | None) -> None:
    click.echo(summary.address)
    written_by = "" if summary.can_use else " (a newer version of kinetics-fs writes to it: update this one)"
    click.echo(f"  format              readers {summary.format.reader}, writers {summary.format.writer}{written_by}")
    _print_capabilities(summary.capabilities)
    if (content := summary.content) is not None:
        click.echo(f"  clips               {content.clips:,}, {filesize.decimal(content.bytes)}")
        for profile, totals in sorted(content.profiles.items()):
            click.echo(f"    {profile:<16}  {totals.clips:,}, {filesize.decimal(totals.bytes)}")
        click.echo(f"  gone                {count(content.gone, 'clip')}")
        click.echo(f"  archives            {count(content.indexes, 'index')}, {content.fills:,} filled")
    click.echo(f"  leases              {len(summary.leases):,} in force, {summary.expired_leases:,} over")
    for lease in summary.leases[:_LEASES_SHOWN]:
        click.echo(f"    {_describe_lease(lease)}")
    if len(summary.leases) > _LEASES_SHOWN:
        click.echo(f"    and {len(summary.leases) - _LEASES_SHOWN:,} more")
    for budget in summary.budgets:
        click.echo(f"  budget              {_describe_budget(budget)}")
    for text in summary.damaged:
        click.echo(f"  damaged             {text}")
    if uploads is not None:
        click.echo(f"  uploads             {_describe_uploads(uploads)}")


def _describe_lease(lease: LeaseState) -> str:
    left = f"{max(0.0, lease.ttl - lease.age):.0f} s left"
    if lease.failure is not None:
        return f"{lease.name}: {lease.owner} failed ({lease.failure.reason}), {left}"
    return f"{lease.name}: {lease.owner}, {left} unless it is renewed"


def _describe_budget(one: GroupBudget) -> str:
    budget = one.budget
    text = f"{budget.source}, rate group {one.group}: {budget.used:,} used in the last hour"
    text += f" by {count(budget.nodes or 0, 'machine')}"
    if one.blocked_for is None:
        return text
    return f"{text}; blocked for another {duration(one.blocked_for)}: {budget.reason}"


def _describe_uploads(queue: QueueStatus) -> str:
    age = f", the oldest for {duration(queue.oldest)}" if queue.clips else ""
    dropped = f"; dropped: {queue.dropped:,} (full), {queue.evicted:,} (evicted), {queue.refused:,} (refused)"
    return f"{count(queue.clips, 'clip')} of this cache wait{'s' if queue.clips == 1 else ''}{age}{dropped}"


command.add_command(verify)
command.add_command(prune)
command.add_command(sync)
command.add_command(import_)
