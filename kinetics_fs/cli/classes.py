"""`kinetics-fs classes`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from kinetics_fs.catalog import origins_to_json
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.cli.origins import origin_lines
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count


@click.command("classes", cls=Command, short_help="List the classes of a release with their numbers of clips.")
@with_settings("selection", "cache")
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """List the classes of a release, or of a selection, with their indexes and numbers of clips.

    The second table says how many clips each list names first, how many only archives have, and how many the release
    has according to its publishers.

    \b
    kinetics-fs classes --release 400
    kinetics-fs classes --split validation --json
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings) as library:
        classes = library.classes()
        splits = {split.split: split.clips for split in library.catalog.splits()}
        release, origins = library.catalog.release, library.catalog.origins()
    if as_json:
        result = {
            "classes": [asdict(one) for one in classes],
            **origins_to_json(release, origins),
        }
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    total = count(len(classes), "class")
    width = max(len(total), *(len(one.label) for one in classes))
    click.echo(f"index  {'class':<{width}}" + "".join(f"  {split:>10}" for split in splits))
    for one in classes:
        cells = "".join(f"  {one.clips.get(split, 0):>10,}" for split in splits)
        click.echo(f"{one.index:>5}  {one.label:<{width}}{cells}")
    click.echo(f"{'':>5}  {total:<{width}}" + "".join(f"  {clips:>10,}" for clips in splits.values()))
    click.echo("\n" + "\n".join(origin_lines(release, origins)))
