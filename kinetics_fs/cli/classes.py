"""`kinetics-fs classes`."""

from __future__ import annotations

import json

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.config import Settings


@click.command("classes", cls=Command, short_help="List the classes of a release, with their clips.")
@with_settings("selection", "cache")
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """List the classes of a release, or of a selection from it, with their numbers of clips.

    \b
    kinetics-fs classes --release 400
    kinetics-fs classes --split validation --json
    """
    from kinetics_fs.cli.library import catalog_of

    with catalog_of(settings) as catalog:
        splits = catalog.splits()
        counts: dict[str, dict[str, int]] = {}
        for split in splits:
            for directory in catalog.classes(split):
                counts.setdefault(directory.label or "", {})[split.split] = directory.clips
        indexes = {label: index for index, label in enumerate(catalog.labels())}
    if as_json:
        rows = [{"label": label, "index": indexes.get(label, -1), "clips": counts[label]} for label in sorted(counts)]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    names = [split.split for split in splits]
    width = max(len(label) for label in counts)
    click.echo(f"index  {'class':<{width}}" + "".join(f"  {name:>10}" for name in names))
    for label in sorted(counts):
        cells = "".join(f"  {counts[label].get(name, 0):>10,}" for name in names)
        click.echo(f"{indexes.get(label, -1):>5}  {label:<{width}}{cells}")
    totals = "".join(f"  {split.clips:>10,}" for split in splits)
    click.echo(f"{'':>5}  {f'{len(counts)} classes':<{width}}{totals}")
