"""Looks at a mount from outside, as its readers do: `python -m kinetics_fs.mount.watchdog MOUNTPOINT`.

For each line of input it has the kernel ask the mount something that no kernel remembers an answer to, and prints a
line if the mount answered. A process of its own, for who waits in a mount that is stuck cannot be killed; a thread of
the mount's process would keep that from ending, and so the mount from being given up.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from pathlib import Path


def main() -> None:
    place = sys.argv[1]
    for _ in sys.stdin:
        try:
            os.statvfs(place)
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                continue  # nobody is there; any other error is an answer
        print(flush=True)


class Watchdog:
    """The side of who wants to know. For one thread.

    Args:
        place: a mount point.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self, within: float) -> bool:
        """Whether the mount answered within so many seconds."""
        try:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], within)[0]:
                return False
            return bool(os.read(process.stdout.fileno(), 4096))
        except OSError:
            return False

    def close(self) -> None:
        """Ends the process, without waiting for it."""
        if self._process is not None:
            self._process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kinetics_fs.mount.watchdog", str(self._place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        return self._process


if __name__ == "__main__":
    main()
