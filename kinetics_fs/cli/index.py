"""`kinetics-fs index`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import (
    archive_option,
    archive_options,
    dask_options,
    json_option,
    open_output,
    with_settings,
)
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count


@click.group("index", cls=Group, short_help="Build, list, verify or share indexes of archives.")
def command() -> None:
    """Build, list, verify and share indexes of archives.

    With the index of an archive, kinetics-fs fetches single clips out of the archive.
    """


@command.command("build", short_help="Index the archives that hold a selection.")
@with_settings("selection", "cache", "archive", "shared")
@archive_options
@dask_options
@json_option
def build(
    settings: Settings,
    archives: tuple[str, ...],
    jobs: int,
    dask: str | None,
    worker_cache_dir: str | None,
    as_json: bool,
) -> int:
    """Index the archives that hold a selection, in one pass over each. No clip is stored.

    Archives that are indexed in their current version are not read again. You can interrupt or kill the command and run
    it again: it resumes. `kinetics-fs fill` builds the same indexes on its way. Exits with 3 if some archives could not
    be indexed.

    With --shared, the indexes that other machines have built are imported, and those that are built here are shared.

    \b
    kinetics-fs index build --split validation --class "surfing water"
    kinetics-fs index build --release 400 --archive-url /data/kinetics
    kinetics-fs index build --archive 600/val/abseiling.tar.gz
    kinetics-fs index build --release 600 --dask tcp://scheduler:8786 --worker-cache-dir /scratch/kinetics
    """
    from kinetics_fs.cli.archives import ArchiveBars, exit_code, interrupted_by_sigterm, print_failures
    from kinetics_fs.cli.library import open_library

    with (
        open_library(settings, whole_cache=bool(archives)) as library,
        interrupted_by_sigterm(),
        ArchiveBars() as progress,
    ):
        results = library.indexes.build(
            archives, processes=jobs, dask=dask, worker_cache_dir=worker_cache_dir, progress=progress
        )
    clips = results.sum("indexed")
    if as_json:
        result = {"indexed": clips, "not_clips": dict(results.not_clips), "archives": results.to_json()}
        click.echo(json.dumps(result | {"interrupted": results.interrupted}))
    else:
        click.echo(
            f"{count(clips, 'clip')} in {count(len(results.read), 'archive')} indexed;"
            f" {count(len(results.read_before), 'archive')} indexed before, {len(results.failed):,} failed"
        )
        for reason, files in results.not_clips.items():
            click.echo(f"  {count(files, 'other file')}: {reason}")
        print_failures(results)
    return exit_code(results)


@command.command("list")
@with_settings("cache")
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List the archives that are indexed.

    \b
    kinetics-fs index list
    kinetics-fs index list --json
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library:
        archives = library.indexes.list()
    if as_json:
        rows = [
            {
                "archive": one.archive,
                "clips": one.clips,
                "size": one.version.size,
                "etag": one.version.etag,
                "confirmed": one.confirmed,
            }
            for one in archives
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not archives:
        click.echo("No archive is indexed.")
        return
    width = max(7, *(len(one.archive) for one in archives))
    click.echo(f"{'archive':<{width}}  {'clips':>9}  {'size':>9}")
    for one in archives:
        note = "" if one.confirmed else "  imported, not verified"
        click.echo(f"{one.archive:<{width}}  {one.clips:>9,}  {filesize.decimal(one.version.size):>9}{note}")
    clips = sum(one.clips for one in archives)
    size = filesize.decimal(sum(one.version.size for one in archives))
    click.echo(f"{count(len(archives), 'archive'):<{width}}  {clips:>9,}  {size:>9}")


@command.command("verify", short_help="Check that the indexes are right.")
@with_settings("cache", "archive")
@archive_option("Only clips of this archive; repeatable.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of clips to read, at random.",
)
@click.option("--all", "everything", is_flag=True, help="Read every clip.")
@json_option
def verify(settings: Settings, archives: tuple[str, ...], sample: int, everything: bool, as_json: bool) -> int:
    """Check that the indexes are right: read clips by them, and compare their sizes and checksums.

    The archives must also be of the version that was indexed. No clip is stored. Exits with 3 if some are wrong. With
    --all, an imported index that is right counts as one that was built here.

    \b
    kinetics-fs index verify
    kinetics-fs index verify --archive 600/val/abseiling.tar.gz --all
    kinetics-fs index verify --archive-url https://mirror.example.org/kinetics --sample 20
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    with open_library(settings, whole_cache=True) as library, ProgressBars() as bars:
        bar = bars.add("verifying", "clips")
        check = library.indexes.verify(
            archives,
            sample=None if everything else sample,
            on_progress=lambda now: bar.show(now.clips_read, now.clips, size=now.bytes),
        )
    if as_json:
        click.echo(json.dumps(check.to_json()))
    else:
        click.echo(
            f"{count(check.archives, 'archive')} checked, {len(check.wrong_archives):,} wrong;"
            f" {count(check.clips_read, 'clip')} read, {len(check.wrong_clips):,} wrong"
        )
        for name, reason in check.wrong.items():
            click.echo(f"  {name}: {reason}")
    return DONE_IN_PART if check.wrong else 0


@command.command("export", short_help="Write the indexes to a file, for others to import.")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@with_settings("cache")
@archive_option("Only the index of this archive; repeatable.")
def export(file: Path, settings: Settings, archives: tuple[str, ...]) -> None:
    """Write the indexes to FILE, for others to import; `-` is standard output.

    You can join such files with `cat`.

    \b
    kinetics-fs index export kinetics-600.index
    kinetics-fs index export --archive 600/val/abseiling.tar.gz - > abseiling.index
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library, open_output(file) as stream:
        indexes = library.indexes.export(stream, archives)
    click.echo(f"{count(indexes, 'index')} written", err=True)


@command.command("import", short_help="Import the indexes in an exported file.")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@with_settings("cache")
@json_option
def import_(file: BinaryIO, settings: Settings, as_json: bool) -> int:
    """Import the indexes in FILE, which an export wrote; `-` is standard input.

    An index replaces an earlier one of the same archive. If an index is invalid or does not fit on the disk, it and
    everything after it in the file are skipped; the indexes before it are imported, and the exit code is 3.

    An imported index says where clips are, and each clip is checked when it is fetched. The sizes in it are not shown,
    and clips that it lacks do not count as missing from the archive, until `index verify --all` has read all its clips.

    \b
    kinetics-fs index import kinetics-600.index
    curl https://example.org/kinetics-600.index | kinetics-fs index import -
    """
    from kinetics_fs.cli.library import open_library

    with open_library(settings, whole_cache=True) as library:
        result = library.indexes.import_(file)
    if result.refused:
        click.echo(f"kinetics-fs: {result.refused}; it and everything after it was skipped", err=True)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        click.echo(
            f"{count(result.imported, 'index')} of {count(result.clips, 'clip')} imported,"
            f" {result.replaced:,} of them in place of earlier ones"
        )
    return DONE_IN_PART if result.refused else 0


@command.command("remove")
@with_settings("cache")
@archive_option("Remove the index of this archive; repeatable.")
@click.option("--all", "everything", is_flag=True, help="Remove all indexes.")
def remove(settings: Settings, archives: tuple[str, ...], everything: bool) -> None:
    """Remove indexes. Clips that are in the cache stay.

    \b
    kinetics-fs index remove --archive 600/val/abseiling.tar.gz
    kinetics-fs index remove --all
    """
    from kinetics_fs.cli.library import open_library

    if bool(archives) == everything:
        raise click.UsageError("cannot remove indexes: no archive is named; give --archive NAME, or --all alone")
    with open_library(settings, whole_cache=True) as library:
        click.echo(f"{library.indexes.remove(archives):,} removed")
