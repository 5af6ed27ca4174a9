"""A job in a process of its own, and the lines that the process exchanges with its parent.

The parent writes the job to the standard input of the process, and keeps the pipe open: the process ends when the pipe
is closed. The process writes lines to its standard output: its progress, any number of times, then its answer. All
lines are JSON in ASCII, so that they can be passed on to another machine.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kinetics_fs.errors import CatalogError, FailureKind, FetchError, KineticsError, SettingError, StoreError
from kinetics_fs.fill.archive_job import ArchiveJob, Outcome, Report, Summary, UnfinishedArchive, fill_archive
from kinetics_fs.sources.archive.index import read_indexes, write_index
from kinetics_fs.util import logs
from kinetics_fs.util.processes import end_with_parent
from kinetics_fs.util.text import parse_json

JobReport = Callable[[ArchiveJob, int, int], None]
"""Receives the progress of a job: bytes of the archive that are done, and all bytes. Any thread may call it."""

_MAX_END = 5.0
"""Seconds that a process has to end after SIGTERM before it is killed."""


class JobProcess:
    """A process that does one job. It ends with this process, however this one ends.

    Args:
        job: the job.
    """

    def __init__(self, job: ArchiveJob) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ended = False

    def run(self, report: Report) -> str:
        """Start the process, and return its answer, which `read_answer` reads.

        Args:
            report: receives the progress.

        Raises:
            FetchError: the process cannot be started, or ends without an answer.
        """
        with self._start() as process:
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError):  # the process has ended
                os.write(process.stdin.fileno(), f"{self._job.pack()}\n".encode())
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break
                message = json.loads(line)
                if "done" not in message:
                    return line.decode()
                report(message["done"], message["total"])
        raise FetchError(FailureKind.TRANSIENT, f"its process ended early (exit code {process.returncode})")

    def end(self) -> None:
        """End the process in a state from which the same job resumes, as soon as possible. Any thread may call this.

        SIGTERM lets the process remove unfinished files; a second one would interrupt that. A process that ignores it
        is killed.
        """
        with self._lock:
            was_ended, self._is_ended = self._is_ended, True
            if self._process is not None and not was_ended:
                self._process.terminate()
                killer = threading.Timer(_MAX_END, self._process.kill)
                killer.daemon = True
                killer.start()

    def _start(self) -> subprocess.Popen[bytes]:
        # A terminal sends Ctrl-C to all processes of the command, but only the first may act on it. A process inherits
        # the signal mask of the thread that starts it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self._lock:
                if self._is_ended:
                    raise FetchError(FailureKind.TRANSIENT, "ended before it began")
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__, str(logging.getLogger().level)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                return self._process
        except FetchError:
            raise
        except OSError as error:
            reason = f"cannot start a process: {error.strerror}; see ulimit -a"
            raise FetchError(FailureKind.LOCAL, reason, cause_errno=error.errno) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def read_answer(answer: str) -> Outcome:
    """Return the outcome of a job.

    Args:
        answer: what `JobProcess.run` returned, or `failure_answer`.

    Raises:
        FetchError, UnfinishedArchive: the job failed.
        ArchiveError: the index is damaged.
    """
    try:
        values = parse_json(answer)
        if "error" in values:
            raise FetchError.from_json(values["error"])
        summary = Summary.unpack(values["summary"])
        if "unfinished" in values:
            raise UnfinishedArchive(values["unfinished"], summary, incomplete=values["incomplete"])
        packed = base64.b64decode(values["index"] or "")
        return Outcome(summary, next(read_indexes(io.BytesIO(packed)), None))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FetchError(FailureKind.TRANSIENT, f"its process sent an invalid answer: {error}") from error


def failure_answer(error: KineticsError) -> str:
    """Return the answer of a job that failed."""
    values: dict[str, Any]
    if isinstance(error, UnfinishedArchive):
        values = {"unfinished": str(error), "incomplete": error.incomplete, "summary": error.summary.pack()}
    elif isinstance(error, FetchError):
        values = {"error": error.as_json()}
    elif isinstance(error, CatalogError | SettingError | StoreError):  # every other job would fail the same way
        errno = error.errno if isinstance(error, StoreError) else None
        values = {"error": FetchError(FailureKind.LOCAL, str(error), cause_errno=errno).as_json()}
    else:
        values = {"error": FetchError(FailureKind.TRANSIENT, str(error)).as_json()}
    return json.dumps(values)


def _answer(job: ArchiveJob, report: Report) -> str:
    try:
        outcome = fill_archive(job, report)
    except KineticsError as error:
        return failure_answer(error)
    packed = io.BytesIO()
    if outcome.archive_index is not None:
        write_index(outcome.archive_index, packed)
    return json.dumps({"summary": outcome.summary.pack(), "index": base64.b64encode(packed.getvalue()).decode()})


def main() -> None:
    """Do the job that standard input has; the argument is the level of the log."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves all contexts, and so no unfinished files
    output = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # the output of a library is no answer
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # the parent has just died
    end_with_parent(0)
    logs.set_up(int(sys.argv[1]))

    def send(message: str) -> None:
        with suppress(OSError):  # the parent has just died
            print(message, file=output, flush=True)

    job = ArchiveJob.unpack(line.decode())
    answer = _answer(job, lambda done, total: send(json.dumps({"done": done, "total": total})))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to clean up
    send(answer)


if __name__ == "__main__":
    main()
