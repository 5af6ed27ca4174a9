"""`kinetics-fs export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.copying import exit_code
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.store.export import ExportResult


@click.command("export", cls=Command, short_help="Write clips of the cache as plain files.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@with_settings("selection", "cache", "--shared", "cut", "names")
@click.option(
    "--copy",
    is_flag=True,
    help="Copy the files, so that they are independent of the cache and other users can read them.",
)
@json_option
def command(directory: Path, settings: Settings, copy: bool, as_json: bool) -> int:
    """Write the clips of a selection that are in the cache into DIR, as split/class/clip.mp4.

    On one filesystem the files are hard links, which take no space: only you can read them, and they must not be
    changed. With --copy they are independent files. Nothing in DIR is overwritten, and nothing is fetched. With
    --shared, clips that are not in the cache come from the shared store, and are not cached on the way. You can
    interrupt or kill the command and run it again: it resumes. Exits with 3 if some clips are missing.

    \b
    kinetics-fs export --split validation /data/kinetics
    kinetics-fs export --class "surfing water" --class-names torchvision --copy /mnt/disk
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    with open_library(settings) as library, ProgressBars() as bars:
        bar = bars.add("exporting", "clips")

        def show(now: ExportResult) -> None:
            bar.show(now.done, now.clips, without_work=now.done - now.written, size=now.bytes)

        result = library.export(directory, link=not copy, on_progress=show)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        shared = f", {result.from_shared:,} from the shared store" if settings.shared is not None else ""
        where = "the cache" if settings.shared is None else "the cache or the shared store"
        click.echo(
            f"{count(result.written, 'file')} written ({result.linked:,} as hard links{shared}),"
            f" {result.already_there:,} already there, {result.missing:,} not in {where}"
        )
        if result.skipped:
            click.echo(f"  {result.skipped:,} skipped: something else has the name, and was left as it is")
    return exit_code(result)
