"""The client side of the prefetch jobs of a mount: start, list, wait for and cancel them over its control socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kinetics_fs.catalog import Selection
from kinetics_fs.control.status import PrefetchStatus
from kinetics_fs.mount.query import connect_to_mount


def start_job(mountpoint: Path, clips: Selection | Iterable[str]) -> tuple[PrefetchStatus, int]:
    """Have a mount prefetch a selection, or a list of clips in its order.

    Args:
        mountpoint: the mount point.
        clips: a selection, or lines with a path, a file name or a key of a clip each.

    Returns:
        The job, and the number of lines that name no clip.

    Raises:
        MountError: there is no mount, it does not answer, or it shows none of the clips.
    """
    with connect_to_mount(mountpoint) as connection:
        if isinstance(clips, Selection):
            answer = connection.request(
                "prefetch",
                splits=clips.splits,
                classes=clips.classes,
                max_samples=clips.max_samples,
                shuffle=clips.shuffle,
                seed=clips.seed,
                available=clips.available,
            )
        else:
            answer = connection.request("prefetch", lines=clips)
    return PrefetchStatus.from_json(answer), int(answer.get("invalid_lines", 0))


def list_jobs(mountpoint: Path) -> list[PrefetchStatus]:
    """Return the running jobs of a mount, and the last ones that ended.

    Raises:
        MountError: there is no mount, or it does not answer.
    """
    with connect_to_mount(mountpoint) as connection:
        return [PrefetchStatus.from_json(job) for job in connection.request("prefetches")]


def wait_for_job(mountpoint: Path, id: int, on_progress: Callable[[PrefetchStatus], None]) -> PrefetchStatus:
    """Wait until a job has ended, and return it. `on_progress` receives the job whenever it has progressed.

    Raises:
        MountError: there is no mount, it does not answer or ends, or it has no such job.
    """
    with connect_to_mount(mountpoint) as connection:
        answer = connection.request("watch", id=id, on_progress=lambda job: on_progress(PrefetchStatus.from_json(job)))
    return PrefetchStatus.from_json(answer)


def cancel_job(mountpoint: Path, id: int) -> PrefetchStatus:
    """Cancel a job, and return it when it has ended. Fetches in progress continue.

    Raises:
        MountError: there is no mount, it does not answer, or it has no such job.
    """
    with connect_to_mount(mountpoint) as connection:
        return PrefetchStatus.from_json(connection.request("cancel", id=id))
