"""The prefetch jobs of a mount: they run in the background, and resume with the next mount on the same path."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kinetics_fs.catalog import Catalog, Clip, Selection, select
from kinetics_fs.control.status import PrefetchStatus
from kinetics_fs.errors import CatalogError, KineticsError
from kinetics_fs.fetch.access_cursor import AccessCursor
from kinetics_fs.fetch.fetcher import Fetcher, Priority
from kinetics_fs.fetch.prefetch import Prefetch, parse_clip_list
from kinetics_fs.store import Store
from kinetics_fs.util.disk import fault_of
from kinetics_fs.util.files import atomic_write
from kinetics_fs.util.text import parse_json

_log = logging.getLogger(__name__)

_PROGRESS_INTERVAL = 0.2
_MAX_ENDED_JOBS = 20
"""Jobs that have ended and are still listed."""


@dataclass(frozen=True)
class PrefetchJob:
    """A prefetch in the background.

    Args:
        id: number of the job in its mount.
        selection: the clips to fetch; None if they are a list.
        prefetch: the prefetch itself.
        cursor: position of the reader of the list; None for a selection.
        thread: the thread that runs the prefetch.
        started_at: seconds since the epoch.
    """

    id: int
    selection: Selection | None
    prefetch: Prefetch
    cursor: AccessCursor | None
    thread: threading.Thread
    started_at: float

    @property
    def has_ended(self) -> bool:
        """Whether the prefetch is done, cancelled or stopped."""
        return self.prefetch.state.has_ended

    def status(self) -> PrefetchStatus:
        """Return the job and its progress."""
        return PrefetchStatus(
            **vars(self.prefetch.progress()),
            id=self.id,
            selection="a list of clips" if self.selection is None else _describe(self.selection),
            started_at=int(self.started_at),
        )


class PrefetchManager:
    """Starts, lists and cancels the prefetch jobs of a mount, and resumes those of an earlier mount.

    Args:
        fetcher: the fetcher of the mount.
        store: the store that the fetcher fetches into.
        catalog: the clips that the mount shows.
        folder: folder of the jobs that are not done, for the next mount on the same path.
        window: number of clips that each job requests at the same time.
    """

    def __init__(self, fetcher: Fetcher, store: Store, catalog: Catalog, folder: Path, *, window: int) -> None:
        self._fetcher = fetcher
        self._store = store
        self._catalog = catalog
        self._folder = folder
        self._window = window
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._jobs: dict[int, PrefetchJob] = {}
        self._closing = False

    def resume(self, selection: Selection | None = None) -> None:
        """Resume the jobs that an earlier mount did not finish, then start one for a selection, if one is given."""
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                self._start(path.stem, *_read(path))
            except (OSError, ValueError, TypeError, AttributeError, LookupError, KineticsError) as error:
                _log.error("cannot resume the job %s: %s; start it again", path, error)
                self._forget(path.stem)
        if selection is not None:
            self.start(selection)

    def start(self, selection: Selection) -> PrefetchStatus:
        """Start a job that fetches a selection; if one with the same selection is running, return that one.

        Raises:
            CatalogError: the selection matches nothing in the mount.
        """
        for job in list(self._jobs.values()):
            if job.selection == selection and not job.has_ended:
                return job.status()
        if selection.shuffle and selection.seed is None:
            selection = replace(selection, seed=secrets.randbits(32))  # the same clips when the job is resumed
        name = self._write(selection, None)
        try:
            return self._start(name, selection, None)
        except KineticsError:
            self._forget(name)
            raise

    def start_list(self, clips: Iterable[Clip]) -> PrefetchStatus:
        """Start a job that fetches clips in this order, ahead of a process that opens them in this order.

        Raises:
            CatalogError: the mount shows none of the clips.
        """
        shown = [clip for clip in clips if self._catalog.locate(clip)]
        if not shown:
            raise CatalogError(
                "cannot prefetch the list: it names no clip that the mount shows; give paths of clips of the mount"
            )
        return self._start(self._write(None, shown), None, shown)

    def statuses(self) -> list[PrefetchStatus]:
        """Return the running jobs, and the last ones that ended."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [job.status() for job in jobs]

    def cancel(self, id: int) -> PrefetchStatus:
        """Cancel a job and wait for its end.

        Raises:
            KineticsError: there is no job with this id.
        """
        job = self._job(id)
        job.prefetch.cancel()
        job.thread.join()
        return job.status()

    def watch(self, id: int, on_progress: Callable[[PrefetchStatus], None]) -> PrefetchStatus:
        """Wait for the end of a job, and pass on its progress meanwhile.

        Raises:
            KineticsError: there is no job with this id.
        """
        job = self._job(id)
        while job.thread.is_alive():
            on_progress(job.status())
            with self._changed:
                self._changed.wait(1.0)
            time.sleep(_PROGRESS_INTERVAL)
        return job.status()

    def advance_cursors(self, clip: Clip) -> None:
        """Move the cursors of the lists to a clip, when its open is done: until then the clip counts as used."""
        for job in list(self._jobs.values()):
            if job.cursor is not None:
                job.cursor.advance(clip)

    def close(self) -> None:
        """End all jobs; the next mount resumes them. Call this before the fetcher is closed."""
        self._closing = True
        for job in list(self._jobs.values()):
            job.prefetch.cancel()
        for job in list(self._jobs.values()):
            job.thread.join()

    def _start(self, name: str, selection: Selection | None, listed: list[Clip] | None) -> PrefetchStatus:
        opened = ExitStack()
        clips: Iterable[Clip]
        keep: Iterable[Clip] = ()
        if listed is not None:
            clips, total, cursor = listed, len(listed), AccessCursor(self._store)
        else:
            selection = selection or Selection()
            unavailable = self._store.failures.unavailable(include_due=True) if selection.available else ()
            selected = select(self._catalog, selection, self._catalog.path.parent, unavailable)
            if selected is not self._catalog:
                opened.enter_context(selected)
            clips, keep = (entry.clip for entry in selected.clips()), (entry.clip for entry in selected.clips())
            total, cursor = selected.clip_count, None
        prefetch = Prefetch(
            self._fetcher,
            self._store,
            clips,
            total,
            window=self._window,
            keep=keep,
            priority=Priority.BACKGROUND if cursor is None else Priority.SOON,
            patient=True,
            cursor=cursor,
            on_change=self._notify,
        )

        def run() -> None:
            try:
                with opened:
                    prefetch.run()
            except Exception:
                _log.exception("prefetch %d: unexpected error", job.id)
            if not self._closing:
                self._forget(name)
            counts = (prefetch.fetched, prefetch.failed)
            _log.info("prefetch %d: %s, %d fetched, %d unavailable", job.id, prefetch.state, *counts)

        thread = threading.Thread(target=run, name="prefetch", daemon=True)
        with self._lock:
            id = max(self._jobs, default=0) + 1
            job = self._jobs[id] = PrefetchJob(id, selection, prefetch, cursor, thread, time.time())
            ended = [other.id for other in self._jobs.values() if other.has_ended]
            for old in ended[:-_MAX_ENDED_JOBS]:
                del self._jobs[old]
        thread.start()
        return job.status()

    def _job(self, id: int) -> PrefetchJob:
        job = self._jobs.get(id)
        if job is None:
            raise KineticsError(
                f"cannot find the job {id}: the mount has no job with this id; see kinetics-fs jobs list"
            )
        return job

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Jobs on the disk: a selection as JSON in `<time>.json`, or null there and the keys of a list in `<time>.list`

    def _write(self, selection: Selection | None, listed: list[Clip] | None) -> str:
        name = f"{time.time_ns():020d}"
        try:
            # Without the parents of the cache directory, so that one that was removed does not appear again.
            self._folder.parent.mkdir(exist_ok=True)
            self._folder.mkdir(exist_ok=True)
            if listed is not None:
                with atomic_write(self._folder / f"{name}.list", durable=False) as file:
                    file.writelines(f"{clip.key}\n".encode() for clip in listed)
            with atomic_write(self._folder / f"{name}.json", durable=False) as file:
                file.write(json.dumps(None if selection is None else asdict(selection)).encode())
        except OSError as error:
            fault = fault_of(error, self._folder.parent.parent)
            raise KineticsError(f"cannot write the job to {self._folder}: {fault.cause}; {fault.cure}") from error
        return name

    def _forget(self, name: str) -> None:
        for suffix in (".json", ".list"):
            with suppress(OSError):  # the next mount resumes it
                (self._folder / f"{name}{suffix}").unlink()


def _read(path: Path) -> tuple[Selection | None, list[Clip] | None]:
    """Return what `_write` wrote; raise one of several built-in exceptions if the file has something else."""
    selection = parse_json(path.read_bytes())
    if selection is not None:
        return Selection(tuple(selection.pop("splits")), tuple(selection.pop("classes")), **selection), None
    clips, _ = parse_clip_list(path.with_suffix(".list").read_text().splitlines())
    return None, clips


def _describe(selection: Selection) -> str:
    """Return a selection in words."""
    parts = [", ".join(selection.splits) or "all splits", ", ".join(selection.classes) or "all classes"]
    if selection.max_samples is not None:
        shuffled = f" (shuffled, seed {selection.seed})" if selection.shuffle else ""
        parts.append(f"at most {selection.max_samples} of each split{shuffled}")
    if selection.available:
        parts.append("available")
    return "; ".join(parts)
