"""`kinetics-fs import`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, verify_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import FetchError, KineticsError

if TYPE_CHECKING:
    from kinetics_fs.fill.importer import FolderImporter, Report
    from kinetics_fs.store import Store

_REASONS_SHOWN = 10


@click.command("import", cls=Command, short_help="Take the clips in a folder into the cache.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_settings("selection", "cache")
@verify_option
@click.option("--copy", is_flag=True, help="Copy files, where they could be hard links to those in DIR.")
@json_option
def command(folder: Path, settings: Settings, depth: str, copy: bool, as_json: bool) -> int:
    """Take the clips of a selection into the cache that are somewhere below DIR.

    Each file that is named as a clip of the selection is looked at and kept, whatever folder it is in. On one
    filesystem that takes no further room: the cache gets a hard link. Nothing that is in the cache goes for it. May be
    interrupted or killed: the same command goes on. Exits with 3 if some files were not fit to be taken.

    \b
    kinetics-fs import ~/fiftyone/kinetics-600
    kinetics-fs import --release 400 --split train --verify decode /data/k400
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.fill.importer import FolderImporter
    from kinetics_fs.media.verify import VerifyLevel
    from kinetics_fs.store import ActivityCounts, HistoryRecorder

    interrupted = False
    hopeless: FetchError | None = None
    with (
        catalog_of(settings) as catalog,
        open_store(settings) as store,
        HistoryRecorder(store.history, ActivityCounts),  # nothing is fetched, but how full the cache is shall be known
    ):
        taking = FolderImporter(folder.absolute(), store, catalog, depth=VerifyLevel(depth), link=not copy)
        try:
            with _bar("files", None) as report:
                taking.look(report)
            _check_room(settings, store, taking)
            with _bar("clips", taking.files) as report:
                taking.take(report)
        except KeyboardInterrupt:
            interrupted = True
        except FetchError as error:
            hopeless = error
    intake = taking.intake
    if as_json:
        click.echo(json.dumps(_result(taking) | {"interrupted": interrupted}))
    else:
        _print(taking)
    if interrupted:
        click.echo("Interrupted; the same command goes on from here.", err=True)
        return 130
    if hopeless:
        raise hopeless
    return DONE_IN_PART if intake.corrupt or intake.unreadable or intake.busy else 0


@contextmanager
def _bar(unit: Literal["clips", "files"], total: int | None) -> Iterator[Report]:
    from kinetics_fs.cli.progress import progress_bars

    with progress_bars(unit) as bars:
        task = bars.add_task("", total=total, note="")
        yield lambda files: bars.advance(task, files)


def _check_room(settings: Settings, store: Store, taking: FolderImporter) -> None:
    """Refuses what will not fit beside all that is here.

    Raises:
        KineticsError: the limit or the disk is too small.
    """
    usage = store.usage()
    if taking.bytes and settings.cache_size is not None and usage.bytes + taking.bytes > settings.cache_size:
        raise KineticsError(
            f"{filesize.decimal(taking.bytes)} are to come, the cache has {filesize.decimal(usage.bytes)} and is"
            f" limited to {filesize.decimal(settings.cache_size)}: give a larger --cache-size, or select less"
        )
    free = max(0, usage.disk_free - settings.min_free)
    if taking.bytes_to_copy > free:
        raise KineticsError(
            f"{filesize.decimal(taking.bytes_to_copy)} are to be copied, and the disk of {settings.cache_dir} has room"
            f" for {filesize.decimal(free)}: give a --cache-dir on another disk, or select less"
        )


def _result(taking: FolderImporter) -> dict[str, Any]:
    intake = taking.intake
    return {
        "taken": intake.taken,
        "linked": intake.linked,
        "already_cached": intake.present,
        "not_in_annotations": intake.not_wanted,
        "busy": intake.busy,
        "corrupt": dict(intake.corrupt),
        "unreadable": dict(intake.unreadable),
        "passed_over": dict(intake.passed_over),
    }


def _print(taking: FolderImporter) -> None:
    intake = taking.intake
    click.echo(
        f"{intake.taken:,} clips taken ({intake.linked:,} as hard links), {intake.present:,} already here,"
        f" {intake.not_wanted:,} not in the annotations, {intake.corrupt.total():,} corrupt"
    )
    _print_reasons("corrupt", intake.corrupt)
    _print_reasons("left out", intake.unreadable)
    _print_reasons("passed over", intake.passed_over)
    if intake.busy:
        click.echo(f"  {intake.busy:,} left to others, who are fetching them")


def _print_reasons(what: str, reasons: Counter[str]) -> None:
    for reason, number in reasons.most_common(_REASONS_SHOWN):
        click.echo(f"  {number:,} {what}: {reason}")
    rest = reasons.total() - sum(number for _, number in reasons.most_common(_REASONS_SHOWN))
    if rest:
        click.echo(f"  {rest:,} {what} for other reasons")
