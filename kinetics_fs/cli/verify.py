"""`kinetics-fs verify`."""

from __future__ import annotations

import contextlib
import json

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, selection_given, with_settings
from kinetics_fs.config import Settings


@click.command("verify", cls=Command, short_help="Check the clips in the cache against what was stored.")
@click.option("--decode", is_flag=True, help="Decode each clip, too: slow.")
@click.option("--repair", is_flag=True, help="Remove what is damaged, and fetch it again.")
@with_settings("selection", "cache", "sources", "network", "archive")
@json_option
def command(decode: bool, repair: bool, settings: Settings, as_json: bool) -> int:
    """Check that the clips in the cache have the bytes that were stored: all, or those of a selection if one is given.

    Each is compared with the size and the SHA-256 that it had when it was fetched. Mounts may go on meanwhile. Without
    --repair nothing is changed. Exits with 3 if clips are damaged or lost, and were not all fetched again.

    \b
    kinetics-fs verify
    kinetics-fs verify --split validation --decode
    kinetics-fs verify --repair
    """
    from kinetics_fs.app import make_fetcher, open_store
    from kinetics_fs.cli.fetching import fetch_with_progress
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.cli.verifying import Report, check

    with contextlib.ExitStack() as opened:
        catalog = opened.enter_context(catalog_of(settings)) if selection_given() else None
        store = opened.enter_context(open_store(settings))
        if repair:  # before anything is removed: whether it could be fetched again
            make_fetcher(settings, store, catalog.path if catalog else None).close()
        report = Report(repairing=repair)
        try:
            check(store, catalog, report, decode=decode)
        except KeyboardInterrupt:
            report.interrupted = True
        if report.dropped and not report.interrupted:
            report.fetched = fetch_with_progress(
                report.dropped, len(report.dropped), store, settings, catalog=catalog.path if catalog else None
            )
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        report.print(settings.cache_dir)
    return report.exit_code()
