"""Who does jobs: processes of this machine, or whatever else has a `submit`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple, Protocol

from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill.archive_job import Job, Summary, fill_archive
from kinetics_fs.util import logs

_SPAWN = multiprocessing.get_context("spawn")
_REPORT_EVERY = 0.2
_GRACE = 5.0
"""Seconds that a process has to leave what it is at."""


class Executor(Protocol):
    """Does jobs, here or elsewhere."""

    def submit(self, job: Job) -> Future[Summary]:
        """Takes a job on. The future fails with a `KineticsError`."""
        ...


class _Failure(NamedTuple):
    """A failure on its way between processes: exceptions with arguments of their own do not survive it."""

    kind: FailureKind | None
    text: str


class ProcessExecutor:
    """Does each job in a process of its own, so that whatever ends one does not end the others.

    Args:
        at_once: processes.
        report: told now and then of a job: bytes of the archive that are done, and all; by several threads.
    """

    def __init__(self, at_once: int, report: Callable[[Job, int, int], None]) -> None:
        self._report = report
        # Ctrl-C goes to all processes of a terminal; only the first is to act on it. A mask is inherited.
        self._threads = ThreadPoolExecutor(
            at_once, initializer=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        )
        self._lock = threading.Lock()
        self._processes: set[SpawnProcess] = set()
        self._ended = False

    def submit(self, job: Job) -> Future[Summary]:
        return self._threads.submit(self._run, job)

    def end(self) -> None:
        """Gives up what is under way, where it can be gone on with, and what has not begun."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.terminate()
        impatience = threading.Timer(_GRACE, self._kill)
        impatience.start()
        self._threads.shutdown(cancel_futures=True)
        impatience.cancel()

    def _kill(self) -> None:
        with self._lock:
            for process in self._processes:
                process.kill()

    def _run(self, job: Job) -> Summary:
        receiver, sender = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_work, args=(job, sender, logging.getLogger().level), daemon=True)
        with receiver:
            with sender, self._lock:
                if self._ended:
                    raise FetchError(FailureKind.TRANSIENT, "given up before it began")
                process.start()
                self._processes.add(process)
            try:
                answer = self._answer(job, receiver)
            finally:
                process.join()
                with self._lock:
                    self._processes.discard(process)
        if isinstance(answer, Summary):
            return answer
        if answer is None:
            raise FetchError(FailureKind.TRANSIENT, f"its process ended early (exit code {process.exitcode})")
        raise FetchError(answer.kind, answer.text) if answer.kind else KineticsError(answer.text)

    def _answer(self, job: Job, receiver: Connection) -> Summary | _Failure | None:
        while True:
            try:
                word: Summary | _Failure | tuple[int, int] = receiver.recv()
            except EOFError:
                return None
            if isinstance(word, Summary | _Failure):
                return word
            self._report(job, *word)


def _work(job: Job, sender: Connection, log_level: int) -> None:
    """What a process does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves all contexts, and so nothing behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs.set_up(log_level)
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported >= _REPORT_EVERY:
            reported = time.monotonic()
            sender.send((done, total))

    answer: Summary | _Failure
    try:
        answer = fill_archive(job, report)
    except FetchError as error:
        answer = _Failure(error.kind, error.reason)
    except KineticsError as error:
        answer = _Failure(None, str(error))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is held any more
    sender.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
