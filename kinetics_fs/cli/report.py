"""`kinetics-fs report`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, open_output, with_settings
from kinetics_fs.config import Settings


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
@with_settings("selection", "cache")
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
    from kinetics_fs.app import open_store
    from kinetics_fs.cli.rooms import catalog_of
    from kinetics_fs.mount.query import statuses
    from kinetics_fs.report import gather, pictures, render
    from kinetics_fs.store.coverage import Coverage

    with catalog_of(settings) as catalog, open_store(settings) as store:
        found = Coverage(catalog, store)
        gathered = gather(
            store,
            selection={
                "release": catalog.release,
                "annotations": settings.annotations,
                "splits": settings.split,
                "classes": settings.klass,
                "max_samples": settings.max_samples,
                "shuffle": settings.shuffle,
                "seed": settings.seed,
            },
            classes=found.by_place(),
            failures=found.as_json()["kinds"],
            mounts=statuses(),
        )
        if as_json:
            click.echo(json.dumps(gathered, indent=2))
            return
        held = {(row["split"], row["label"]): row["cached"] for row in gathered["classes"]}
        page = render(gathered, list(pictures(catalog, store, held, thumbnails)))
    written = page.encode(errors="replace")  # the name of a folder need not be valid UTF-8
    with open_output(output) as file:
        file.write(written)
    click.echo(f"{output}: {filesize.decimal(len(written))}", err=True)
