"""`kinetics-fs import`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.copying import add_import, add_sync, exit_code, print_import, print_sync
from kinetics_fs.cli.options import json_option, verify_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count


@click.command("import", cls=Command, short_help="Import the clips in a folder into the cache.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_settings("selection", "cache", "limits", "--shared", "--shared-write", "cut")
@verify_option
@click.option("--copy", is_flag=True, help="Copy files that could be hard links to those in DIR.")
@json_option
def command(directory: Path, settings: Settings, verify: str, copy: bool, as_json: bool) -> int:
    """Import the clips of a selection that are anywhere below DIR into the cache.

    A file is imported if it has the name of a clip of the selection, whatever folder it is in, and passes --verify. The
    other files are counted by the pattern of their names, with the reason and an example. On one filesystem the cache
    gets hard links, which take no space. Nothing in the cache is evicted. With --shared, the cached clips of the
    selection that the shared store lacks are uploaded afterwards. You can interrupt or kill the command and run it
    again: it resumes. Exits with 3 if some files were not fit to be imported.

    \b
    kinetics-fs import ~/fiftyone/kinetics-600
    kinetics-fs import --release 400 --split train --verify decode /data/k400
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    with open_library(settings) as library, ProgressBars() as bars:
        result = library.import_(
            directory,
            verify=verify,
            link=not copy,
            on_progress=add_import(bars),
            on_upload_progress=add_sync(bars),
        )
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        counts = f"{count(result.imported, 'clip')} imported ({result.linked:,} as hard links)"
        print_import(result, f"{counts}, {result.already_cached:,} already cached")
        if result.uploads is not None:
            print_sync(result.uploads)
    return exit_code(result)
