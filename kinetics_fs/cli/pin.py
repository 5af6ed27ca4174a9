"""`kinetics-fs pin`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import WHOLE, json_option, selection_flags, selection_narrowed, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.store import PinCounts

_NO_SELECTION = "cannot change pins: no selection is given; give one, such as --split validation or --class LABEL{}"


@click.group("pin", cls=Group, short_help="Exempt clips from eviction.")
def command() -> None:
    """Exempt clips from eviction, whether they are cached already or come later.

    \b
    kinetics-fs pin add --split validation
    kinetics-fs pin list
    """


@command.command("add", short_help="Pin the clips of a selection.")
@click.option("--all", "everything", is_flag=True, help="Pin all clips of the release.")
@with_settings("selection", "cache", "limits", "cut")
@json_option
def add(everything: bool, settings: Settings, as_json: bool) -> None:
    """Pin the clips of a selection: they stay in the cache, whatever else is evicted.

    This applies to cached clips and to those that are fetched later; the command itself fetches nothing. It takes
    effect at once for every mount and prefetch that uses the cache. Pinned clips count toward the limit of the cache
    (--cache-size): if a clip does not fit beside them, it cannot be fetched.

    \b
    kinetics-fs pin add --split validation
    kinetics-fs pin add --class "surfing water" --class "springboard diving"
    kinetics-fs pin add --release 400 --all
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.store.eviction import TYPICAL_CLIP_BYTES

    if not (everything or selection_narrowed()):
        raise click.UsageError(_NO_SELECTION.format(", or --all"))
    if everything and selection_flags() - WHOLE:
        raise click.UsageError("cannot pin clips: a selection and --all exclude each other; give one of them")
    if everything:  # a selection in the environment or in the file is meant for mounts
        settings = settings.with_values(split=(), classes=(), max_samples=None, shuffle=False, available=False)
    with open_library(settings) as library:
        pinned = library.pin()
        total, limit = library.pin_totals(), library.status().cache.limit
    if as_json:
        click.echo(json.dumps({**pinned.all._asdict(), "new": pinned.new, "total": total._asdict()}))
    else:
        click.echo(f"{_describe(pinned.all, 'pinned')}; {pinned.new:,} of them were not pinned before")
    if limit is not None and total.bytes + TYPICAL_CLIP_BYTES > limit:
        click.echo(
            f"kinetics-fs: the pinned clips take {filesize.decimal(total.bytes)} of the {filesize.decimal(limit)} that"
            " the cache may have: hardly any other clip can be fetched; raise --cache-size, or unpin some clips with"
            " kinetics-fs pin remove",
            err=True,
        )


@command.command("remove", short_help="Unpin the clips of a selection.")
@click.option("--all", "everything", is_flag=True, help="Unpin all pinned clips.")
@with_settings("selection", "cache", "cut")
@json_option
def remove(everything: bool, settings: Settings, as_json: bool) -> None:
    """Unpin the clips of a selection. They stay cached until eviction needs their space.

    \b
    kinetics-fs pin remove --split validation --class "surfing water"
    kinetics-fs pin remove --all
    """
    from kinetics_fs.cli.library import open_library

    # A selection in the environment or in the file is meant for mounts, and does not conflict with --all.
    if everything and selection_flags():
        raise click.UsageError("cannot unpin clips: a selection and --all exclude each other; give one of them")
    if not everything and not selection_narrowed():
        raise click.UsageError(_NO_SELECTION.format(", or --all"))
    with open_library(settings, whole_cache=everything) as library:
        counts = library.unpin(whole_cache=everything)
    click.echo(json.dumps(counts._asdict()) if as_json else _describe(counts, "unpinned"))


@command.command("list", short_help="List the pinned clips by split and class.")
@with_settings("selection", "cache", "cut")
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List how many clips are pinned, by split and class of a selection, and in all.

    \b
    kinetics-fs pin list
    kinetics-fs pin list --split validation --json
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings) as library:
        total = library.pin_totals()
        classes = list(library.pins()) if total.clips else []
    if as_json:
        rows = [{"split": one.split, "label": one.label, **one.counts._asdict()} for one in classes]
        click.echo(json.dumps({"total": total._asdict(), "classes": rows}, indent=2, ensure_ascii=False))
        return
    if classes:
        width = max(5, *(len(one.label) for one in classes))
        click.echo(f"{'split':<10}  {'class':<{width}}  {'pinned':>8}  {'cached':>8}  {'size':>8}")
        for one in classes:
            click.echo(
                f"{one.split:<10}  {one.label:<{width}}  {one.counts.clips:>8,}  {one.counts.cached:>8,}"
                f"  {filesize.decimal(one.counts.bytes):>8}"
            )
    click.echo(f"Total: {_describe(total, 'pinned')}" if total.clips else "No clips are pinned.")


def _describe(counts: PinCounts, done: str) -> str:
    return f"{count(counts.clips, 'clip')} {done}, {counts.cached:,} of them cached ({filesize.decimal(counts.bytes)})"
