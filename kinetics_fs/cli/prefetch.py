"""`kinetics-fs prefetch`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import UntouchedPath, given_settings, json_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.control.status import PrefetchStatus
from kinetics_fs.errors import KineticsError

if TYPE_CHECKING:
    from kinetics_fs.catalog import Clip
    from kinetics_fs.control import Connection

_SELECTION = frozenset({"split", "class", "max-samples", "shuffle", "seed"})
_OF_A_MOUNT = _SELECTION | {"log-format"}
"""What can be chosen for a prefetch by a mount."""


@click.command("prefetch", cls=Command)
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option(
    "--from-list",
    "listing",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help="Fetch the clips that a file names, a path on each line, in that order.",
)
@click.option("--wait", is_flag=True, help="With MOUNTPOINT: show how it goes, and return when it is done.")
@click.option("--cancel", type=int, metavar="ID", help="With MOUNTPOINT: end a prefetch of the mount.")
@click.option("--list", "show", is_flag=True, help="With MOUNTPOINT: list the prefetches of the mount.")
@with_settings("selection", "cache", "sources", "network", "archive", "log")
@json_option
def command(
    mountpoint: Path | None,
    listing: Path | None,
    wait: bool,
    cancel: int | None,
    show: bool,
    settings: Settings,
    as_json: bool,
) -> int:
    """Fetch the clips of a selection into the cache.

    May be interrupted: what is there stays, and the next run goes on. A mount on the same cache sees each clip as it
    arrives, and its own readers go first. Exits with 3 if some clips could not be had.

    With MOUNTPOINT the work is handed to the mount there, which goes on with it in the background, also after a
    restart. A list is fetched ahead of who reads in its order, as a sampler does: what he has not reached is not
    evicted, what he has passed goes first.

    \b
    kinetics-fs prefetch --split validation --class "surfing water" --class "springboard diving"
    kinetics-fs prefetch --split train --max-samples 1000 --shuffle --seed 1
    kinetics-fs prefetch /mnt/kinetics --class "surfing water"
    kinetics-fs prefetch /mnt/kinetics --from-list epoch-1.txt
    kinetics-fs prefetch /mnt/kinetics --list
    """
    if mountpoint is None:
        if wait or cancel is not None or show:
            raise click.UsageError("--wait, --cancel and --list are about the prefetches of a mount: name MOUNTPOINT")
        return _by_ourselves(listing, settings, as_json)
    given = given_settings()
    if foreign := given - _OF_A_MOUNT:
        raise click.UsageError(f"--{min(foreign)} is a matter of the mount itself, not of a prefetch by it")
    if sum((listing is not None or bool(given & _SELECTION), cancel is not None, show)) > 1:
        raise click.UsageError("a selection or list, --cancel and --list go one by one")
    mount = _connect(mountpoint)
    if show:
        return _say([PrefetchStatus.from_json(one) for one in mount.request("prefetches")], as_json)
    if cancel is not None:
        return _say([PrefetchStatus.from_json(mount.request("cancel", id=cancel))], as_json)
    answer = mount.request("prefetch", lines=_lines(listing), **(_selection(settings) if listing is None else {}))
    job = PrefetchStatus.from_json(answer)
    if wait:
        return _wait_for(mountpoint, job, as_json)
    how = f"kinetics-fs prefetch {shlex.quote(str(mountpoint))}"
    click.echo(
        json.dumps(answer)
        if as_json
        else f"Prefetch {job.id} by the mount, {job.clips:,} clips. How it goes: {how} --list;"
        f" to end it: {how} --cancel {job.id}"
    )
    return 0


def _by_ourselves(listing: Path | None, settings: Settings, as_json: bool) -> int:
    from kinetics_fs.app import open_store
    from kinetics_fs.cli.fetching import fetch_clips
    from kinetics_fs.cli.library import catalog_of

    clips: Iterable[Clip]
    with catalog_of(settings) as catalog, open_store(settings) as store:
        if listing is None:
            clips, count = (entry.clip for entry in catalog.clips()), catalog.clip_count
        else:
            clips = [clip for clip in _clips_in(_lines(listing)) if catalog.locate(clip)]
            count = len(clips)
        return fetch_clips(clips, count, store, settings, catalog=catalog.path, as_json=as_json)


def _connect(mountpoint: Path) -> Connection:
    from kinetics_fs.mount.query import connect_to_mount

    return click.get_current_context().with_resource(connect_to_mount(mountpoint))


def _selection(settings: Settings) -> dict[str, Any]:
    return {
        "splits": settings.split,
        "classes": settings.klass,
        "max_samples": settings.max_samples,
        "shuffle": settings.shuffle,
        "seed": settings.seed,
    }


def _wait_for(mountpoint: Path, job: PrefetchStatus, as_json: bool) -> int:
    from kinetics_fs.cli.fetching import progress_bar

    with progress_bar(job.clips) as show_progress:

        def show(answer: object) -> None:
            show_progress(PrefetchStatus.from_json(answer))

        job = PrefetchStatus.from_json(_connect(mountpoint).request("watch", id=job.id, on_progress=show))
        show_progress(job)
    _say([job], as_json)
    if job.state == "stopped":
        raise KineticsError(str(job.reason))
    return 0 if job.state == "done" and not job.failed else DONE_IN_PART


def _say(jobs: Sequence[PrefetchStatus], as_json: bool) -> int:
    from kinetics_fs.cli.fetching import say_report

    if as_json:
        click.echo(json.dumps([job.to_json() for job in jobs], indent=2))
        return 0
    for job in jobs:
        reason = f": {job.reason}" if job.reason else ""
        click.echo(f"{job.id}  {job.state}{reason}; {job.clips:,} clips of {job.selection}")
        say_report(job)
    if not jobs:
        click.echo("No prefetches.")
    return 0


def _lines(listing: Path | None) -> list[str]:
    if listing is None:
        return []
    try:
        with click.open_file(str(listing)) as file:
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise KineticsError(f"cannot read the list {listing}: {error}") from error


def _clips_in(lines: Iterable[str]) -> list[Clip]:
    from kinetics_fs.fetch.prefetch_manager import clip_in_line

    found = [clip_in_line(line) for line in lines]
    clips = [clip for clip in found if clip is not None]
    if len(clips) < len(found):
        click.echo(f"{len(found) - len(clips):,} lines of the list name no clip", err=True)
    return clips
