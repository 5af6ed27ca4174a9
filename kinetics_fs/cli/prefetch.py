"""`kinetics-fs prefetch`."""

from __future__ import annotations

import click

from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.settings import Settings


@click.command("prefetch")
@with_settings("selection", "store", "fetch", "archive")
@json_option
def command(settings: Settings, as_json: bool) -> int:
    """Fetch the clips of a selection into the cache.

    May be interrupted: what is there stays, and the next run goes on. A mount on the same cache sees each clip as it
    arrives, and its own readers go first. Exits with 3 if some clips could not be had.

    \b
    kinetics-fs prefetch --split validation --class "surfing water" --class "springboard diving"
    kinetics-fs prefetch --split train --max-samples 1000 --shuffle --seed 1
    """
    from kinetics_fs.cli.fetching import fetch_clips
    from kinetics_fs.cli.rooms import catalog_of, store_of

    with catalog_of(settings) as catalog, store_of(settings) as store:
        clips = (entry.clip for entry in catalog.clips())
        return fetch_clips(clips, catalog.clip_count, store, settings, catalog=catalog.path, as_json=as_json)
