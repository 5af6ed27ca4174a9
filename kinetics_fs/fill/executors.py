"""Executors of archive jobs, which do them on this machine or on others."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from kinetics_fs.errors import SettingError
from kinetics_fs.fill.archive_job import ArchiveJob, Outcome
from kinetics_fs.fill.job_process import JobProcess, JobReport, read_answer


class Executor(Protocol):
    """Does archive jobs, on this machine or on others. Use it as a context, which ends with `shutdown`."""

    @property
    def is_local(self) -> bool:
        """Whether the jobs use the paths of this machine; otherwise other machines have the clips."""
        ...

    @property
    def slots(self) -> int:
        """Number of jobs to submit at a time; may change while it runs."""
        ...

    def submit(self, job: ArchiveJob) -> Future[Outcome]:
        """Accept a job. The future fails with a `KineticsError`."""
        ...

    def shutdown(self) -> None:
        """End all jobs in a state from which the same jobs resume, and wait for their end. May be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_executor(
    processes: int, report: JobReport, *, dask: str | None = None, worker_cache_dir: str | None = None
) -> Executor:
    """Return the executor for these settings.

    Args:
        processes: number of jobs to do at the same time on this machine.
        report: receives the progress of each job.
        dask: address of the scheduler of a dask cluster that does the jobs instead.
        worker_cache_dir: cache directory on the machines of its workers; None for the path of the cache of the jobs.

    Raises:
        SettingError: the cluster cannot be used with these settings.
        KineticsError: the cluster does not answer, or has other versions.
    """
    if dask is not None:
        from kinetics_fs.fill.dask_executor import DaskExecutor

        return DaskExecutor(dask, report, worker_cache_dir=worker_cache_dir)
    if worker_cache_dir is not None:
        raise SettingError("cannot use --worker-cache-dir without --dask: there are no workers; use --cache-dir")
    return ProcessExecutor(processes, report)


class ProcessExecutor:
    """Executor that does each job in a process of its own, so that a process that dies takes no other job with it.

    The processes end with this one, however this one ends.

    Args:
        processes: number of jobs to do at the same time.
        report: receives the progress of each job.

    Attributes:
        slots: number of jobs to do at the same time.
    """

    is_local = True

    def __init__(self, processes: int, report: JobReport) -> None:
        self.slots = processes
        self._report = report
        self._threads = ThreadPoolExecutor(processes)
        self._lock = threading.Lock()
        self._running: set[JobProcess] = set()
        self._is_closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, job: ArchiveJob) -> Future[Outcome]:
        """Accept a job; it begins when a process is free."""
        return self._threads.submit(self._run, job)

    def shutdown(self) -> None:
        """Cancel jobs that have not begun, end those in progress, and wait for the end of their processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closing = True
            for process in self._running:
                process.end()
        self._threads.shutdown()

    def _run(self, job: ArchiveJob) -> Outcome:
        process = JobProcess(job)
        with self._lock:
            self._running.add(process)
            if self._is_closing:
                process.end()
        try:
            return read_answer(process.run(lambda done, total: self._report(job, done, total)))
        finally:
            with self._lock:
                self._running.discard(process)
