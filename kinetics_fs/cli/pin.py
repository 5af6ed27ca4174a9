"""`kinetics-fs pin`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, selection_given, with_settings
from kinetics_fs.config import Settings

if TYPE_CHECKING:
    from kinetics_fs.catalog import Catalog, Directory
    from kinetics_fs.store import PinCounts, Store


@click.command("pin", cls=Command, short_help="Have clips stay in the cache, whatever else must go.")
@click.option("--list", "show", is_flag=True, help="Say what is pinned, by split and class, and pin nothing.")
@with_settings("selection", "cache")
@json_option
def command(show: bool, settings: Settings, as_json: bool) -> None:
    """Have the clips of a selection stay in the cache, whatever else must go to make room.

    Those that are here, and those that come later; nothing is fetched. Every mount and prefetch on the cache obeys at
    once. They count toward --cache-size as before: what does not fit beside them cannot be had.

    \b
    kinetics-fs pin --split validation
    kinetics-fs pin --class "surfing water" --class "springboard diving"
    kinetics-fs pin --list
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.cli.rooms import catalog_of

    if not show and not selection_given():
        raise click.UsageError("give a selection, as --split validation or --class LABEL, or --list")
    with catalog_of(settings) as catalog, open_store(settings) as store:
        if show:
            _print_list(catalog, store, as_json)
            return
        pinned = store.pins.add(entry.clip for entry in catalog.clips())
        total = store.pins.totals()
    if as_json:
        click.echo(json.dumps({**pinned.all._asdict(), "new": pinned.new, "total": total._asdict()}))
    else:
        click.echo(f"{counts_line(pinned.all)}; {pinned.new:,} of them were not pinned before")
    if settings.cache_size is not None and total.bytes > settings.cache_size:
        click.echo(
            f"kinetics-fs: the pinned clips that are here take {filesize.decimal(total.bytes)}, more than --cache-size"
            f" ({filesize.decimal(settings.cache_size)}): no other clip can be fetched; unpin some, or give more",
            err=True,
        )


def counts_line(counts: PinCounts, done: str = "pinned") -> str:
    """Counts for people."""
    return f"{counts.clips:,} clips {done}, {counts.cached:,} of them here ({filesize.decimal(counts.bytes)})"


def _print_list(catalog: Catalog, store: Store, as_json: bool) -> None:
    total = store.pins.totals()
    places = list(_places(catalog, store)) if total.clips else []
    if as_json:
        rows = [{"split": place.split, "label": place.label or "", **counts._asdict()} for place, counts in places]
        click.echo(json.dumps({"total": total._asdict(), "classes": rows}, indent=2, ensure_ascii=False))
        return
    if places:
        width = max(5, *(len(place.label or "") for place, _ in places))
        click.echo(f"{'split':<10}  {'class':<{width}}  {'pinned':>8}  {'here':>8}  {'size':>8}")
        for place, counts in places:
            click.echo(
                f"{place.split:<10}  {place.label or '':<{width}}  {counts.clips:>8,}  {counts.cached:>8,}"
                f"  {filesize.decimal(counts.bytes):>8}"
            )
    click.echo(f"All in all: {counts_line(total)}" if total.clips else "No clips are pinned.")


def _places(catalog: Catalog, store: Store) -> Iterator[tuple[Directory, PinCounts]]:
    """The classes of each split of which anything is pinned."""
    for split in catalog.splits():
        for place in catalog.classes(split):
            counts = store.pins.of([entry.clip.key for entry in catalog.entries(place)])
            if counts.clips:
                yield place, counts
