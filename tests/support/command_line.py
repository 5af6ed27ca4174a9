"""What tests share: the command line as a process, mounts that are always cleaned up."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("KINETICS_FS_")} | {
    # Loopback is never behind a proxy, and no plugin that a developer has installed plays a part.
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
    "YTDLP_NO_PLUGINS": "1",
    # The default is on the internet.
    "KINETICS_FS_ARCHIVE_URL": "/nonexistent/archives",
    "AWS_EC2_METADATA_DISABLED": "true",  # where it does not exist, it is waited for
}


def kinetics_fs(*arguments: str | Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `kinetics-fs` to its end, without any configuration of the user's unless `arguments` name one."""
    config = [] if "--config" in arguments else ["--config", os.devnull]
    return subprocess.run(
        [sys.executable, "-m", "kinetics_fs", *config, *map(str, arguments)],
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Mounted:
    """`kinetics-fs mount`, as a context: in the background, as a user has it, and gone afterwards in any case.

    Args:
        place: folder to mount on; made if it is not there.
        arguments: further arguments of the command.
    """

    def __init__(self, place: Path, *arguments: str | Path, config: Path | None = None) -> None:
        self.root = place
        self.log = place.with_name(place.name + ".log")
        self._arguments = arguments
        self._config = config or Path(os.devnull)
        self.pid = 0

    def __enter__(self) -> Self:
        done = kinetics_fs("--config", self._config, "mount", "--log-file", self.log, *self._arguments, self.root)
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
        """What `.kinetics/status.json` says."""
        status = json.loads((self.root / ".kinetics/status.json").read_text())
        assert isinstance(status, dict)
        return status

    def end(self) -> None:
        """Unmounts, by force if need be, and waits for the process to be gone."""
        subprocess.run(["umount", "-l", self.root], capture_output=True, check=False)
        pid, self.pid = self.pid, 0
        if pid and not has_ended(pid, within=20):
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"the process of the mount on {self.root} did not end")


def has_ended(pid: int, *, within: float) -> bool:
    """Whether a process ends within so many seconds; one that nobody has reaped yet has ended."""
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
    """For a while anybody may mount: some machines keep /dev/fuse to root. One test at a time, over all processes."""
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
    """Why a clip could not be had, as the file itself says."""
    return os.getxattr(path, "user.kinetics.error").decode()
