"""`kinetics-fs jobs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.command import Group
from kinetics_fs.cli.options import json_option
from kinetics_fs.cli.parameters import UntouchedPath
from kinetics_fs.control.status import PrefetchState, PrefetchStatus
from kinetics_fs.errors import KineticsError, printable


@click.group("jobs", cls=Group, short_help="List, wait for or cancel the prefetch jobs of a mount.")
def command() -> None:
    """List, wait for or cancel the prefetch jobs of a mount.

    `kinetics-fs prefetch MOUNTPOINT` starts a job. The mount runs it in the background, and resumes it when it is
    mounted again at the same path.
    """


@command.command("list", short_help="List the jobs of a mount.")
@click.argument("mountpoint", type=UntouchedPath())
@json_option
def list_(mountpoint: Path, as_json: bool) -> None:
    """List the running jobs of the mount at MOUNTPOINT, and the last ones that ended.

    \b
    kinetics-fs jobs list /mnt/kinetics
    """
    from kinetics_fs.mount.jobs import list_jobs

    _print(list_jobs(mountpoint), as_json)


@command.command("wait", short_help="Show the progress of jobs until they have ended.")
@click.argument("mountpoint", type=UntouchedPath())
@click.argument("id", type=int, metavar="[ID]", required=False)
@json_option
def wait(mountpoint: Path, id: int | None, as_json: bool) -> int:
    """Show the progress of a job of the mount at MOUNTPOINT until it has ended; without ID, of all running jobs.

    Exits with 3 if some clips are unavailable, or if a job was cancelled.

    \b
    kinetics-fs jobs wait /mnt/kinetics
    kinetics-fs jobs wait /mnt/kinetics 2
    """
    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.mount.jobs import list_jobs, wait_for_job

    ids = [id] if id is not None else [job.id for job in list_jobs(mountpoint) if not job.state.has_ended]
    jobs = []
    for each in ids:
        with ProgressBars() as bars:
            show = bars.add_prefetch()
            jobs.append(wait_for_job(mountpoint, each, show))
            show(jobs[-1])
    _print(jobs, as_json, none="No running jobs.")
    for job in jobs:
        if job.state is PrefetchState.STOPPED:
            raise KineticsError(f"cannot finish the job {job.id}: {job.reason}")
    return DONE_IN_PART if any(job.failed or job.state is not PrefetchState.DONE for job in jobs) else 0


@command.command("cancel", short_help="Cancel a job.")
@click.argument("mountpoint", type=UntouchedPath())
@click.argument("id", type=int, metavar="ID")
@json_option
def cancel(mountpoint: Path, id: int, as_json: bool) -> None:
    """Cancel a job of the mount at MOUNTPOINT. Clips that it has fetched stay cached.

    \b
    kinetics-fs jobs cancel /mnt/kinetics 2
    """
    from kinetics_fs.mount.jobs import cancel_job

    _print([cancel_job(mountpoint, id)], as_json)


def _print(jobs: Sequence[PrefetchStatus], as_json: bool, none: str = "No jobs.") -> None:
    from kinetics_fs.control.describe import describe_prefetch

    if as_json:
        click.echo(json.dumps([job.to_json() for job in jobs], indent=2))
        return
    for job in jobs:
        click.echo(printable(describe_prefetch(job)))
    if not jobs:
        click.echo(none)
