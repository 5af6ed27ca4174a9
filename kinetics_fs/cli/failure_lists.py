"""`kinetics-fs failures export` and `import`: lists of dead clips, shared between caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, kind_option, open_output, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind
from kinetics_fs.util.text import count


@click.command("export", cls=Command, short_help="Write a list of dead clips to a file.")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@with_settings("cache")
@kind_option("Kind of failure to write: gone, corrupt or credentials. Repeatable.  [default: gone]")
def export(file: Path, settings: Settings, kinds: tuple[FailureKind, ...]) -> None:
    """Write the clips that failed to FILE, for other caches to import; `-` is standard output.

    By default, the list contains only clips that are `gone`, because that is true everywhere. If you name the kinds,
    it also contains clips that arrived damaged (`corrupt`), or that need an account or another country
    (`credentials`). Other kinds describe a network or a machine rather than a clip, and cannot be exported.

    \b
    kinetics-fs failures export dead-clips.jsonl
    kinetics-fs failures export --kind gone --kind credentials - | gzip > dead-clips.jsonl.gz
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library, open_output(file) as stream:
        written = library.export_failures(stream, kinds)
    click.echo(f"{count(written, 'failure')} written", err=True)


@click.command("import", cls=Command, short_help="Read a list of dead clips from a file.")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@with_settings("cache")
@kind_option("Kind of failure to read: gone, corrupt or credentials. Repeatable.  [default: gone]")
@json_option
def import_(file: BinaryIO, settings: Settings, kinds: tuple[FailureKind, ...], as_json: bool) -> int:
    """Read the clips that failed elsewhere from FILE, which an export wrote; `-` is standard input.

    Failures that this cache remembers with a later date stay, and so do cached clips. An imported failure is due for a
    retry when it would have been in the cache that exported it. Invalid lines are skipped and listed; the exit code is
    then 3.

    \b
    kinetics-fs failures import dead-clips.jsonl
    gunzip -c dead-clips.jsonl.gz | kinetics-fs failures import -
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library:
        result = library.import_failures(file, kinds)
    if result.invalid:
        click.echo(f"kinetics-fs: {result.invalid:,} invalid lines were skipped:", err=True)
        for line in result.first_invalid:
            click.echo(f"  line {line.number:,}: {line.reason}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        click.echo(
            f"{result.imported:,} imported; skipped: {result.known:,} already known, {result.cached:,} cached,"
            f" {result.other_kind:,} of other kinds, {result.invalid:,} invalid"
        )
    return DONE_IN_PART if result.invalid else 0
