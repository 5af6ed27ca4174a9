"""`kinetics-fs report`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, open_output, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import masked


@click.command("report", cls=Command, short_help="Write an HTML page that shows which clips are cached.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=Path("kinetics-report.html"),
    show_default=True,
    metavar="FILE|-",
    help="File to write the page to; - is standard output.",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(0, 200),
    default=24,
    show_default=True,
    metavar="N",
    help="Number of clips to show a thumbnail of, spread evenly over the classes.",
)
@with_settings("selection", "cache", "limits", "cut")
@json_option
def command(output: Path, thumbnails: int, settings: Settings, as_json: bool) -> None:
    """Write an HTML page that shows which clips of a selection are cached, and the state of the cache.

    The page is a single self-contained file that you can open in a browser or send to others. The command reads the
    cache and asks the mounts of this machine, but does not use the network. With --json, it prints the same data as
    JSON, without thumbnails, and writes no page.

    \b
    kinetics-fs report
    kinetics-fs report --release 700-2020 --split train -o train.html
    kinetics-fs report --split validation --json
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.mount.query import query_statuses
    from kinetics_fs.report import gather, pictures, render

    with open_library(settings) as library:
        coverage = library.coverage()
        gathered = gather(
            library.store,
            selection={
                "release": coverage.release,
                "annotations": list(map(masked, settings.annotations)),
                "splits": settings.split,
                "classes": settings.klass,
                "max_samples": settings.max_samples,
                "shuffle": settings.shuffle,
                "seed": settings.seed,
            },
            classes=[asdict(one) for one in coverage.classes],
            failures=coverage.failures.to_json(),
            mounts=query_statuses(),
        )
        if as_json:
            click.echo(json.dumps(gathered, indent=2))
            return
        cached = {(one.split, one.label): one.cached for one in coverage.classes}
        page = render(gathered, list(pictures(library.catalog, library.store, cached, thumbnails)))
    written = page.encode(errors="replace")  # the name of a folder need not be valid UTF-8
    with open_output(output) as file:
        file.write(written)
    click.echo(f"{output}: {filesize.decimal(len(written))}", err=True)
