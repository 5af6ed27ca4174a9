"""A report on the files in folders of clips that are not used, in the log."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence

_PATIENCE = 5.0
"""Seconds that the end of a fetcher waits for a report that has begun."""


class FolderReport:
    """Lists the folders in a process of its own when the first clip is missing, since a file server may be slow.

    Args:
        folders: the folders.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the report, once; return at once."""
        with self._lock:
            if self._process is not None:
                return
            with contextlib.suppress(OSError):  # the report is not worth a failure
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "kinetics_fs.sources.folder_files", *self._folders],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    cwd="/",  # it must not keep a mount busy
                    start_new_session=True,
                )
                threading.Thread(target=self._process.wait, name="folder-report", daemon=True).start()

    def stop(self) -> None:
        """End the report, after a short time if it has begun."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self._process.kill()
        self._process.wait()
