"""Executors of archive jobs: processes of this machine, or anything else with a `submit`."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill.archive_job import ArchiveJob, Summary, UnfinishedArchive, fill_archive
from kinetics_fs.util import logs
from kinetics_fs.util.processes import end_with_parent

_SPAWN = multiprocessing.get_context("spawn")
_SHUTDOWN_TIMEOUT = 5.0
"""Seconds that a process has to end after SIGTERM before it is killed."""


JobReport = Callable[[ArchiveJob, int, int], None]
"""Receives the progress of a job: bytes of the archive that are done, and all bytes. Any thread may call it."""


class Executor(Protocol):
    """Does archive jobs, on this machine or on others. Use it as a context, which ends with `shutdown`."""

    @property
    def slots(self) -> int:
        """Number of jobs to submit at a time; may change while it runs."""
        ...

    def submit(self, job: ArchiveJob) -> Future[Summary]:
        """Accept a job. The future fails with a `KineticsError`."""
        ...

    def shutdown(self) -> None:
        """End all jobs in a state from which the same jobs resume, and wait for their end. May be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _PackedError(NamedTuple):
    """An error on its way between processes: exceptions with arguments of their own cannot be unpickled."""

    text: str
    kind: FailureKind | None = None
    """Kind of a `FetchError`."""
    summary: Summary | None = None
    """Summary of an `UnfinishedArchive`."""
    incomplete: bool = False

    def unpack(self) -> KineticsError:
        if self.kind is not None:
            return FetchError(self.kind, self.text)
        if self.summary is not None:
            return UnfinishedArchive(self.text, self.summary, incomplete=self.incomplete)
        return KineticsError(self.text)


class ProcessExecutor:
    """Executor that does each job in a process of its own, so that a process that dies takes no other job with it.

    The processes end with this one, however this one ends.

    Args:
        processes: number of jobs to do at the same time.
        report: receives the progress of each job.

    Attributes:
        slots: number of jobs to do at the same time.
    """

    def __init__(self, processes: int, report: JobReport) -> None:
        self.slots = processes
        self._report = report
        # A terminal sends Ctrl-C to all processes of the command, but only the first may act on it. Processes inherit
        # the signal mask of the thread that starts them.
        self._threads = ThreadPoolExecutor(
            processes, initializer=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        )
        self._lock = threading.Lock()
        self._processes: set[SpawnProcess] = set()
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, job: ArchiveJob) -> Future[Summary]:
        """Accept a job; it begins when a process is free."""
        return self._threads.submit(self._run, job)

    def shutdown(self) -> None:
        """Cancel jobs that have not begun, end those in progress, and wait for the end of their processes.

        SIGTERM lets a process leave a state from which the same job resumes. A process that ignores it is killed.
        """
        with self._lock:
            self._closing = True
            for process in self._processes:
                process.terminate()
        timer = threading.Timer(_SHUTDOWN_TIMEOUT, self._kill)
        timer.start()
        self._threads.shutdown(cancel_futures=True)
        timer.cancel()

    def _kill(self) -> None:
        with self._lock:
            for process in self._processes:
                process.kill()

    def _run(self, job: ArchiveJob) -> Summary:
        receiver, sender = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_work, args=(job, sender, logging.getLogger().level), daemon=True)
        with receiver:
            with sender, self._lock:
                if self._closing:
                    raise FetchError(FailureKind.TRANSIENT, "ended before it began")
                process.start()
                self._processes.add(process)
            try:
                answer = self._receive_answer(job, receiver)
            finally:
                process.join()
                with self._lock:
                    self._processes.discard(process)
        if isinstance(answer, Summary):
            return answer
        if answer is None:
            raise FetchError(FailureKind.TRANSIENT, f"its process ended early (exit code {process.exitcode})")
        raise answer.unpack()

    def _receive_answer(self, job: ArchiveJob, receiver: Connection) -> Summary | _PackedError | None:
        while True:
            try:
                message: Summary | _PackedError | tuple[int, int] = receiver.recv()
            except EOFError:
                return None
            if isinstance(message, Summary | _PackedError):
                return message
            self._report(job, *message)


def _work(job: ArchiveJob, sender: Connection, log_level: int) -> None:
    """Do a job; the main function of a process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves all contexts, and so no unfinished files
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with_parent(parent.sentinel)
    logs.set_up(log_level)

    def report(done: int, total: int) -> None:
        with suppress(OSError):  # the parent process has just died
            sender.send((done, total))

    answer: Summary | _PackedError
    try:
        answer = fill_archive(job, report)
    except FetchError as error:
        answer = _PackedError(error.reason, error.kind)
    except UnfinishedArchive as error:
        answer = _PackedError(str(error), summary=error.summary, incomplete=error.incomplete)
    except KineticsError as error:
        answer = _PackedError(str(error))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to clean up
    sender.send(answer)
