"""`kinetics-fs fill`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import archive_options, json_option, open_output, verify_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import FailureKind, FetchError, KineticsError

if TYPE_CHECKING:
    from kinetics_fs.catalog import Catalog, Clip
    from kinetics_fs.fill.runner import Outcome
    from kinetics_fs.sources.archive.base import Version
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
    from kinetics_fs.store import Store

_MOST_PER_CLIP = 2 * 1024 * 1024
"""Bytes that a clip of unknown size takes at most, on the average of many: the mean of Kinetics is 1.5 MB."""


@click.command("fill", cls=Command, short_help="Fill the cache out of archives.")
@with_settings("selection", "cache", "archive", "log")
@archive_options
@verify_option
@click.option("--no-index", is_flag=True, help="Make no index of the archives, which costs half as much time again.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write how it went, as JSON.  [default: fill-report.json in the cache]",
)
@json_option
def command(
    settings: Settings,
    archives: tuple[str, ...],
    jobs: int,
    depth: str,
    no_index: bool,
    report_file: Path | None,
    as_json: bool,
) -> int:
    """Fill the cache with a selection out of the archives that hold it, in one pass over each.

    For a whole split, or whole classes, this is much quicker than fetching clip by clip. May be interrupted or killed:
    the same command goes on, and reads no archive again that it has finished. The archives become indexed on the way,
    so that a mount can open what is in them later without this. Exits with 3 if not all could be had.

    \b
    kinetics-fs fill --split validation
    kinetics-fs fill --release 700-2020 --split train --class "surfing water" --jobs 4
    kinetics-fs fill --release 400 --archive-url /data/kinetics --verify decode
    """
    from kinetics_fs.app import index_db_path, open_index_db, open_store
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.fill import Job
    from kinetics_fs.fill.plan import archives_holding, was_done
    from kinetics_fs.fill.runner import Outcome, find_versions, pass_over
    from kinetics_fs.media.verify import VerifyLevel
    from kinetics_fs.sources.archive.libz import finds_block_boundaries
    from kinetics_fs.store import HistoryRecorder

    indexed = not no_index and finds_block_boundaries()
    outcome = Outcome()
    with ExitStack() as opened:
        catalog = opened.enter_context(catalog_of(settings))
        store = opened.enter_context(open_store(settings))
        index_db = opened.enter_context(open_index_db(settings)) if index_db_path(settings).exists() else None
        # What an archive has for one selection says nothing of another one: each has its own folder.
        states = store.layout.fill_states(catalog.digest)
        whole = not settings.klass and not settings.annotations
        names = list(archives) or archives_holding(settings.archive_url, catalog, whole=whole)
        versions = find_versions(settings, names, outcome)
        here = _Here(catalog, store, index_db)
        indexed_now = _indexed_now(index_db, versions)
        outcome.earlier = [
            name
            for name, version in versions.items()
            if was_done(states, name, version)
            and name not in here.evicted_from
            and (name in indexed_now or not indexed)
        ]
        to_read = {name: version for name, version in versions.items() if name not in outcome.earlier}
        _check_room(settings, catalog, store, index_db, here, to_read, indexed_now)
        opened.enter_context(HistoryRecorder(store.history, outcome.counts))
        pass_over(
            (
                Job(
                    base=settings.archive_url,
                    archive=name,
                    cache=settings.cache_dir,
                    limit=settings.cache_size,
                    min_free=settings.min_free,
                    catalog=catalog.path,
                    index_db=index_db_path(settings) if indexed else None,
                    states=states,
                    verify=VerifyLevel(depth),
                )
                for name in to_read
            ),
            versions,
            outcome,
            at_once=jobs,
            clips_here=lambda: store.usage().clips,
        )
        index_db = opened.enter_context(open_index_db(settings)) if index_db_path(settings).exists() else None
        # Of a few archives, or half of them, nothing follows for the clips of the others.
        lacking = _Lacking() if archives or outcome.interrupted else _Lacking.of(catalog, store, index_db)
        if indexed and not outcome.failed and not outcome.hopeless:
            gone = FetchError(FailureKind.GONE, "not in archives", source="archive")
            store.failure_log.remember_all(lacking.in_no_archive, gone)
    result = _result(outcome) | {
        "not_taken": len(lacking.not_taken),
        "in_no_archive": len(lacking.in_no_archive),
        "interrupted": outcome.interrupted,
    }
    place = report_file or store.layout.fill_report
    lists = {
        "clips_not_taken": [clip.key for clip in lacking.not_taken],
        "clips_in_no_archive": [clip.key for clip in lacking.in_no_archive],
    }
    with open_output(place) as file:
        file.write(json.dumps(result | lists, indent=1).encode() + b"\n")
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result, outcome, place)
    if outcome.hopeless:
        raise outcome.hopeless
    unfit = any(summary.failed or summary.busy for summary in outcome.read.values())
    return outcome.exit_code(complete=not (unfit or lacking.not_taken or lacking.in_no_archive))


def _indexed_now(index_db: ArchiveIndexDB | None, versions: Mapping[str, Version]) -> set[str]:
    """The archives of which this very version is indexed."""
    return {
        one.archive
        for one in (index_db.archives() if index_db else ())
        if one.archive in versions and one.version.matches(versions[one.archive])
    }


class _Here:
    """What of a selection is here before it begins.

    Attributes:
        bytes: of the clips that are here.
        pinned: of those among them that are pinned.
        bytes_not_indexed: of those among them that no index has.
        unknown: clips that are not here, and that no index has.
        evicted_from: archives with clips that were here once.
    """

    def __init__(self, catalog: Catalog, store: Store, index_db: ArchiveIndexDB | None) -> None:
        from kinetics_fs.store import selection_pages

        self.bytes = self.pinned = self.bytes_not_indexed = self.unknown = 0
        self.evicted_from: set[str] = set()
        for page in selection_pages(catalog, store):
            self.pinned += store.pins.of(page.keys).bytes
            indexed = index_db.sizes(page.keys) if index_db else {}
            for clip in (entry.clip for entry in page.entries):
                known = page.sizes.get(clip.key)
                if known is not None and known.cached:
                    self.bytes += known.size
                    self.bytes_not_indexed += 0 if clip.key in indexed else known.size
                    continue
                self.unknown += clip.key not in indexed
                if known is not None and index_db:
                    self.evicted_from.update(place.archive for place in index_db.find(clip))


def _check_room(
    settings: Settings,
    catalog: Catalog,
    store: Store,
    index_db: ArchiveIndexDB | None,
    here: _Here,
    to_read: Mapping[str, Version],
    indexed_now: Collection[str],
) -> None:
    """Refuses what will not fit: exactly where archives are indexed, else by their sizes.

    Raises:
        KineticsError: the limit or the disk is too small.
    """
    coming = 0
    if index_db:
        for index in index_db.indexes([name for name in to_read if name in indexed_now]):
            coming += sum(
                record.size
                for clip, record in index.records.items()
                if catalog.locate(clip) and not store.is_cached(clip)
            )
    # Videos hardly deflate: an archive is about as large as its clips.
    archives = sum(version.size for name, version in to_read.items() if name not in indexed_now)
    coming += min(max(0, archives - here.bytes_not_indexed), here.unknown * _MOST_PER_CLIP)
    needed = here.bytes + coming
    pinned = store.pins.totals().bytes - here.pinned  # which none of it can take the place of
    beside = f" beside {filesize.decimal(pinned)} that are pinned (see kinetics-fs pin remove)" if pinned else ""
    if settings.cache_size is not None and needed + pinned > settings.cache_size:
        raise KineticsError(
            f"the selection takes about {filesize.decimal(needed)}, and the cache is limited to"
            f" {filesize.decimal(settings.cache_size)}{beside}: give a larger --cache-size, or select less"
        )
    usage = store.usage()
    free = usage.disk_free - settings.min_free + usage.bytes - here.bytes - pinned
    if coming > free:
        raise KineticsError(
            f"about {filesize.decimal(coming)} are to come, and the disk of {settings.cache_dir} has room for"
            f" {filesize.decimal(max(0, free))}{beside}: give a --cache-dir on another disk, or select less"
        )


class _Lacking:
    """Those clips of a selection that are not here when all is done.

    Attributes:
        not_taken: an archive that is indexed has them.
        in_no_archive: none has them that was read to its end.
    """

    def __init__(self) -> None:
        self.not_taken: list[Clip] = []
        self.in_no_archive: list[Clip] = []

    @classmethod
    def of(cls, catalog: Catalog, store: Store, index_db: ArchiveIndexDB | None) -> _Lacking:
        from kinetics_fs.store import selection_pages

        lacking = cls()
        seen: set[Clip] = set()
        for page in selection_pages(catalog, store):
            clips = (entry.clip for entry in page.entries if not page.is_cached(entry))
            absent = [clip for clip in clips if clip not in seen]
            seen.update(absent)
            indexed = index_db.sizes([clip.key for clip in absent]) if index_db else {}
            for clip in absent:
                (lacking.not_taken if clip.key in indexed else lacking.in_no_archive).append(clip)
        return lacking


def _result(outcome: Outcome) -> dict[str, Any]:
    failed: Counter[str] = Counter()
    for summary in outcome.read.values():
        failed += summary.failed
    sums = {
        key: sum(getattr(summary, field) for summary in outcome.read.values())
        for key, field in {
            "stored": "stored",
            "already_cached": "present",
            "not_in_annotations": "not_wanted",
            "busy": "busy",
            "indexed": "indexed",
            "bytes_read": "bytes",
        }.items()
    }
    return {**sums, "corrupt": dict(failed), "refused": dict(outcome.refused()), "archives": outcome.as_json()}


def _print(result: Mapping[str, Any], outcome: Outcome, report: Path) -> None:
    from kinetics_fs.fill.runner import say_failed

    corrupt, refused = result["corrupt"], result["refused"]
    click.echo(
        f"{result['stored']:,} clips stored, {result['already_cached']:,} already here,"
        f" {result['not_in_annotations']:,} not in the annotations, {sum(corrupt.values()):,} corrupt"
    )
    for reason, number in corrupt.items():
        click.echo(f"  {number:,} corrupt: {reason}")
    for reason, number in refused.items():
        click.echo(f"  {number:,} files that are no clips: {reason}")
    if result["busy"]:
        click.echo(f"  {result['busy']:,} left to others, who are fetching them")
    click.echo(
        f"{len(outcome.read):,} archives read, {len(outcome.earlier):,} read before, {len(outcome.failed):,} failed"
    )
    if result["not_taken"]:
        click.echo(f"{result['not_taken']:,} clips are not here although an archive has them")
    if result["in_no_archive"]:
        click.echo(f"{result['in_no_archive']:,} clips are in no archive that was read whole")
    say_failed(outcome)
    click.echo(f"All of it, with the names of these clips: {report}")
