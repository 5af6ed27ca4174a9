"""The parent's side of a worker process. `kinetics_fs.fetch.worker` describes the lines that the two exchange."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import InProgressElsewhere, NotInSource, SourceSettings
from kinetics_fs.util.processes import kill_session
from kinetics_fs.util.sandbox import Confinement

_CHUNK = 65536
_MAX_LINE = 2 * _CHUNK

_MAX_DEATH = 5.0
"""Seconds that a confined process may take to end after its worker."""

_MAX_REQUESTS = 500
"""Requests after which a process is replaced, because extractors and decoders leak memory."""


class VerifiedFile(NamedTuple):
    """A verified clip.

    Attributes:
        path: the file.
        duration: seconds that its pictures cover.
        cut: it was cut with the settings of the sources, and is not the file that an archive or a folder publishes.
    """

    path: Path
    duration: float
    cut: bool


OnVerifiedClip = Callable[[Clip, VerifiedFile], None]
"""Receives the requested clip, or one that came with it."""

OnReceived = Callable[[int], None]
"""Receives the bytes that the sources have sent for a request so far."""


class Worker:
    """A worker process. It is started for the first request, and replaced when it dies.

    One thread calls `fetch`; any thread may call `stop`.

    Attributes:
        confinement: which parts of the sandbox are in force in the newest process that reads what comes from outside;
            None before the first one.

    Args:
        settings: settings of the sources.
        scratch: returns the folder for the folders of those processes; it is created if it does not exist.
    """

    def __init__(self, settings: SourceSettings, scratch: Callable[[], Path]) -> None:
        self._settings = settings
        self._scratch = scratch
        self._folder: Path | None = None
        """The folder of the present process in the scratch folder."""
        self._lifeline: int | None = None
        """Read end of a pipe that closes when the process and those that it has started are dead."""
        self.confinement: Confinement | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._requests = 0
        self._stopped = False
        self._on_received: OnReceived = lambda received: None

    def fetch(
        self,
        clip: Clip,
        source: str,
        folder: Path,
        *,
        timeout: float,
        on_clip: OnVerifiedClip | None = None,
        on_received: OnReceived = lambda received: None,
    ) -> VerifiedFile | None:
        """Have a clip fetched from a source into a folder.

        Args:
            clip: the clip.
            source: name of the source.
            folder: empty folder that nothing else uses.
            timeout: seconds after which the process is ended. They start again with each clip that `on_clip` receives.
            on_clip: receives verified clips as they arrive from a source that reads many at once.
            on_received: receives the progress, about twice a second.

        Returns:
            The verified file; None if `on_clip` received it.

        Raises:
            NotInSource: the source does not have the clip.
            InProgressElsewhere: another process is reading the archive that has it.
            FetchError: as the source raises it; also if the process takes too long (TRANSIENT, ETIMEDOUT) or dies.
            Exception: any that `on_clip` raises.
        """
        request: dict[str, Any] = {"youtube_id": clip.youtube_id, "start": clip.start, "end": clip.end}
        self._on_received = on_received
        with self._exchange(source, request | {"folder": str(folder)}, time.monotonic() + timeout) as (process, answer):
            while "clip" in answer or "wait" in answer:
                if "clip" in answer:
                    self._pass_on(answer, folder, on_clip)
                else:
                    _send(process, {"stored": True})
                answer = self._read_answer(process, time.monotonic() + timeout)
            self._note_confinement(answer)
            return _parse_answer(answer, folder)

    def check(self, youtube_id: str, source: str, *, timeout: float) -> None:
        """Have a source check that a video is available.

        Args:
            youtube_id: id of the video.
            source: name of the source.
            timeout: seconds after which the process is ended.

        Raises:
            FetchError: it is not; also if the process takes too long or dies.
        """
        self._on_received = lambda received: None
        with self._exchange(source, {"control": youtube_id}, time.monotonic() + timeout) as (_, answer):
            self._note_confinement(answer)
            if answer != {"available": True}:
                _parse_answer(answer, Path())

    def _note_confinement(self, answer: dict[str, Any]) -> None:
        if "confinement" in answer:
            self.confinement = Confinement.from_json(answer["confinement"])

    @contextlib.contextmanager
    def _exchange(
        self, source: str, request: dict[str, Any], deadline: float
    ) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
        """Send a request; yield the process and its first answer."""
        earlier = self._process
        process = self._running()
        request |= {"source": source}
        try:
            try:
                self._begin(process, request, deadline)
            except (BrokenPipeError, EOFError):
                if process is not earlier:
                    raise
                # The process died while it had no request, so that this one is not the cause.
                self._end()
                process = self._running()
                self._begin(process, request, deadline)
            yield process, self._read_answer(process, deadline)
        except TimeoutError:
            self._end()
            raise FetchError(
                FailureKind.TRANSIENT, "took longer than --timeout allows", source=source, cause_errno=errno.ETIMEDOUT
            ) from None
        except (FetchError, NotInSource, InProgressElsewhere):
            raise
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            status = self._end()
            raise FetchError(
                FailureKind.TRANSIENT, f"the worker process died (status {status})", source=source
            ) from None
        finally:
            self._requests += 1
            if self._requests >= _MAX_REQUESTS:
                self._end()

    def stop(self) -> None:
        """End the process, and with it the fetch in progress. No further process is started."""
        self._stopped = True
        self._end()

    def _begin(self, process: subprocess.Popen[bytes], request: dict[str, Any], deadline: float) -> None:
        """Send a request to the process, and wait until the process has received it."""
        _send(process, request)
        if json.loads(self._read_line(process, deadline)) != {"begun": True}:
            raise ValueError("the worker process did not begin the request")

    def _pass_on(self, answer: dict[str, Any], folder: Path, on_clip: OnVerifiedClip | None) -> None:
        clip = parse_clip_name(str(answer["clip"]))
        if clip is None or on_clip is None:
            raise ValueError(f"not a clip: {answer['clip']!r}")
        file = _parse_file(answer, folder / clip.name)
        try:
            on_clip(clip, file)
        except BaseException:
            self._end()  # it would continue to send clips that no reader takes
            raise

    def _read_answer(self, process: subprocess.Popen[bytes], deadline: float) -> Any:
        """Return the next answer of the process, and pass on the reports of received bytes before it."""
        while "received" in (answer := json.loads(self._read_line(process, deadline))):
            received = answer["received"]
            if type(received) is not int or received < 0:
                raise ValueError(f"not a number of bytes: {received!r}")
            if time.monotonic() > deadline:
                raise TimeoutError
            self._on_received(received)
        return answer

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Return the next line of the process.

        Raises:
            TimeoutError: there was none before `deadline`, a time of the monotonic clock.
            EOFError: the process is dead, or the line is too long.
        """
        assert process.stdout is not None
        fd = process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        received, self._unread = self._unread, b""
        while b"\n" not in received:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(fd, _CHUNK)
            received += chunk
            if not chunk or len(received) > _MAX_LINE:
                raise EOFError
        line, _, self._unread = received.partition(b"\n")
        return line

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process; start one if there is none or it has died."""
        with self._lock:
            if self._stopped:
                raise FetchError(FailureKind.TRANSIENT, "shutting down", cause_errno=errno.EINTR)
            if self._process is None or self._process.poll() is not None:
                self._unread = b""
                try:
                    self._clean_up()
                    scratch = self._scratch()
                    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
                    self._folder = Path(tempfile.mkdtemp(prefix="", dir=scratch))
                    self._lifeline, theirs = os.pipe()
                    try:
                        self._process = subprocess.Popen(
                            [sys.executable, "-P", "-m", "kinetics_fs.fetch.worker"],
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE,
                            cwd="/",  # it must not keep a mount busy, its own least of all
                            start_new_session=True,
                            pass_fds=(theirs,),
                        )
                    finally:
                        os.close(theirs)
                except OSError as error:
                    raise FetchError(
                        FailureKind.LOCAL, f"cannot start a worker process: {error.strerror}", cause_errno=error.errno
                    ) from error
                first = {"settings": asdict(self._settings), "scratch": str(self._folder), "lifeline": theirs}
                with contextlib.suppress(OSError):
                    _send(self._process, first)
            return self._process

    def _end(self) -> int | None:
        """Kill the process with its ffmpeg, and return its exit status; None if there is no process."""
        with self._lock:
            process, self._process = self._process, None
            self._unread = b""
            self._requests = 0
        if process is None:
            return None
        kill_session(process.pid)
        status = process.wait()
        self._clean_up()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return status

    def _clean_up(self) -> None:
        """Wait until the confined process is dead, and remove what it has left."""
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            poll = select.poll()
            poll.register(lifeline, select.POLLIN)
            poll.poll(_MAX_DEATH * 1000)
            os.close(lifeline)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _parse_file(answer: dict[str, Any], path: Path) -> VerifiedFile:
    """Return the file of an answer; raise a built-in exception if the answer is invalid."""
    duration, cut = float(answer["duration"]), answer["cut"]
    if not (math.isfinite(duration) and duration >= 0 and isinstance(cut, bool)):
        raise ValueError(f"not a clip: {answer}")
    return VerifiedFile(path, duration, cut)


def _parse_answer(answer: Any, folder: Path) -> VerifiedFile | None:
    """Return the file of an answer, or raise the exception in it; raise a built-in exception if it is invalid."""
    if "error" in answer:
        raise FetchError.from_json(answer["error"])
    if "not_in_source" in answer:
        raise NotInSource(str(answer["not_in_source"]))
    if "in_progress_elsewhere" in answer:
        raise InProgressElsewhere
    if answer["file"] is None:
        return None
    return _parse_file(answer, folder / Path(answer["file"]).name)
