"""`kinetics-fs unpin`."""

from __future__ import annotations

import json

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import given_settings, json_option, selection_given, with_settings
from kinetics_fs.config import Settings, table


@click.command("unpin", cls=Command, short_help="Let clips go again when room is needed.")
@click.option("--all", "everything", is_flag=True, help="Unpin all that is pinned.")
@with_settings("selection", "cache")
@json_option
def command(everything: bool, settings: Settings, as_json: bool) -> None:
    """Let the clips of a selection go again when room is needed. They stay until then.

    \b
    kinetics-fs unpin --split validation --class "surfing water"
    kinetics-fs unpin --all
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.cli.pin import counts_line
    from kinetics_fs.cli.rooms import catalog_of

    # With --all only flags are in its way: a selection in the environment or the file is not meant for this command.
    chosen = (
        any(table()[name].about.group == "selection" for name in given_settings()) if everything else selection_given()
    )
    if everything == chosen:
        raise click.UsageError("give a selection, as --split validation or --class LABEL, or else --all")
    with open_store(settings) as store:
        if everything:
            counts = store.pins.remove_all()
        else:
            with catalog_of(settings) as catalog:
                counts = store.pins.remove(entry.clip for entry in catalog.clips())
    click.echo(json.dumps(counts._asdict()) if as_json else counts_line(counts, "unpinned"))
