"""`kinetics-fs prefetch`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import given_settings, json_option, with_settings
from kinetics_fs.cli.parameters import UntouchedPath
from kinetics_fs.config import Settings
from kinetics_fs.errors import KineticsError
from kinetics_fs.util.text import count

_SELECTION = frozenset({"split", "class", "max-samples", "shuffle", "seed", "available"})


@click.command("prefetch", cls=Command)
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option(
    "--list",
    "listing",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help="Fetch the clips in this file, one path per line, in their order; `-` is standard input.",
)
@with_settings("selection", "cache", "limits", "shared", "cut", "sources", "network", "archive", "log")
@json_option
def command(mountpoint: Path | None, listing: Path | None, settings: Settings, as_json: bool) -> int:
    """Fetch the clips of a selection into the cache.

    You can interrupt the command: fetched clips stay cached, and the next run resumes. A mount on the same cache shows
    each clip as cached as soon as it arrives, and the clips that its readers open come first. Exits with 3 if some
    clips are unavailable. With --available, other clips replace those that turn out to be.

    With MOUNTPOINT, the mount there fetches the clips in the background, and resumes when it is mounted again at the
    same path. The job number is printed; see `kinetics-fs jobs`. The clips of a list are fetched ahead of a process
    that opens them in this order, as a sampler does: clips that it has not reached are not evicted, and clips that it
    has passed are evicted first.

    \b
    kinetics-fs prefetch --split validation --class "surfing water" --class "springboard diving"
    kinetics-fs prefetch --split train --max-samples 1000 --shuffle --seed 1 --available
    kinetics-fs prefetch /mnt/kinetics --class "surfing water"
    kinetics-fs prefetch /mnt/kinetics --list epoch-1.txt
    """
    if mountpoint is None:
        return _fetch(listing, settings, as_json)
    _start_job(mountpoint, listing, settings, as_json)
    return 0


def _fetch(listing: Path | None, settings: Settings, as_json: bool) -> int:
    from kinetics_fs.cli.fetching import report_fetched, warn_of_rate
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.fetch.prefetch import parse_clip_list

    with open_library(settings) as library:
        clips = None
        if listing is not None:
            clips, invalid = parse_clip_list(_read_lines(listing))
            _warn_of_invalid_lines(invalid)
            if not clips:
                raise KineticsError(
                    f"cannot prefetch the list {listing}: it names no clip; give a path, file name or key of a clip per"
                    " line"
                )
        warn_of_rate(settings, library.catalog.clip_count if clips is None else len(clips))
        with ProgressBars() as bars:
            result = library.prefetch(clips, on_progress=bars.add_prefetch())
    return report_fetched(result, settings, as_json)


def _start_job(mountpoint: Path, listing: Path | None, settings: Settings, as_json: bool) -> None:
    from kinetics_fs.app import selection_of
    from kinetics_fs.mount.jobs import start_job

    given = given_settings()
    if foreign := given - _SELECTION - {"log-format"}:
        raise click.UsageError(
            f"cannot set --{min(foreign)} for a job: it is a setting of the mount; leave it out, or mount again with it"
        )
    if listing is not None and given & _SELECTION:
        raise click.UsageError("cannot prefetch: a list and a selection exclude each other; give one of them")
    job, invalid = start_job(mountpoint, selection_of(settings) if listing is None else _read_lines(listing))
    _warn_of_invalid_lines(invalid)
    if as_json:
        click.echo(json.dumps(job.to_json()))
        return
    quoted = shlex.quote(str(mountpoint))
    click.echo(
        f"Job {job.id}: the mount prefetches {count(job.clips, 'clip')}. To follow it: kinetics-fs jobs wait {quoted}"
        f" {job.id}; to cancel it: kinetics-fs jobs cancel {quoted} {job.id}"
    )


def _read_lines(listing: Path) -> list[str]:
    try:
        with click.open_file(str(listing)) as file:
            return [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KineticsError(f"cannot read the list {listing}: {cause}; give the path of a text file") from error


def _warn_of_invalid_lines(invalid: int) -> None:
    if invalid:
        click.echo(f"{count(invalid, 'line')} of the list skipped, because no clip has such a name", err=True)
