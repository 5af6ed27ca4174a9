"""The parent's side of the processes that read video files. `kinetics_fs.media.checker_process` is the child's.

FFmpeg's libraries parse files from outside, and a file of a few kilobytes can make them allocate gigabytes or crash. A
confined process with a memory limit does that, so that such a file costs nothing but its own verdict. It receives files
as descriptors. The files that it creates lie in its own folder and are cloned or copied from there.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.util.confined import MAX_FILE_SIZE, Call, ConfinedProcess, ProcessDied
from kinetics_fs.util.files import atomic_path, link_or_copy
from kinetics_fs.util.sandbox import Confinement

_TIMEOUT = 600.0
"""Seconds that one file may take."""
_MAX_REQUESTS = 500
"""Requests after which a process is replaced, because decoders leak memory."""

T = TypeVar("T")


class Checker:
    """Confined processes that verify, convert and cut video files.

    There are as many processes as threads that call the methods at the same time. The methods raise:
        FetchError: the file is damaged or not a video, or reading it needs too much memory or time or crashes the
            process (CORRUPT); a file cannot be opened or written, or a process cannot be started (LOCAL).

    Attributes:
        confinement: which parts of the sandbox are in force in the newest process; None before the first one.

    Args:
        scratch: folder for the folders of the processes; None if nothing is to be converted or cut.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._lock = threading.Lock()
        self._idle: list[ConfinedProcess] = []
        self.confinement: Confinement | None = None

    def check(self, path: Path, level: VerifyLevel, *, accept_unknown: bool = True) -> float | None:
        """Verify a clip at a level. A video in another container than mp4 is replaced by an mp4 file.

        Whatever the level, a file that is served as mp4 is no other known kind of file.

        Args:
            path: the file.
            level: the level.
            accept_unknown: without verification, accept a file that is of no known kind.

        Returns:
            The seconds that the pictures cover; None if the level does not measure them.
        """

        def replace(process: ConfinedProcess, answer: Any) -> float | None:
            created, duration = answer
            if created is not None:
                with atomic_path(path, durable=False) as replacement:
                    take(process, created, replacement)
            return None if duration is None else float(duration)

        with open_file(path) as file:
            return self._run("check", {"level": level, "accept_unknown": accept_unknown}, file, use=replace)

    def measure(self, file: int) -> float:
        """Return the seconds that the pictures of an open mp4 file cover; see `check_container`."""
        return float(self._run("measure", {}, file))

    def decode(self, file: int) -> float:
        """Decode an open mp4 file and return the seconds that its pictures cover; see `verify_clip`."""
        return float(self._run("decode", {}, file))

    def find_excerpt(self, path: Path, start: int, end: int) -> Media:
        """Find a clip in a video file by the duration of the file; see `find_excerpt`."""
        with open_file(path) as file:
            found: tuple[float, float | None, bool] = self._run("excerpt", {"start": start, "end": end}, file)
        begin, length, whole = found
        return Media(path, float(begin), None if length is None else float(length), whole=bool(whole))

    def cut(self, media: Media, duration: float, target: Path, *, max_height: int, exact: bool) -> float:
        """Cut a clip and verify it; see `cut`.

        Returns:
            The seconds that its pictures cover.
        """
        arguments = {
            "media": asdict(media) | {"path": ""},
            "duration": duration,
            "max_height": max_height,
            "exact": exact,
        }
        with open_file(media.path) as file:
            return self._run("cut", arguments, file, use=clip_into(target))

    def thumbnail(self, file: int, width: int) -> bytes:
        """Return a frame of an open video file as a small JPEG; see `thumbnail`."""
        return base64.b64decode(self._run("thumbnail", {"width": width}, file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The next call starts others."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _start(self) -> ConfinedProcess:
        return ConfinedProcess("kinetics_fs.media.checker_process", {}, scratch=self._scratch)

    def _run(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        file: int | None = None,
        *,
        use: Callable[[ConfinedProcess, Any], T] = lambda _, answer: answer,
        calls: Mapping[str, Call] | None = None,
        timeout: float | None = _TIMEOUT,
        retry: bool = True,
    ) -> T:
        """Have a process do an operation.

        Args:
            operation: name of the operation.
            arguments: its arguments.
            file: a descriptor to send.
            use: makes the result from the answer, while the process keeps what it has created.
            calls: see `ConfinedProcess.ask`.
            timeout: seconds that it may take; None for any time.
            retry: whether to use a new process if the present one dies, perhaps because of the files before this one.
        """

        def ask(process: ConfinedProcess) -> T:
            self.confinement = process.confinement
            try:
                files = [] if file is None else [file]
                return use(process, process.ask(operation, arguments, files, timeout=timeout, calls=calls))
            finally:
                process.empty_folder()
                if process.is_usable and process.requests < _MAX_REQUESTS:
                    with self._lock:
                        self._idle.append(process)
                else:
                    process.end()

        with self._lock:
            present = self._idle.pop() if self._idle else None
        if present is not None:
            try:
                return ask(present)
            except ProcessDied:
                if not retry:
                    raise
        return ask(self._start())


@contextmanager
def open_file(path: Path) -> Iterator[int]:
    """Open a file for a confined process.

    Raises:
        FetchError: it cannot be opened (LOCAL).
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise FetchError(
            FailureKind.LOCAL, f"cannot read the file: {error.strerror}", cause_errno=error.errno
        ) from error
    try:
        yield file
    finally:
        os.close(file)


def clip_into(target: Path) -> Callable[[ConfinedProcess, Any], float]:
    """Return a function that copies the clip of an answer to `target`, and returns the seconds of its pictures."""

    def take_clip(process: ConfinedProcess, answer: Any) -> float:
        created, seconds = answer
        take(process, created, target)
        return float(seconds)

    return take_clip


def take(process: ConfinedProcess, name: object, target: Path) -> None:
    """Clone or copy a file that a confined process has created, into a new file of this process.

    The file that the process wrote could be changed through descriptors that the process still has.

    Args:
        process: the process.
        name: name of the file in the folder of the process.
        target: path of the new file, which replaces an existing one.

    Raises:
        FetchError: there is no such file (CORRUPT), or it cannot be copied (LOCAL).
    """
    try:
        if process.folder is None or not isinstance(name, str) or name != os.path.basename(name):  # noqa: PTH119
            raise FileNotFoundError(errno.ENOENT, "not the name of a file")
        file = os.open(process.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FetchError(
            FailureKind.CORRUPT, f"the process that reads the file left no clip: {error.strerror}"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FetchError(FailureKind.CORRUPT, "the process that reads the file left no clip: not a regular file")
        target.unlink(missing_ok=True)
        link_or_copy(file, target, max_size=MAX_FILE_SIZE, link=False)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(
            FailureKind.LOCAL, f"cannot store the clip: {error.strerror or error}", cause_errno=error.errno
        ) from error
    finally:
        os.close(file)
