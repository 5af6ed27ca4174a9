"""Processes that use a store, and that can be killed before any change to a file.

They are forked from a server that has imported the store, so that each one costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.store_subprocess"])

KILLED = -signal.SIGKILL


def start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a function of a module in a separate process."""
    process = CONTEXT.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    """Wait for a process. Return its exit code, negative for a signal."""
    process.join(60)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def die() -> None:
    """Kill this process with SIGKILL: no `finally` and no exit handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}


class Steps:
    """Counts the changes of files and the commits of this process, and kills it before one of them.

    Create it before the store is opened, because it traces only connections that are made afterwards.

    Args:
        log: file to which each step is written before it happens.
    """

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left: int | None = None
        connect = sqlite3.connect

        def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(self._statement)
            return connection

        sqlite3.connect = connect_traced  # type: ignore[assignment]
        sys.addaudithook(self._event)

    def die_before(self, number: int) -> None:
        """Start to count; die before the step with this number."""
        self._left = number

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._step(f"{event} {arguments[0]}")

    def _statement(self, statement: str) -> None:
        if statement == "COMMIT":
            self._step(statement)

    def _step(self, what: str) -> None:
        if self._left is not None:
            os.write(self._log, " ".join(what.split()).encode() + b"\n")
            self._left -= 1
            if self._left == 0:
                die()


def steps(log: Path) -> list[str]:
    """Return the steps of a process, with the one before which it was killed at the end."""
    return log.read_text().splitlines()
