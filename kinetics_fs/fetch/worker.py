"""A worker process: `python -m kinetics_fs.fetch.worker`, one JSON object per line in and out.

In:  first the `SourceSettings`, then jobs ``{"youtube_id": …, "start": …, "end": …, "source": …, "folder": …}``.
Out: ``{"begun": true}`` when it has got the job. Then any number of ``{"with_it": …}``, each a file in the job's folder
     that is a verified clip, named so: the one that is wanted, or one that was had with it. At last ``{"file": …}``
     with the clip in the job's folder, or null if it was among those before; ``{"not_here": true}`` if the source never
     had it; ``{"under_way": true}`` if somebody else is getting it; or
     ``{"error": {"kind": …, "reason": …, "source": …, "errno": …, "retry_after": …}}``.

JSON and not pickle, for what a worker says has been through the hands of remote pages. The process leads a session
of its own, so that it and its ffmpeg can be ended together; it ends itself when its input closes, which the kernel
does when the mount dies, however that was.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.media.verify import check_container, verify_clip
from kinetics_fs.sources import InProgressElsewhere, NotInSource, Source, SourceSettings, make_source
from kinetics_fs.sources.base import LARGEST_FILE
from kinetics_fs.util import logs

_log = logging.getLogger(__name__)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    answers = _take_over_stdout()
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    worker = _Worker(SourceSettings(**jobs.get()), say)
    while True:
        job = jobs.get()
        say({"begun": True})
        logs.reopen_if_moved()
        say(worker.answer(job))


def _take_over_stdout() -> TextIO:
    """Keeps the real standard output for answers; whatever a library prints goes to the log instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _read_jobs(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        for line in sys.stdin:
            jobs.put(json.loads(line))
    finally:
        # Nobody is left to take an answer: end at once, with the ffmpeg that may be running.
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


class _Worker:
    def __init__(self, settings: SourceSettings, say: Callable[[dict[str, Any]], None]) -> None:
        self._settings = settings
        self._say = say
        self._sources: dict[str, Source] = {}
        self._wanted: Clip | None = None

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        clip = self._wanted = Clip(job["youtube_id"], job["start"], job["end"])
        try:
            path = self._fetch(clip, job["source"], Path(job["folder"]))
            return {"file": None if path is None else path.name}
        except NotInSource:
            return {"not_here": True}
        except InProgressElsewhere:
            return {"under_way": True}
        except FetchError as error:
            failure = error
        except OSError as error:
            failure = FetchError(FailureKind.LOCAL, f"{error}", errno=error.errno)
        except Exception as error:
            # A defect of ours, or a site that changed: told as one line here, in full in the log.
            _log.exception("%s: unexpected error", clip.key)
            failure = FetchError(FailureKind.TRANSIENT, f"unexpected {type(error).__name__}: {error}")
        return {
            "error": {
                "kind": failure.kind,
                "reason": failure.reason,
                "source": failure.source or job["source"],
                "errno": failure.errno,
                "retry_after": failure.retry_after,
            }
        }

    def _emit_clip(self, clip: Clip, path: Path) -> None:
        if clip == self._wanted:
            verify_clip(path, None)
        else:
            check_container(path)
        self._say({"with_it": path.name})

    def _fetch(self, clip: Clip, name: str, folder: Path) -> Path | None:
        if name not in self._sources:
            self._sources[name] = make_source(name, self._settings, self._emit_clip)
        media = self._sources[name].fetch(clip, folder)
        if media is None:
            return None
        if media.whole:
            verify_clip(media.path, None)
            return media.path
        expected = expected_span(media, clip.duration)
        target = folder / clip.name
        settings = self._settings
        ffmpeg = find_ffmpeg()
        cut(media, clip.duration, target, ffmpeg=ffmpeg, max_height=settings.max_height, exact=settings.exact)
        verify_clip(target, expected)
        return target


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    # Ctrl-C is for the process that started us: it lets a worker finish or ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
