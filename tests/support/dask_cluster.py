"""A dask cluster of processes on 127.0.0.1: a scheduler and workers, started as people start them.

::

    with DaskCluster(tmp_path) as cluster:
        cluster.start_worker("one", "--nthreads", "2")
        cluster.address                # tcp://127.0.0.1:…
        cluster.kill("one")            # the worker, not its nanny: there is none
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.command_line import ENVIRONMENT

_ENVIRONMENT = {
    **ENVIRONMENT,
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "20ms",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}


class DaskCluster:
    """A scheduler, and the workers that a test starts.

    Args:
        folder: for logs and the working directories of the workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dask"
        self.folder.mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self.start_scheduler()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes."""
        for name in list(self.processes):
            self.kill(name)

    def start_scheduler(self, *arguments: str, port: int = 0) -> None:
        """Start the scheduler, and wait until it listens."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        self._start(
            "scheduler",
            *("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter"),
            *("--scheduler-file", str(file), *arguments),
        )
        self._wait_for("scheduler", lambda: file.exists() and file.read_text().endswith("}"))
        self.address = json.loads(file.read_text())["address"]

    def start_worker(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Start a worker of one thread without a nanny, and wait until it is in the cluster."""
        self._start(
            name,
            *("worker", self.address, "--name", name, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"),
            *("--nthreads", "1", "--local-directory", str(self.folder), *arguments),
            environment=environment or {},
        )
        self._wait_for(name, lambda: "Registered to" in self.log(name))

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a process, wait for its end, and return its exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def children(self, name: str) -> list[int]:
        """Return the processes that a worker has started."""
        tasks = Path(f"/proc/{self.processes[name].pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def log(self, name: str) -> str:
        """Return what a process has written."""
        return (self.folder / f"{name}.log").read_text()

    def _wait_for(self, name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline and self.processes[name].poll() is None, self.log(name)
            time.sleep(0.02)

    def _start(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                env={**_ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=os.sep,
            )
