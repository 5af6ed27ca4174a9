"""The task that does an archive job on a worker of a dask cluster.

A worker's process may not start others by multiprocessing, and it may be killed with its task at any moment. The job is
therefore in a process of its own, which ends with the worker. The scheduler imports this module, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import dask
import distributed
from rich import filesize

from kinetics_fs.catalog.database import prune
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill.archive_job import ArchiveJob
from kinetics_fs.fill.job_process import JobProcess, failure_answer
from kinetics_fs.store import CacheLayout, FillCheckpoints, prepare_folder
from kinetics_fs.store.layout import cache_error
from kinetics_fs.util.disk import fault_of
from kinetics_fs.util.files import atomic_write
from kinetics_fs.util.mount_table import NETWORK_TYPES, filesystem_type
from kinetics_fs.util.ticker import every

TOPIC = "kinetics-fs"
"""Topic of the events by which tasks report."""
WORKER = "{worker}"
"""Part of a cache directory that the name of the worker replaces."""

_REPORT_INTERVAL = 1.0
"""Seconds between two events of a task: all pass through the scheduler."""
_POLL_INTERVAL = 0.5
"""Seconds between two looks at whether the task is still wanted."""

_outstanding: dict[str, int] = {}
"""Bytes that each running task of this process still has to unpack."""
_lock = threading.Lock()


class Reply(TypedDict):
    """The result of a task."""

    worker: str
    """Address of the worker."""
    name: str
    answer: str
    """For `read_answer`."""


class Event(TypedDict):
    """A report of a task. Values are those of MessagePack."""

    key: str
    worker: str
    """Address of the worker."""
    done: int
    """Bytes of the archive that are done; -1 if the task has ended on this worker."""
    total: int


def own_versions() -> dict[str, str]:
    """Return the versions that must be the same on all machines, by the names that people know."""
    return {
        "kinetics-fs": metadata.version("kinetics-fs"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "dask": dask.__version__,
        "distributed": distributed.__version__,
    }


def hold(content: bytes) -> bytes:
    """Return the content of a catalog: the task by which it reaches the workers that need it, from each other."""
    return content


def do_job(
    packed: str, cache_dir: str, catalogs: Mapping[str, bytes], digests: Mapping[str, str], versions: Mapping[str, str]
) -> Reply:
    """Do a job on the worker on which this task runs.

    Args:
        packed: the job, with the paths of the client.
        cache_dir: the cache directory, as this machine has it. `WORKER` is replaced.
        catalogs: content of the catalogs of the job, by file name.
        digests: their SHA-256 (hexadecimal).
        versions: the client's `own_versions`.

    Raises:
        distributed.Reschedule: the worker is leaving the cluster.
    """
    worker = distributed.get_worker()
    task = _Task(worker, Path(cache_dir.replace(WORKER, _safe(str(worker.name)))))
    try:
        task.check(versions)
        answer = task.run(ArchiveJob.unpack(packed), catalogs, digests)
    except KineticsError as error:
        if task.is_leaving:
            raise distributed.Reschedule from error
        answer = failure_answer(error)
    finally:
        task.tell(-1, 0)
    return {"worker": worker.address, "name": str(worker.name), "answer": answer}


class _Task:
    def __init__(self, worker: distributed.Worker, folder: Path) -> None:
        self._worker = worker
        self._folder = folder
        self._key = str(worker.get_current_task())
        self._told_at = -_REPORT_INTERVAL

    @property
    def is_leaving(self) -> bool:
        """Whether the worker is about to end, so that another one must do the job."""
        return self._worker.status in (
            distributed.Status.closing,
            distributed.Status.closing_gracefully,
            distributed.Status.closed,
        )

    def check(self, versions: Mapping[str, str]) -> None:
        """Check that this worker can do jobs.

        Raises:
            FetchError: it cannot.
        """
        own = own_versions()
        for name, version in versions.items():
            if own[name] != version:
                raise _unusable(f"it has {name} {own[name]}, and the client has {version}; install the same version")
        kind = filesystem_type(Path(os.path.realpath(self._folder)))
        if kind in NETWORK_TYPES:
            raise _unusable(
                f"{self._folder} is on a network filesystem ({kind}), which can damage the databases of a cache;"
                " give a --worker-cache-dir on a local disk of the worker's machine"
            )

    def run(self, job: ArchiveJob, catalogs: Mapping[str, bytes], digests: Mapping[str, str]) -> str:
        """Do a job in a process, and return its answer.

        Raises:
            KineticsError: this machine lacks something, or the process has ended early.
        """
        for path in (job.base, job.shared):
            if path.startswith("/") and not Path(path).exists():
                raise _unusable(f"{path} does not exist on its machine; mount that folder there")
        process = JobProcess(self._here(job, catalogs, digests))
        lacking: FetchError | None = None
        self.tell(0, 0)

        def report(done: int, total: int) -> None:
            nonlocal lacking
            if job.keep and job.local and lacking is None:
                lacking = self._reserve(total - done, job.min_free)
            if lacking is not None:
                process.end()
            elif done == total or time.monotonic() - self._told_at >= _REPORT_INTERVAL:
                self.tell(done, total)

        def end_if_unwanted() -> None:
            task = self._worker.state.tasks.get(self._key)
            if self.is_leaving or task is None or task.state == "cancelled":
                process.end()

        try:
            with every(_POLL_INTERVAL, end_if_unwanted):
                return process.run(report)
        except FetchError as error:
            raise lacking or error from None
        finally:
            with _lock:
                _outstanding.pop(self._key, None)

    def tell(self, done: int, total: int) -> None:
        """Send an event to the client."""
        self._told_at = time.monotonic()
        self._worker.log_event(TOPIC, Event(key=self._key, worker=self._worker.address, done=done, total=total))

    def _reserve(self, left: int, min_free: int) -> FetchError | None:
        """Note how many bytes are left to unpack. Return a failure if the disk lacks space for those of all tasks.

        A clip that does not fit would otherwise evict clips that the same fill has stored.
        """
        with _lock:
            begins = self._key not in _outstanding
            _outstanding[self._key] = left
            needed = sum(_outstanding.values())
        free = max(0, shutil.disk_usage(self._folder).free - min_free) if begins else needed
        if needed <= free:
            return None
        return _unusable(
            f"its archives need about {filesize.decimal(needed)}, and the disk of {self._folder} has space for"
            f" {filesize.decimal(free)}; free some, or give a --worker-cache-dir on another disk"
        )

    def _here(self, job: ArchiveJob, catalogs: Mapping[str, bytes], digests: Mapping[str, str]) -> ArchiveJob:
        """Return the job with the paths of this machine, where its catalogs are then."""
        prepare_folder(self._folder)
        folder = CacheLayout(self._folder).catalogs
        for name, content in catalogs.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise FetchError(FailureKind.TRANSIENT, f"the catalog {name} was damaged on its way to the worker")
            try:
                folder.mkdir(exist_ok=True)
                if _sha256(folder / name) != digests[name]:
                    with atomic_write(folder / name) as file:
                        file.write(content)
            except OSError as error:
                raise cache_error(self._folder, fault_of(error, self._folder)) from error
        prune(folder)
        unlisted = job.unlisted
        return dataclasses.replace(
            job,
            cache_dir=self._folder,
            checkpoints=FillCheckpoints(self._folder / job.checkpoints.folder.relative_to(job.cache_dir)),
            catalog_file=job.catalog_file and folder / job.catalog_file.name,
            unlisted=unlisted and dataclasses.replace(unlisted, catalog_file=folder / unlisted.catalog_file.name),
        )


def _unusable(reason: str) -> FetchError:
    """Return the failure of a worker that can do no job."""
    return FetchError(FailureKind.LOCAL, reason)


def _safe(name: str) -> str:
    """Return a name as a part of a path: it may be an address."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "_"


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
