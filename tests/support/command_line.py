"""The command line, as a process or inside this one, and mounts that are always cleaned up."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kinetics_fs.cli import run

NEUTRAL = {
    # Loopback is never behind a proxy, and plugins that a developer has installed are not used.
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
    "YTDLP_NO_PLUGINS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",  # otherwise botocore waits for a service that does not exist
}
"""Variables that shield the tests from the settings of a developer. The test process has them too."""

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every process would compile all modules that it imports

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("KINETICS_FS_")},
    **NEUTRAL,
    "KINETICS_FS_MIN_FREE": "0",  # the disk of the tests may be nearly full
    "KINETICS_FS_SMALL_CACHE": "1",
    "KINETICS_FS_QUIET": "1",
    "KINETICS_FS_ARCHIVE_URL": "/nonexistent/archives",  # the default is on the internet
}
"""The environment of `kinetics-fs` in tests."""


def kinetics_fs(
    *arguments: str | Path, timeout: float = 60, wrapper: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `kinetics-fs` as a process, to its end.

    Args:
        arguments: of the program. Without `--config`, no configuration file is read.
        timeout: seconds after which the process is killed.
        wrapper: a command that runs the program, such as `prlimit` with its options.
        environment: variables besides `ENVIRONMENT`.

    Returns:
        The exit code, and what the program wrote.

    Raises:
        subprocess.TimeoutExpired: the program did not end in time.
    """
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "kinetics_fs", *_with_config(arguments)],
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `kinetics-fs` inside this process, which takes a fraction of the time of `kinetics_fs`.

    Not for `mount` in the background, which forks, and not where signals, crashes or the end of the process matter.
    The environment, the standard streams and the logging of this process are as before afterwards.

    Args:
        arguments: of the program. Without `--config`, no configuration file is read.
        environment: variables besides `ENVIRONMENT`.

    Returns:
        The exit code, and what the program and its children wrote.
    """
    given = _with_config(arguments)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        _environment({**ENVIRONMENT, **environment}),
        _logging_restored(),
        _standard_streams(output.fileno(), errors.fileno()),
    ):
        try:
            status = run(given)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(["kinetics-fs", *given], status, output.read(), errors.read())


def _with_config(arguments: Sequence[str | Path]) -> list[str]:
    config = [] if "--config" in arguments else ["--config", os.devnull]
    return [*config, *map(str, arguments)]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # depends on TMPDIR, and is determined once
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = None


@contextmanager
def _logging_restored() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("kinetics_fs")
    handlers, level, package_level = root.handlers[:], root.level, package.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        package.setLevel(package_level)


@contextmanager
def _standard_streams(output: int, errors: int) -> Iterator[None]:
    """Connect the standard streams to /dev/null, `output` and `errors`, for Python and for child processes."""
    before = [os.dup(number) for number in range(3)]
    names = "stdin", "stdout", "stderr"
    streams = [getattr(sys, name) for name in names]
    for stream in streams[1:]:
        stream.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        for number, fd in enumerate((nothing, output, errors)):
            os.dup2(fd, number)
            mode = "r" if number == 0 else "w"
            setattr(sys, names[number], open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        yield
    finally:
        for number in range(3):
            setattr(sys, names[number], streams[number])
            os.dup2(before[number], number)
            os.close(before[number])
        os.close(nothing)


class Mounted:
    """A background mount, made by the command line; the end of the context unmounts it in any case.

    Args:
        mountpoint: directory to mount on; created if it does not exist.
        arguments: further arguments of `kinetics-fs mount`.
        config: configuration file; None for none.
        options: options of `kinetics-fs` itself, such as `--debug`.
        wrapper: a command that runs the program, such as `prlimit` with its options.
    """

    def __init__(
        self,
        mountpoint: Path,
        *arguments: str | Path,
        config: Path | None = None,
        options: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.root = mountpoint
        self.log = mountpoint.with_name(mountpoint.name + ".log")
        self._options: list[str | Path] = ["--config", config or Path(os.devnull), *options]
        self._arguments = arguments
        self._wrapper = wrapper
        self.pid = 0

    def __enter__(self) -> Self:
        mount = [*self._options, "mount", "--log-file", self.log, *self._arguments, self.root]
        done = kinetics_fs(*mount, wrapper=self._wrapper)
        if done.returncode:
            raise RuntimeError(f"mount failed: {done.stderr}")
        self.pid = self.status()["pid"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.log.exists():
            print(self.log.read_text(), file=sys.stderr)
        self.end()

    def status(self) -> dict[str, Any]:
        """Return the content of `.kinetics/status.json`."""
        status = json.loads((self.root / ".kinetics/status.json").read_text())
        assert isinstance(status, dict)
        return status

    def end(self) -> None:
        """Unmount lazily, and wait for the process to end."""
        subprocess.run(["umount", "-l", self.root], capture_output=True, check=False)
        pid, self.pid = self.pid, 0
        if pid and not has_ended(pid, within=40):
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"the process of the mount on {self.root} did not end")


def has_ended(pid: int, *, within: float) -> bool:
    """Return whether a process ends within `within` seconds. A zombie counts as ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within)[0])
    finally:
        os.close(process)


@contextmanager
def fuse_device_open_to_all() -> Iterator[None]:
    """Let all users mount, one test at a time over all processes. Some machines reserve /dev/fuse for root."""
    device = Path("/dev/fuse")
    with (Path(tempfile.gettempdir()) / "kinetics-fs-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = stat.S_IMODE(device.stat().st_mode)
        device.chmod(0o666)
        try:
            yield
        finally:
            device.chmod(before)


def reason(path: Path) -> str:
    """Return the reason why a clip is unavailable, from the extended attribute of its file."""
    return os.getxattr(path, "user.kinetics.error").decode()


def json_output(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object on the standard output of a command, which must contain nothing else."""
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value
