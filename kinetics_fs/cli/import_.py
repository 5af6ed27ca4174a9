"""`kinetics-fs import`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.copying import exit_code
from kinetics_fs.cli.options import json_option, verify_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.fill.importer import ImportResult

_REASONS_SHOWN = 10
_GROUPS_SHOWN = 20


@click.command("import", cls=Command, short_help="Import the clips in a folder into the cache.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_settings("selection", "cache", "limits", "cut")
@verify_option
@click.option("--copy", is_flag=True, help="Copy files that could be hard links to those in DIR.")
@json_option
def command(directory: Path, settings: Settings, verify: str, copy: bool, as_json: bool) -> int:
    """Import the clips of a selection that are anywhere below DIR into the cache.

    A file is imported if it has the name of a clip of the selection, whatever folder it is in, and passes --verify. The
    other files are counted by the pattern of their names, with the reason and an example. On one filesystem the cache
    gets hard links, which take no space. Nothing in the cache is evicted. You can interrupt or kill the command and run
    it again: it resumes. Exits with 3 if some files were not fit to be imported.

    \b
    kinetics-fs import ~/fiftyone/kinetics-600
    kinetics-fs import --release 400 --split train --verify decode /data/k400
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    with open_library(settings) as library, ProgressBars() as bars:
        result = library.import_(directory, verify=verify, link=not copy, on_progress=add_import(bars))
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        counts = f"{count(result.imported, 'clip')} imported ({result.linked:,} as hard links)"
        print_import(result, f"{counts}, {result.already_cached:,} already cached")
    return exit_code(result)


def add_import(bars: ProgressBars) -> Callable[[ImportResult], object]:
    """Add bars for an import, and return the function that moves them."""
    finding = bars.add("finding clips", "files")
    importing = bars.add("importing", "files", visible=False)

    def show(result: ImportResult) -> None:
        if result.done:
            importing.show(result.done, result.to_import, size=result.bytes)
        else:
            finding.show(result.found, None)

    return show


def print_import(result: ImportResult, counts: str) -> None:
    """Print the result of an import.

    Args:
        result: the result.
        counts: the imported clips, and those that the target has.
    """
    click.echo(f"{counts}, {result.not_in_annotations:,} not in the annotations, {result.corrupt.total():,} corrupt")
    _print_reasons("corrupt", result.corrupt)
    _print_reasons("unreadable", result.unreadable)
    groups = result.unused.groups()
    for group in groups[:_GROUPS_SHOWN]:
        click.echo(f"  {group}")
    if rest := sum(group.files for group in groups[_GROUPS_SHOWN:]):
        click.echo(f"  {count(rest, 'file')} with other names not used")
    if result.busy:
        click.echo(f"  {result.busy:,} skipped: another process is fetching them")


def _print_reasons(what: str, reasons: Counter[str]) -> None:
    shown = reasons.most_common(_REASONS_SHOWN)
    for reason, files in shown:
        click.echo(f"  {files:,} {what}: {reason}")
    if rest := reasons.total() - sum(files for _, files in shown):
        click.echo(f"  {rest:,} {what} for other reasons")
