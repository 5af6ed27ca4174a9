"""`kinetics-fs index`."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.options import archive_option, archive_options, json_option, open_output, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import ArchiveError, KineticsError

if TYPE_CHECKING:
    from kinetics_fs.catalog import Clip
    from kinetics_fs.sources.archive.index import ArchiveIndex, Record

_READ_AT_ONCE = 4


@click.group("index", short_help="Make, check or share indexes of archives.")
def command() -> None:
    """Make, check or share the indexes by which clips are read straight out of archives."""


@command.command("build", short_help="Index the archives that hold a selection.")
@with_settings("selection", "cache", "archive")
@archive_options
@json_option
def build(settings: Settings, archives: tuple[str, ...], jobs: int, as_json: bool) -> int:
    """Index the archives that hold a selection, in one pass over each that keeps no clip.

    Goes on where it was interrupted, and passes over archives whose index is here and up to date. `kinetics-fs fill`
    makes the same indexes on its way. Exits with 3 if some archives could not be indexed.

    \b
    kinetics-fs index build --split validation --class "surfing water"
    kinetics-fs index build --release 400 --archive-url /data/kinetics
    kinetics-fs index build --archive 600/val/abseiling.tar.gz
    """
    from kinetics_fs.app import index_db_path
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.fill import Job
    from kinetics_fs.fill.plan import archives_holding
    from kinetics_fs.fill.runner import Outcome, find_versions, pass_over, say_failed
    from kinetics_fs.media.verify import VerifyLevel
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
    from kinetics_fs.sources.archive.libz import finds_block_boundaries
    from kinetics_fs.store import CacheLayout, prepare_folder

    if not finds_block_boundaries():
        raise ArchiveError("this Python hides its zlib, by which archives are indexed: use one that does not")
    prepare_folder(settings.cache_dir)
    outcome = Outcome()
    if archives:
        names = list(archives)
    else:
        with catalog_of(settings) as catalog:
            whole = not settings.klass and not settings.annotations
            names = archives_holding(settings.archive_url, catalog, whole=whole)
    versions = find_versions(settings, names, outcome)
    with ArchiveIndexDB(index_db_path(settings)) as index_db:
        here = {one.archive: one.version for one in index_db.archives()}
    outcome.earlier = [name for name, version in versions.items() if name in here and here[name].matches(version)]
    pass_over(
        (
            Job(
                base=settings.archive_url,
                archive=name,
                cache=settings.cache_dir,
                limit=settings.cache_size,
                min_free=settings.min_free,
                catalog=None,
                index_db=index_db_path(settings),
                states=CacheLayout(settings.cache_dir).index_states,
                verify=VerifyLevel.NONE,
                keep=False,
            )
            for name in versions
            if name not in outcome.earlier
        ),
        versions,
        outcome,
        at_once=jobs,
    )
    clips = sum(summary.indexed for summary in outcome.read.values())
    refused = outcome.refused()
    result = {
        "indexed": clips,
        "refused": dict(refused),
        "archives": outcome.as_json(),
        "interrupted": outcome.interrupted,
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{clips:,} clips indexed in {len(outcome.read):,} archives; {len(outcome.earlier):,} archives indexed"
            f" before, {len(outcome.failed):,} failed"
        )
        for reason, number in refused.items():
            click.echo(f"  {number:,} files that are no clips: {reason}")
        say_failed(outcome)
    if outcome.hopeless:
        raise outcome.hopeless
    return outcome.exit_code()


@command.command("info")
@with_settings("cache")
@json_option
def info(settings: Settings, as_json: bool) -> None:
    """List the archives whose indexes are here.

    \b
    kinetics-fs index info
    kinetics-fs index info --json
    """
    from kinetics_fs.app import index_db_path, open_index_db

    archives = []
    if index_db_path(settings).exists():
        with open_index_db(settings) as index_db:
            archives = index_db.archives()
    if as_json:
        rows = [
            {"archive": one.archive, "clips": one.clips, "size": one.version.size, "etag": one.version.etag}
            for one in archives
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not archives:
        click.echo("No index of an archive is here.")
        return
    width = max(7, *(len(one.archive) for one in archives))
    click.echo(f"{'archive':<{width}}  {'clips':>9}  {'size':>9}")
    for one in archives:
        click.echo(f"{one.archive:<{width}}  {one.clips:>9,}  {filesize.decimal(one.version.size):>9}")
    clips = sum(one.clips for one in archives)
    size = filesize.decimal(sum(one.version.size for one in archives))
    click.echo(f"{f'{len(archives):,} archives':<{width}}  {clips:>9,}  {size:>9}")


@command.command("verify", short_help="Check that the indexes are right.")
@with_settings("cache", "archive")
@archive_option("Only clips of this archive; repeatable.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Clips to read, taken at random from all.",
)
@click.option("--all", "everything", is_flag=True, help="Read every clip.")
@json_option
def verify(settings: Settings, archives: tuple[str, ...], sample: int, everything: bool, as_json: bool) -> int:
    """Check that the indexes are right: read clips by them, and compare their sizes and checksums.

    And that the archives are of the version that was indexed. Nothing is kept. Exits with 3 if some are wrong.

    \b
    kinetics-fs index verify
    kinetics-fs index verify --archive 600/val/abseiling.tar.gz --all
    kinetics-fs index verify --archive-url https://mirror.example.org/kinetics --sample 20
    """
    from kinetics_fs.app import open_index_db
    from kinetics_fs.fill.runner import Outcome, find_versions

    outcome = Outcome()
    wrong_clips: dict[str, str] = {}
    read = 0
    with open_index_db(settings) as index_db:
        known = {one.archive: one for one in index_db.archives()}
        names = _known(archives, known) or list(known)
        versions = find_versions(settings, names, outcome)
        for name, version in versions.items():
            if known[name].version.size != version.size:
                outcome.failed[name] = "it is another version than that which was indexed"
        sound = [name for name in versions if name not in outcome.failed]
        all_clips = sum(known[name].clips for name in sound)
        chosen = range(all_clips) if everything else sorted(random.sample(range(all_clips), min(sample, all_clips)))
        first = 0
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            for name in sound:
                here = [place - first for place in chosen if first <= place < first + known[name].clips]
                first += known[name].clips
                for indexed in index_db.indexes([name]) if here else ():
                    # A copy may go by another tag: its clips tell whether it is one.
                    index = dataclasses.replace(indexed, etag=versions[name].etag)
                    records = sorted(index.records.items())
                    clips = [records[place][0] for place in here]
                    checks = [pool.submit(_mistake, settings.archive_url, index, *records[place]) for place in here]
                    read += len(checks)
                    for clip, check in zip(clips, checks, strict=True):
                        if mistake := check.result():
                            wrong_clips[f"{name}: {clip.key}"] = mistake
    wrong = outcome.failed
    result = {"archives": len(names), "wrong_archives": wrong, "clips_read": read, "wrong_clips": wrong_clips}
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{len(names):,} archives looked at, {len(wrong):,} wrong; {read:,} clips, {len(wrong_clips):,} wrong"
        )
        for name, reason in (wrong | wrong_clips).items():
            click.echo(f"  {name}: {reason}")
    return DONE_IN_PART if wrong or wrong_clips else 0


@command.command("export", short_help="Write the indexes to a file, for others to import.")
@click.argument("file", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@with_settings("cache")
@archive_option("Only the index of this archive; repeatable.")
def export(file: Path, settings: Settings, archives: tuple[str, ...]) -> None:
    """Write the indexes to FILE, for others to import; `-` is standard output.

    Such files can be joined by `cat`.

    \b
    kinetics-fs index export kinetics-600.index
    kinetics-fs index export --archive 600/val/abseiling.tar.gz - > abseiling.index
    """
    from kinetics_fs.app import open_index_db
    from kinetics_fs.sources.archive.index import write_index

    number = 0
    with open_index_db(settings) as index_db:
        names = _known(archives, {one.archive for one in index_db.archives()})
        with open_output(file) as stream:
            for index in index_db.indexes(names):
                write_index(index, stream)
                number += 1
    click.echo(f"{number:,} indexes written", err=True)


@command.command("import", short_help="Take over the indexes in such a file.")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@with_settings("cache")
@json_option
def import_(file: BinaryIO, settings: Settings, as_json: bool) -> int:
    """Take over the indexes in FILE, which an export wrote; `-` is standard input.

    One of an archive whose index is here already takes its place. What makes no sense is refused, with all that comes
    after it in the file; what came before it stays, and the exit code is 3.

    \b
    kinetics-fs index import kinetics-600.index
    curl https://example.org/kinetics-600.index | kinetics-fs index import -
    """
    from kinetics_fs.app import index_db_path
    from kinetics_fs.sources.archive.index import read_indexes
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
    from kinetics_fs.store import prepare_folder

    prepare_folder(settings.cache_dir)
    archives = clips = replaced = 0
    refused: str | None = None
    with ArchiveIndexDB(index_db_path(settings)) as index_db:
        here = {one.archive for one in index_db.archives()}
        indexes = read_indexes(file)
        while True:
            try:
                index = next(indexes, None)
            except ArchiveError as error:
                refused = f"index {archives + 1:,} in {file.name}: {error}"
                break
            if index is None:
                break
            index_db.add(index)
            archives += 1
            clips += len(index.records)
            replaced += index.archive in here
    if refused and not archives:
        raise ArchiveError(refused)
    if refused:
        click.echo(f"kinetics-fs: {refused}; it is refused, with what comes after it", err=True)
    if as_json:
        click.echo(json.dumps({"imported": archives, "replaced": replaced, "clips": clips, "refused": refused}))
    else:
        click.echo(f"{archives:,} indexes of {clips:,} clips imported, {replaced:,} of them in place of earlier ones")
    return DONE_IN_PART if refused else 0


@command.command("remove")
@with_settings("cache")
@archive_option("Remove the index of this archive; repeatable.")
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
def remove(settings: Settings, archives: tuple[str, ...], everything: bool) -> None:
    """Give up indexes. Clips that are in the cache stay.

    \b
    kinetics-fs index remove --archive 600/val/abseiling.tar.gz
    kinetics-fs index remove --all
    """
    from kinetics_fs.app import open_index_db

    if bool(archives) == everything:
        raise click.UsageError("give --archive, or else --all")
    with open_index_db(settings) as index_db:
        known = [one.archive for one in index_db.archives()]
        removed = sum(index_db.remove(name) for name in _known(archives, known) or known)
    click.echo(f"{removed:,} removed")


# What commands share


def _known(archives: Sequence[str], known: Collection[str]) -> list[str] | None:
    """The archives that were named, all of which must be indexed; None if none were."""
    for name in archives:
        if name not in known:
            raise ArchiveError(f"no index of {name} is here; see kinetics-fs index info")
    return list(dict.fromkeys(archives)) or None


def _mistake(base: str, index: ArchiveIndex, clip: Clip, record: Record) -> str | None:
    """Why a clip cannot be read by an index; None if it can."""
    from kinetics_fs.sources.archive.base import Version
    from kinetics_fs.sources.archive.extract import extract
    from kinetics_fs.sources.archive.layout import archive_address
    from kinetics_fs.sources.archive.reader import open_archive

    archive = open_archive(archive_address(base, index.archive))
    try:
        with closing(archive.read(record.begin, record.end, Version(index.size, index.etag))) as pieces:
            for _ in extract(clip, record, pieces, gzipped=index.gzipped):
                pass
    except KineticsError as error:
        return str(error)
    return None
