"""`kinetics-fs fill`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import (
    archive_options,
    dask_options,
    json_option,
    open_output,
    verify_option,
    with_settings,
)
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.fill.plan import ArchivesLeft, Shard
    from kinetics_fs.fill.runner import FillResult


@click.command("fill", cls=Command, short_help="Fill the cache from archives.")
@with_settings("selection", "cache", "limits", "cut", "archive", "shared", "log")
@archive_options
@verify_option
@dask_options
@click.option("--no-index", is_flag=True, help="Do not index the archives. Indexing takes half as much time again.")
@click.option(
    "--shard",
    metavar="I/N",
    help="With --shared, begin with every N-th archive from number I on, counted from 0. The archives of machines that"
    " have died are read, too.  [default: SLURM_PROCID/SLURM_NTASKS, or JOB_COMPLETION_INDEX, if they are set]",
)
@click.option(
    "--no-local", is_flag=True, help="With --shared, store the clips there only: the cache needs space for a few clips."
)
@click.option(
    "--missing", is_flag=True, help="Print which archives are left to read, also as positions for sbatch --array."
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="JSON file to write the result to.  [default: fill-report.json in the cache]",
)
@json_option
def command(
    settings: Settings,
    archives: tuple[str, ...],
    jobs: int,
    verify: str,
    dask: str | None,
    worker_cache_dir: str | None,
    no_index: bool,
    shard: str | None,
    no_local: bool,
    missing: bool,
    report_file: Path | None,
    as_json: bool,
) -> int:
    """Fill the cache with a selection from the archives that hold it, in one pass over each.

    For whole splits or classes this is much faster than fetching clip by clip. You can interrupt or kill the command
    and run it again: it resumes, and reads no archive again that it has finished. The archives are indexed on the way,
    so that a mount can later fetch single clips from them. Exits with 3 if some clips are missing in the end.

    With --shared, any number of machines that run the same command fill the shared store together. Each archive is read
    by one of them. If a machine dies, another continues with its archive after five minutes.

    \b
    kinetics-fs fill --split validation
    kinetics-fs fill --release 700-2020 --split train --class "surfing water" --jobs 4
    kinetics-fs fill --release 400 --archive-url /data/kinetics --verify decode
    srun --ntasks 8 kinetics-fs fill --shared s3://lab/kinetics --no-local
    kinetics-fs fill --shared s3://lab/kinetics --no-local --dask tcp://scheduler:8786
    """
    from kinetics_fs.cli.archives import ArchiveBars, exit_code, interrupted_by_sigterm, print_failures
    from kinetics_fs.cli.library import open_library

    with open_library(settings) as library:
        if missing:
            _print_left(library.archives_left(archives, index=not no_index), as_json=as_json)
            return 0
        store = library.store
        with interrupted_by_sigterm(), ArchiveBars(lambda: count(store.usage().clips, "clip")) as progress:
            result = library.fill(
                archives,
                verify=verify,
                index=not no_index,
                processes=jobs,
                shard=_find_shard(shard, settings),
                local=not no_local,
                dask=dask,
                worker_cache_dir=worker_cache_dir,
                progress=progress,
            )
    path = report_file or store.layout.fill_report
    with open_output(path) as file:
        file.write(json.dumps(result.to_json(names=True), indent=1).encode() + b"\n")
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        _print(result)
        print_failures(result.archives)
        click.echo(f"Report with the names of missing clips: {path}")
    return exit_code(result.archives, complete=result.complete)


def _find_shard(given: str | None, settings: Settings) -> Shard | None:
    from kinetics_fs.fill.plan import Shard

    if given is not None:
        return Shard.parse(given)
    return None if settings.shared is None else Shard.of_environment(os.environ)


def _print_left(left: ArchivesLeft, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(left.to_json()))
        return
    for name in left.left:
        click.echo(name)
    click.echo(f"{len(left.left):,} of {count(len(left.archives), 'archive')} left", err=True)
    if left.left:
        click.echo(
            f"sbatch --array={left.array} with kinetics-fs fill --shard $SLURM_ARRAY_TASK_ID/{len(left.archives)}",
            err=True,
        )
    for name, reason in left.failed.items():
        click.echo(f"  failed: {name}: {reason}", err=True)


def _print(result: FillResult) -> None:
    archives = result.archives
    click.echo(
        f"{count(archives.sum('stored'), 'clip')} stored, {archives.sum('present'):,} already cached,"
        f" {archives.sum('not_wanted'):,} not in the annotations, {archives.corrupt.total():,} corrupt"
    )
    if unlisted := archives.sum("unlisted"):
        click.echo(f"  {unlisted:,} only named by archives: mounts show them when you mount them again")
    for reason, clips in archives.corrupt.items():
        click.echo(f"  {clips:,} corrupt: {reason}")
    for reason, files in archives.not_clips.items():
        click.echo(f"  {count(files, 'other file')}: {reason}")
    if busy := archives.sum("busy"):
        click.echo(f"  {busy:,} skipped: another process is fetching them")
    click.echo(
        f"{count(len(archives.read), 'archive')} read, {len(archives.read_before):,} read before,"
        f" {len(archives.failed):,} failed"
    )
    if result.left is not None:
        click.echo(
            f"{count(archives.sum('uploaded'), 'clip')} uploaded; {count(len(archives.read_elsewhere), 'archive')}"
            f" read by other machines or runs, {len(result.left):,} left"
        )
    if result.missing.not_stored:
        place = "cached" if result.left is None else "in the shared store"
        click.echo(f"{count(len(result.missing.not_stored), 'clip')} of the archives not {place}")
    if result.missing.in_no_archive:
        click.echo(f"{count(len(result.missing.in_no_archive), 'clip')} in no archive that was read to its end")
