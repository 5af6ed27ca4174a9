"""The prefetches of one mount: several at a time, to be looked at and cancelled, and gone on with after a restart."""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kinetics_fs.catalog import Catalog, Clip, Entry, Selection, parse_clip_name, select
from kinetics_fs.control.status import PrefetchStatus
from kinetics_fs.errors import CatalogError, KineticsError
from kinetics_fs.fetch.fetcher import Fetcher, Priority
from kinetics_fs.fetch.prefetch import AccessCursor, Prefetch, State
from kinetics_fs.store import Store
from kinetics_fs.util.files import atomic_write

_log = logging.getLogger(__name__)

_INFORM_EVERY = 0.2
_MOST_ENDED = 20
"""Prefetches that are over, and can still be looked at."""

_OVER = (State.DONE, State.CANCELLED, State.STOPPED)

_NAME_IN_LINE = re.compile(r"(?:.*/)?([A-Za-z0-9_-]{11}_[0-9]{6}_[0-9]{6})(?:\.mp4)?(?:\s+-?[0-9]+)?\s*")
"""A path with or without what is before the name, and a class index behind it, as the lists of loaders have."""


def clip_in_line(line: str) -> Clip | None:
    """The clip that a line of a list names: a path, a file name or a key, perhaps with a class index behind it."""
    match = _NAME_IN_LINE.fullmatch(line)
    return parse_clip_name(f"{match[1]}.mp4") if match else None


@dataclass(frozen=True)
class PrefetchJob:
    number: int
    selection: Selection | None
    """None if it is a list."""
    prefetch: Prefetch
    reader: AccessCursor | None
    thread: threading.Thread
    since: float

    @property
    def is_over(self) -> bool:
        return self.prefetch.state in _OVER

    def status(self) -> PrefetchStatus:
        return PrefetchStatus(
            **vars(self.prefetch.progress()),
            id=self.number,
            selection="a list of clips" if self.selection is None else _in_words(self.selection),
            started_at=int(self.since),
        )


class PrefetchManager:
    """Does the prefetches of a mount.

    Args:
        fetcher: of the mount.
        store: where clips go.
        catalog: what the mount shows.
        folder: keeps what is not done, for the next mount on the same place.
        window: clips that each has under way.
    """

    def __init__(self, fetcher: Fetcher, store: Store, catalog: Catalog, folder: Path, *, window: int) -> None:
        self._fetcher = fetcher
        self._store = store
        self._catalog = catalog
        self._folder = folder
        self._window = window
        self._lock = threading.Lock()
        self._news = threading.Condition()
        self._jobs: dict[int, PrefetchJob] = {}
        self._closing = False

    def resume(self, begin: Selection | None = None) -> None:
        """Goes on with what an earlier mount had not done, then with a selection."""
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                selection, clips = _read(path)
                self._begin(path.stem, selection, clips)
            except (OSError, ValueError, TypeError, LookupError, KineticsError) as error:
                _log.error("a prefetch cannot be gone on with: %s: %s", path.name, error)
                self._forget(path.stem)
        if begin is not None:
            self.select(begin)

    def select(self, selection: Selection) -> PrefetchStatus:
        """Begins to fetch a selection, unless that is under way; what there is to say of it.

        Raises:
            CatalogError: it names what is not there.
        """
        for job in list(self._jobs.values()):
            if job.selection == selection and not job.is_over:
                return job.status()
        if selection.shuffle and selection.seed is None:
            selection = replace(selection, seed=secrets.randbits(32))  # the same ones after a restart
        token = self._write(selection, None)
        try:
            return self._begin(token, selection, None)
        except KineticsError:
            self._forget(token)
            raise

    def take_list(self, clips: Iterable[Clip]) -> PrefetchStatus:
        """Begins to fetch clips in this order, ahead of a reader who will open them in it; what there is to say of it.

        Raises:
            CatalogError: none of them is in the mount.
        """
        known = [clip for clip in clips if self._catalog.locate(clip)]
        if not known:
            raise CatalogError("none of these clips is in the mount")
        return self._begin(self._write(None, known), None, known)

    def statuses(self) -> list[PrefetchStatus]:
        """What there is to say of all that are under way, and the last that are over."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [job.status() for job in jobs]

    def cancel(self, number: int) -> PrefetchStatus:
        """Ends one.

        Raises:
            KineticsError: there is none of this number.
        """
        job = self._job(number)
        job.prefetch.cancel()
        job.thread.join()
        return job.status()

    def watch(self, number: int, inform: Callable[[PrefetchStatus], None]) -> PrefetchStatus:
        """Waits for the end of one, and tells meanwhile how it is going.

        Raises:
            KineticsError: there is none of this number.
        """
        job = self._job(number)
        while job.thread.is_alive():
            inform(job.status())
            with self._news:
                self._news.wait(1.0)
            time.sleep(_INFORM_EVERY)
        return job.status()

    def notice(self, entry: Entry, done: bool) -> None:
        """A reader is opening a clip. Where he is shows when it is done: it counts as used until then."""
        for job in list(self._jobs.values()):
            if done and job.reader is not None:
                job.reader.opened(entry.clip)

    def close(self) -> None:
        """Ends all, for now: the next mount goes on with them. To be called before the fetcher is closed."""
        self._closing = True
        for job in list(self._jobs.values()):
            job.prefetch.cancel()
        for job in list(self._jobs.values()):
            job.thread.join()

    def _begin(self, token: str, selection: Selection | None, clips: list[Clip] | None) -> PrefetchStatus:
        opened = ExitStack()
        source: Iterable[Clip]
        if clips is not None:
            source, total, reader = clips, len(clips), AccessCursor(self._store)
        else:
            chosen = select(self._catalog, selection or Selection(), self._catalog.path.parent)
            if chosen is not self._catalog:
                opened.enter_context(chosen)
            source, total, reader = (entry.clip for entry in chosen.clips()), chosen.clip_count, None
        prefetch = Prefetch(
            self._fetcher,
            self._store,
            source,
            total,
            window=self._window,
            priority=Priority.BACKGROUND if reader is None else Priority.SOON,
            patient=True,
            ahead_of=reader,
            changed=self._tell,
        )

        def run() -> None:
            try:
                with opened:
                    prefetch.run()
            except Exception:
                _log.exception("prefetch %d: unexpected error", job.number)
            if not self._closing:
                self._forget(token)
            done = (job.number, prefetch.state, prefetch.fetched, prefetch.failed)
            _log.info("prefetch %d: %s, %d fetched, %d failed", *done)

        thread = threading.Thread(target=run, name="prefetch", daemon=True)
        with self._lock:
            number = max(self._jobs, default=0) + 1
            job = self._jobs[number] = PrefetchJob(number, selection, prefetch, reader, thread, time.time())
            over = [other.number for other in self._jobs.values() if other.is_over]
            for old in over[:-_MOST_ENDED]:
                del self._jobs[old]
        thread.start()
        return job.status()

    def _job(self, number: int) -> PrefetchJob:
        job = self._jobs.get(number)
        if job is None:
            raise KineticsError(f"there is no prefetch {number}")
        return job

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    # What is not done

    def _write(self, selection: Selection | None, clips: list[Clip] | None) -> str:
        token = f"{time.time_ns():020d}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if clips is not None:
                with atomic_write(self._folder / f"{token}.list", durable=False) as file:
                    file.writelines(f"{clip.key}\n".encode() for clip in clips)
            wish = None if selection is None else asdict(selection)
            with atomic_write(self._folder / f"{token}.json", durable=False) as file:
                file.write(json.dumps(wish).encode())
        except OSError as error:
            raise KineticsError(f"cannot note the prefetch in {self._folder}: {error.strerror}") from error
        return token

    def _forget(self, token: str) -> None:
        for suffix in (".json", ".list"):
            (self._folder / f"{token}{suffix}").unlink(missing_ok=True)


def _read(path: Path) -> tuple[Selection | None, list[Clip] | None]:
    """What `_write` has written; any of the usual exceptions if it is not that."""
    wish = json.loads(path.read_text())
    if wish is not None:
        return Selection(tuple(wish.pop("splits")), tuple(wish.pop("classes")), **wish), None
    lines = path.with_suffix(".list").read_text().splitlines()
    return None, [clip for line in lines if (clip := clip_in_line(line))]


def _in_words(selection: Selection) -> str:
    """A selection for people."""
    parts = [", ".join(selection.splits) or "all splits", ", ".join(selection.classes) or "all classes"]
    if selection.max_samples is not None:
        shuffled = f" (shuffled, seed {selection.seed})" if selection.shuffle else ""
        parts.append(f"at most {selection.max_samples} of each split{shuffled}")
    return "; ".join(parts)
