"""The parent's side of a worker process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources import InProgressElsewhere, NotInSource, OnClip, SourceSettings

_MOST_ANSWER_BYTES = 65536

_MOST_JOBS = 500
"""After which a process is replaced, for what extractors and decoders never give back."""


class Worker:
    """One worker process, started when there is first something to do and replaced when it dies.

    `fetch` is for one thread; `stop` may be called from any.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._jobs = 0
        self._stopped = False

    def fetch(
        self, clip: Clip, source: str, folder: Path, *, timeout: float, on_clip: OnClip | None = None
    ) -> Path | None:
        """Has a clip fetched from a source into `folder`.

        Args:
            clip: what is wanted.
            source: name of the source.
            folder: empty and private to this fetch.
            timeout: seconds after which the process is ended. They start again with each clip that `on_clip` receives.
            on_clip: receives verified clips as they arrive from a source that reads many at once.

        Returns:
            The verified file; None if `on_clip` received it.

        Raises:
            NotInSource: the source never had it.
            InProgressElsewhere: another process is reading the archive that has it.
            FetchError: as the source raises it; also when the process takes too long (TRANSIENT, ETIMEDOUT) or dies.
            Exception: any that `on_clip` raises.
        """
        deadline = time.monotonic() + timeout
        idle = self._process
        process = self._running()
        job = {"youtube_id": clip.youtube_id, "start": clip.start, "end": clip.end}
        job |= {"source": source, "folder": str(folder)}
        try:
            try:
                self._hand_in(process, job, deadline)
            except (BrokenPipeError, EOFError):
                if process is not idle:
                    raise
                # It had died while it was idle, and not of this clip.
                self._end()
                process = self._running()
                self._hand_in(process, job, deadline)
            answer = json.loads(self._receive(process, deadline))
            while "clip" in answer:
                self._receive_clip(answer["clip"], folder, on_clip)
                answer = json.loads(self._receive(process, time.monotonic() + timeout))
            return _parse_answer(answer, folder)
        except TimeoutError:
            self._end()
            raise FetchError(
                FailureKind.TRANSIENT, "took longer than --timeout allows", source=source, errno=errno.ETIMEDOUT
            ) from None
        except (FetchError, NotInSource, InProgressElsewhere):
            raise
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            status = self._end()
            raise FetchError(
                FailureKind.TRANSIENT, f"the worker process died (status {status})", source=source
            ) from None
        finally:
            self._jobs += 1
            if self._jobs >= _MOST_JOBS:
                self._end()

    def _hand_in(self, process: subprocess.Popen[bytes], job: dict[str, Any], deadline: float) -> None:
        """Gives the worker a job, and waits until it has got it."""
        _send(process, job)
        if json.loads(self._receive(process, deadline)) != {"begun": True}:
            raise ValueError("it has not begun")

    def _receive_clip(self, name: Any, folder: Path, on_clip: OnClip | None) -> None:
        clip = parse_clip_name(str(name))
        if clip is None or on_clip is None:
            raise ValueError(f"not a clip: {name!r}")
        try:
            on_clip(clip, folder / clip.name)
        except BaseException:
            self._end()  # it would continue to send clips that nobody reads
            raise

    def _receive(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """One line of the worker's.

        Raises:
            TimeoutError: none came before `deadline` (of the monotonic clock).
            EOFError: the worker is dead, or says too much.
        """
        assert process.stdout is not None
        fd = process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        said, self._unread = self._unread, b""
        while b"\n" not in said:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(fd, _MOST_ANSWER_BYTES)
            said += chunk
            if not chunk or len(said) > 2 * _MOST_ANSWER_BYTES:
                raise EOFError
        line, _, self._unread = said.partition(b"\n")
        return line

    def stop(self) -> None:
        """Ends the process, and with it the fetch that it may be at."""
        self._stopped = True
        self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise FetchError(FailureKind.TRANSIENT, "shutting down", errno=errno.EINTR)
            if self._process is None or self._process.poll() is not None:
                self._unread = b""
                try:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "kinetics_fs.fetch.worker"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        cwd="/",  # neither the reader's folder nor one inside the mount
                        start_new_session=True,
                    )
                except OSError as error:
                    raise FetchError(
                        FailureKind.LOCAL, f"cannot start a worker process: {error.strerror}", errno=error.errno
                    ) from error
                with contextlib.suppress(OSError):
                    _send(self._process, asdict(self._settings))
            return self._process

    def _end(self) -> int | None:
        with self._lock:
            process, self._process = self._process, None
            self._unread = b""
            self._jobs = 0
        if process is None:
            return None
        # Its session, not only itself: ffmpeg would go on.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return status


def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _parse_answer(answer: Any, folder: Path) -> Path | None:
    """What the answer says; any of the usual exceptions if it is not one."""
    if "error" in answer:
        error = answer["error"]
        number, retry_after = error["errno"], error["retry_after"]
        raise FetchError(
            FailureKind(error["kind"]),
            str(error["reason"]),
            source=str(error["source"]),
            errno=None if number is None else int(number),
            retry_after=None if retry_after is None else float(retry_after),
        )
    if "not_in_source" in answer:
        raise NotInSource(str(answer["not_in_source"]))
    if "in_progress_elsewhere" in answer:
        raise InProgressElsewhere
    return None if answer["file"] is None else folder / Path(answer["file"]).name
