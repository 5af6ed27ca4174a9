"""A worker process that fetches clips: `python -m kinetics_fs.fetch.worker`.

It knows the folders, indexes and catalogs of the user. It has a confined process of its own parse whatever comes from
outside: pages, archives and videos (`kinetics_fs.fetch.reader`).

Input and output are JSON objects, one per line.

Input: first ``{"settings": …, "scratch": PATH, "lifeline": FD}``: the `SourceSettings`, the folder for the folders of
confined processes, and a descriptor that these keep open as long as they live. Then requests:
``{"youtube_id": …, "start": …, "end": …, "source": …, "folder": …}`` for a clip, or
``{"control": YOUTUBE_ID, "source": …}`` for whether a video is available.

Output for each request: ``{"begun": true}`` when the worker has received it; then any number of
``{"clip": NAME, "duration": SECONDS, "cut": BOOL}``, each the name of a verified clip in the folder of the request,
which is the requested clip or another one that came with it, the seconds that its pictures cover, and whether it was
cut here, with the settings of the worker, of ``{"wait": true}``, which asks for a line ``{"stored": true}`` as soon as
the parent has dealt with all clips before it, and of ``{"received": BYTES}``, the bytes that the sources have sent for
this request so far; at last one of these:

* ``{"available": true}``: the control is available.
* ``{"file": NAME, "duration": SECONDS, "cut": BOOL}``: the requested clip in the folder of the request.
* ``{"file": null}``: the requested clip was among the clips before.
* ``{"not_in_source": NOTE}``: the source does not have the clip. The note says why it did not look further; it may be
  empty.
* ``{"in_progress_elsewhere": true}``: another process is reading the archive that has the clip.
* ``{"error": {"kind": …, "reason": …, "source": …, "errno": …, "retry_after": …}}``: the fields of a `FetchError`.

The last answer also has ``"confinement"`` if there is a confined process: which parts of the sandbox are in force.

The lines are JSON rather than pickle because they contain text from remote pages. The process leads a session of its
own, so that it can be killed together with its children. It ends itself when its input closes, which the kernel does
however the parent process ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.reader import Reader
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources import InProgressElsewhere, NotInSource, Source, SourceSettings, make_source
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.util import logs
from kinetics_fs.util.logs import log_step
from kinetics_fs.util.processes import NO_MEMORY, end_with_parent, limit_memory
from kinetics_fs.util.ticker import every

_log = logging.getLogger("kinetics_fs.fetch.worker")  # __name__ is __main__ here

Answer = dict[str, Any]
"""One line of output."""

_REPORT_INTERVAL = 0.5
"""Seconds between two reports of the received bytes."""


def main() -> None:
    """Answer requests until the input closes."""
    limit_memory()
    output = _Output(_take_over_stdout())
    end_with_parent(sys.stdin.fileno())
    first = json.loads(sys.stdin.readline())
    settings = SourceSettings(**first["settings"])
    with (
        Reader(settings, Path(first["scratch"]), (int(first["lifeline"]),)) as reader,
        every(_REPORT_INTERVAL, output.report),
    ):
        worker = _Worker(settings, reader, output.send)
        for line in sys.stdin:
            request = json.loads(line)
            output.begin()
            if logs.reopen_if_moved():
                reader.close()  # the next one logs to the new file
            answer = worker.answer(request)
            if reader.confinement is not None:
                answer["confinement"] = reader.confinement.as_json()
            output.end(answer)


def _take_over_stdout() -> FileIO:
    """Keep standard output for answers; anything that a library prints goes to standard error, the log."""
    output = FileIO(os.dup(1), "w")
    os.dup2(2, 1)
    return output


class _Output:
    """The lines that the parent reads. Safe for threads.

    Args:
        stream: where they are written.
    """

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._received_before: int | None = None
        """Bytes that were received before the request; None between two requests."""
        self._reported = 0

    def begin(self) -> None:
        """Send that a request was received."""
        with self._lock:
            self._received_before, self._reported = RECEIVED.total, 0
            self._write({"begun": True})

    def send(self, answer: Answer) -> None:
        """Send a line of the request in progress."""
        with self._lock:
            self._write(answer)

    def report(self) -> None:
        """Send how many bytes have arrived for the request in progress, if that has changed."""
        with self._lock:
            self._report()

    def end(self, answer: Answer) -> None:
        """Send the last answer to a request."""
        with self._lock:
            self._report()
            self._received_before = None
            self._write(answer)

    def _report(self) -> None:
        if self._received_before is None:
            return
        received = RECEIVED.total - self._received_before
        if received != self._reported:
            self._reported = received
            self._write({"received": received})

    def _write(self, answer: Answer) -> None:
        with suppress(BrokenPipeError):  # the parent is dead: the requests end, too
            self._stream.write(json.dumps(answer).encode() + b"\n")


class _Worker:
    """The sources of this process, created on first use, and the request in progress."""

    def __init__(self, settings: SourceSettings, reader: Reader, send: Callable[[Answer], None]) -> None:
        self._settings = settings
        self._reader = reader
        self._send = send
        self._sources: dict[str, Source] = {}
        self._requested: Clip | None = None

    def answer(self, request: dict[str, Any]) -> Answer:
        """Serve a request and return its last answer."""
        try:
            if "control" in request:
                self._reader.check_video(request["control"])
                return {"available": True}
            clip = self._requested = Clip(request["youtube_id"], request["start"], request["end"])
            found = self._fetch(clip, request["source"], Path(request["folder"]))
            if found is None:
                return {"file": None}
            path, duration, is_cut = found
            return {"file": path.name, "duration": duration, "cut": is_cut}
        except NotInSource as missing:
            return {"not_in_source": missing.note}
        except InProgressElsewhere:
            return {"in_progress_elsewhere": True}
        except FetchError as error:
            failure = error
        except OSError as error:
            failure = FetchError(FailureKind.LOCAL, f"{error}", cause_errno=error.errno)
        except MemoryError:
            failure = FetchError(FailureKind.TRANSIENT, NO_MEMORY)
        except Exception as error:
            # A defect in this program, or a site that changed. The failure gets one line, the log the whole traceback.
            _log.exception("%s: unexpected error", request.get("control") or request.get("youtube_id"))
            failure = FetchError(FailureKind.TRANSIENT, f"unexpected {type(error).__name__}: {error}")
        failure.source = failure.source or request["source"]
        return {"error": failure.as_json()}

    def _emit_clip(self, clip: Clip, path: Path) -> None:
        """Verify a clip that a source has read and send its name."""
        level = VerifyLevel.DECODE if clip == self._requested else VerifyLevel.CONTAINER
        duration = self._reader.check(path, level)
        self._send({"clip": path.name, "duration": duration, "cut": False})

    def _wait_until_stored(self) -> None:
        """Wait until the parent has stored or refused all clips so far."""
        self._send({"wait": True})
        sys.stdin.readline()

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            reader = self._reader
            self._sources[name] = make_source(
                name, self._settings, self._emit_clip, self._wait_until_stored, reader, reader.find_excerpt
            )
        return self._sources[name]

    def _fetch(self, clip: Clip, name: str, folder: Path) -> tuple[Path, float | None, bool] | None:
        """Return the verified clip, its duration, and whether it was cut; None if `_emit_clip` has sent it."""
        step = f"fetch {clip.key}: worker {os.getpid()}"
        target = folder / clip.name
        with log_step(_log, f"{step}: {name}"):
            if name == "youtube":
                return target, self._reader.fetch_video(clip, target), True
            media = self._source(name).fetch(clip, folder)
        if media is None:
            return None
        if media.whole:
            with log_step(_log, f"{step}: verify"):
                return media.path, self._reader.check(media.path, VerifyLevel.DECODE), False
        settings = self._settings
        with log_step(_log, f"{step}: cut and verify"):
            seconds = self._reader.cut(
                media, clip.duration, target, max_height=settings.max_height, exact=settings.exact
            )
        return target, seconds, True


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    # Ctrl-C goes to all processes of the terminal. The parent decides whether a worker finishes or ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
