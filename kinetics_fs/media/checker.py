"""The parent's side of the processes that read video files. `kinetics_fs.media.checker_process` is the child's.

FFmpeg's libraries parse files from outside, and a file of a few kilobytes can make them allocate gigabytes or crash. A
process with a memory limit does that, so that such a file costs nothing but its own verdict.
"""

from __future__ import annotations

import base64
import errno
import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.util.processes import kill_session

_TIMEOUT = 600.0
"""Seconds that one file may take."""
_MAX_ANSWER = 1024**2
_MAX_REQUESTS = 500
"""Requests after which a process is replaced, because decoders leak memory."""


class Checker:
    """Processes that verify, convert and cut video files, each with a limit on its memory.

    There are as many processes as threads that call the methods at the same time. The methods raise:
        FetchError: the file is damaged or not a video, or reading it needs too much memory or time or crashes the
            process (CORRUPT); or a process cannot be started (LOCAL).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def check(self, path: Path, level: VerifyLevel) -> float | None:
        """Verify a clip at a level; see `check_clip`."""
        duration = self._run("check", path=str(path.absolute()), level=level)
        return None if duration is None else float(duration)

    def measure(self, file: int) -> float:
        """Return the seconds that the pictures of an open mp4 file cover; see `check_container`."""
        return float(self._run("measure", file))

    def decode(self, file: int) -> float:
        """Decode an open mp4 file and return the seconds that its pictures cover; see `verify_clip`."""
        return float(self._run("decode", file))

    def convert(self, path: Path) -> None:
        """Replace a clip in another container of video by an mp4 file; see `ensure_mp4`."""
        self._run("convert", path=str(path.absolute()))

    def find_excerpt(self, path: Path, start: int, end: int) -> Media:
        """Find a clip in a video file by the duration of the file; see `find_excerpt`."""
        begin, length, whole = self._run("excerpt", path=str(path.absolute()), start=start, end=end)
        return Media(path, float(begin), None if length is None else float(length), whole=bool(whole))

    def cut(self, media: Media, duration: float, target: Path, *, max_height: int, exact: bool) -> float:
        """Cut a clip and verify it; see `cut`.

        Returns:
            The seconds that its pictures cover.
        """
        described = asdict(media) | {"path": str(media.path.absolute())}
        return float(
            self._run(
                "cut",
                media=described,
                duration=duration,
                target=str(target.absolute()),
                max_height=max_height,
                exact=exact,
            )
        )

    def thumbnail(self, file: int, width: int) -> bytes:
        """Return a frame of an open video file as a small JPEG; see `thumbnail`."""
        return base64.b64decode(self._run("thumbnail", file, width=width))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _run(self, operation: str, file: int | None = None, **arguments: object) -> Any:
        request = {"operation": operation, **arguments}
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is not None:
            with suppress(_Exhausted):  # perhaps by the files before this one
                return self._ask(process, request, file)
        return self._ask(_Process(), request, file)

    def _ask(self, process: _Process, request: dict[str, object], file: int | None) -> Any:
        try:
            return process.ask(request, file)
        finally:
            if process.is_usable:
                with self._lock:
                    self._idle.append(process)
            else:
                process.end()


class _Exhausted(FetchError):
    """The process has died or has no memory left."""

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(FailureKind.CORRUPT, reason, errno=number)


class _Process:
    """A process that answers one request at a time.

    Attributes:
        is_usable: the process is in order, and can have another request.

    Raises:
        FetchError: the process cannot be started (LOCAL).
    """

    def __init__(self) -> None:
        self.is_usable = False
        self._requests = 0
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "kinetics_fs.media.checker_process"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",  # it must not keep a mount busy
                    start_new_session=True,
                )
            except OSError as error:
                self._channel.close()
                raise FetchError(
                    FailureKind.LOCAL,
                    f"cannot start a process that reads files: {error.strerror}",
                    errno=error.errno,
                ) from error
        self._channel.settimeout(_TIMEOUT)
        try:
            self._read_line()
        except (OSError, EOFError):
            raise FetchError(
                FailureKind.LOCAL, f"a process that reads files ended at its start ({self.end()})"
            ) from None

    def ask(self, request: dict[str, object], file: int | None) -> Any:
        """Return the answer to a request.

        Args:
            request: what `kinetics_fs.media.checker_process` describes.
            file: descriptor to send with it.

        Raises:
            _Exhausted: the process has no memory left or has died.
            FetchError: as the process raises it; also if it takes too long (CORRUPT).
        """
        self.is_usable = False
        self._requests += 1
        message = json.dumps(request).encode() + b"\n"
        try:
            if file is not None:
                message = message[socket.send_fds(self._channel, [message], [file]) :]
            self._channel.sendall(message)
            answer = json.loads(self._read_line())
            error = answer.get("error")
            if error is None:
                result = answer["result"]
            else:
                failure = FetchError(FailureKind(error["kind"]), str(error["reason"]), errno=error["errno"])
        except TimeoutError:
            raise FetchError(FailureKind.CORRUPT, f"reading the file takes longer than {_TIMEOUT:.0f} s") from None
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            end = self.end()
            # The kernel kills a process if the machine has no memory left.
            number = errno.ENOMEM if end == signal.SIGKILL.name else None
            raise _Exhausted(f"the process that reads the file died ({end})", number) from None
        if error is not None and failure.errno == errno.ENOMEM:
            raise _Exhausted(failure.reason, failure.errno)
        self.is_usable = self._requests < _MAX_REQUESTS
        if error is not None:
            raise failure
        return result

    def end(self) -> str:
        """Kill the process with its ffmpeg, and return how it ended."""
        self._channel.close()
        if self._process.poll() is None:
            kill_session(self._process.pid)
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"status {status}"

    def _read_line(self) -> bytes:
        received = b""
        while not received.endswith(b"\n"):
            chunk = self._channel.recv(65536)
            received += chunk
            if not chunk or len(received) > _MAX_ANSWER:
                raise EOFError
        return received
