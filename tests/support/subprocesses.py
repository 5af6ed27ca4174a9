"""Processes that use a store, and the deaths they die.

They are forked from a server that has the store imported already, so that each one costs milliseconds.
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
    """Begins a function of a module in a process of its own."""
    process = CONTEXT.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    """Waits for a process; returns its exit code, negative for a signal."""
    process.join(60)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def die() -> None:
    """`kill -9` of this very process: nothing of it runs afterwards, no `finally`, no exit handler."""
    os.kill(os.getpid(), signal.SIGKILL)


_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}


class Steps:
    """Counts every time that this process changes a file or commits to a database, and lets it die just before one.

    Must be made before the store is opened, to see what it tells its databases.

    Args:
        log: file that each step is written to before it is taken.
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
        """Begins to count."""
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
    """The steps of a process, up to the one that it died before."""
    return log.read_text().splitlines()
