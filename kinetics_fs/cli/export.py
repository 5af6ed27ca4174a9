"""`kinetics-fs export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import KineticsError


@click.command("export", cls=Command, short_help="Write clips of the cache as plain files.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@with_settings("selection", "cache", "names")
@click.option("--copy", is_flag=True, help="Copy files, so that they are of their own and all may read them.")
@json_option
def command(folder: Path, settings: Settings, copy: bool, as_json: bool) -> int:
    """Write those clips of a selection that are in the cache into DIR, as split/class/clip.mp4.

    On one filesystem as hard links, which take no room; these can be read by you alone, and must not be changed. With
    --copy as files of their own. What is in DIR is never overwritten. May be interrupted or killed: the same command
    goes on. Fetches nothing: exits with 3 if the cache lacks some of the selection.

    \b
    kinetics-fs export --split validation /data/kinetics
    kinetics-fs export --class "surfing water" --class-names torchvision --copy /mnt/disk
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.catalog import ClassNames
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.cli.progress import progress_bars
    from kinetics_fs.store.export import Export

    interrupted = False
    failure: KineticsError | None = None
    style = ClassNames(settings.class_names)
    with catalog_of(settings) as catalog, open_store(settings) as store:
        export = Export(store, catalog, folder, class_names=style, link=not copy)
        with progress_bars("clips") as bars:
            task = bars.add_task("", total=catalog.clip_count, note="")
            try:
                export.run(lambda clips: bars.advance(task, clips))
            except KeyboardInterrupt:
                interrupted = True
            except KineticsError as error:
                failure = error
    done = export.exported
    if as_json:
        click.echo(json.dumps(asdict(done) | {"interrupted": interrupted}))
    else:
        click.echo(
            f"{done.written:,} files written ({done.linked:,} as hard links), {done.already_there:,} already there,"
            f" {done.not_here:,} not in the cache"
        )
        if done.kept:
            click.echo(f"  {done.kept:,} names are taken by something else, which was left as it is")
    if interrupted:
        click.echo("Interrupted; the same command goes on from here.", err=True)
        return 130
    if failure:
        raise failure
    return DONE_IN_PART if done.not_here or done.kept else 0
