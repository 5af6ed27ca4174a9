"""Reading many archives, several at a time, and filling a store from those that hold a selection."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_fs.catalog import Catalog
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill.archive_job import (
    MAX_NOT_UPLOADED,
    ArchiveJob,
    Outcome,
    Summary,
    UnfinishedArchive,
    Unlisted,
)
from kinetics_fs.fill.executors import Executor
from kinetics_fs.fill.plan import (
    ArchivesLeft,
    ArchiveVerdict,
    FillPlan,
    MissingClips,
    Shard,
    archives_holding,
    check_scratch,
    find_versions,
    indexed_archives,
    is_replacement,
    plan_fill,
    remember_done,
)
from kinetics_fs.fill.turns import Turn, Turns
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.store import ActivityCounts, FillCheckpoints, HistoryRecorder, Store

if TYPE_CHECKING:
    from kinetics_fs.fill.shared_fill import SharedFill
    from kinetics_fs.shared import SharedStore

_log = logging.getLogger(__name__)

_TICK = 1.0


class ArchiveProgress:
    """Receives the progress of reading archives, and ignores it; subclass it to show it. Any thread may call it."""

    def start(self, total: int) -> None:
        """Handle the start of reading: `total` bytes of all archives together."""

    def advance(self, archive: str, done: int, total: int) -> None:
        """Handle progress: `done` of `total` bytes of an archive are read. Called a few times per second."""

    def report(self, job: ArchiveJob, done: int, total: int) -> None:
        """Handle the progress of a job: the `JobReport` of an executor."""
        self.advance(job.archive, done, total)

    def finish(self, archive: str) -> None:
        """Handle the end of an archive, which was read to its end or failed."""

    def wait_for(self, archives: int) -> None:
        """Handle that other machines are reading so many of the archives. Called about once per second."""

    def tick(self) -> None:
        """Handle the passing of about a second."""


@dataclass
class ArchiveResults:
    """Results of reading several archives.

    Attributes:
        read: archives that were read to their end, and what came of each.
        read_before: archives that were read to their end earlier, and so not again.
        read_elsewhere: archives of which a shared store has all clips, because another machine or an earlier run read
            them.
        failed: archives that failed, with the reasons.
        partly_read: those of them that are incomplete, or damaged after some of their clips, and what came of each.
        problem: a failure of this machine, because of which every other archive would fail the same way.
        interrupted: Ctrl-C ended the reading early.
    """

    read: dict[str, Summary] = field(default_factory=dict)
    read_before: list[str] = field(default_factory=list)
    read_elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    partly_read: dict[str, Summary] = field(default_factory=dict)
    problem: FetchError | None = None
    interrupted: bool = False

    @property
    def summaries(self) -> list[Summary]:
        """Results of the archives that were read, or partly read. For any thread."""
        return [*list(self.read.values()), *list(self.partly_read.values())]  # copies: another thread adds to them

    def sum(self, field: str) -> int:
        """Return the sum of one number of the summaries."""
        return sum(getattr(summary, field) for summary in self.summaries)

    @property
    def not_clips(self) -> Counter[str]:
        """Number of members of the archives that are not clips, by reason."""
        return sum((summary.refused for summary in self.summaries), Counter[str]())

    @property
    def corrupt(self) -> Counter[str]:
        """Number of clips that failed verification, by reason."""
        return sum((summary.failed for summary in self.summaries), Counter[str]())

    def activity(self) -> ActivityCounts:
        """Return the clips that the finished archives brought, for the history of the cache. For any thread."""
        return ActivityCounts(fetched=self.sum("stored"), failed=self.corrupt.total())

    def forget_replaced(self, store: Store) -> None:
        """Forget corrupt copies of clips that are cached now, because another archive has a better copy."""
        for summary in self.summaries:
            sizes = store.sizes(list(summary.corrupt))
            summary.corrupt = {
                key: reason for key, reason in summary.corrupt.items() if key not in sizes or not sizes[key].cached
            }

    def to_json(self) -> dict[str, Any]:
        """Return the names of the archives by result."""
        return {"read": sorted(self.read), "read_before": sorted(self.read_before), "failed": self.failed}


def read_archives(
    jobs: Iterable[ArchiveJob],
    versions: Mapping[str, Version],
    results: ArchiveResults,
    *,
    index_db: Path,
    executor: Executor,
    progress: ArchiveProgress,
    turns: Turns | None = None,
    ranks: Mapping[str, int] | None = None,
) -> None:
    """Do one job per archive, larger archives first, and remember which archives need not be read again.

    Ctrl-C, or a failure of this machine, ends all jobs; the same jobs resume later where they stopped.

    Args:
        jobs: one for each archive.
        versions: the versions of these archives, by name.
        results: receives the result of each job as soon as it is known.
        index_db: file of the archive index database, which receives the indexes that the jobs build.
        executor: does the jobs; it is shut down in the end.
        progress: receives the progress.
        turns: decides which archives this machine reads; None for all.
        ranks: archives with a smaller number are read before larger ones, by name.
    """
    # The largest would otherwise be read alone in the end, while all other slots are free.
    ranks = ranks or {}
    jobs = sorted(jobs, key=lambda job: (ranks.get(job.archive, 0), -versions[job.archive].size))
    progress.start(sum(versions[job.archive].size for job in jobs))
    reading = _Reading(versions, results, index_db, executor, progress, turns or Turns())
    try:
        # The store keeps the first copy of each clip: all replacements must be read before what they replace, whatever
        # machine reads them.
        for group in (
            [job for job in jobs if is_replacement(job.archive)],
            [job for job in jobs if not is_replacement(job.archive)],
        ):
            reading.run(deque(group))
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        executor.shutdown()
    reading.add_finished()


class _Reading:
    """The jobs of a run."""

    def __init__(
        self,
        versions: Mapping[str, Version],
        results: ArchiveResults,
        index_db: Path,
        executor: Executor,
        progress: ArchiveProgress,
        turns: Turns,
    ) -> None:
        self._versions = versions
        self._results = results
        self._index_db = index_db
        self._executor = executor
        self._progress = progress
        self._turns = turns
        self._running: dict[Future[Outcome], ArchiveJob] = {}
        self._read_by_others: set[str] = set()
        """Archives that were being read by other machines."""
        self._look_at = 0.0
        """When to ask for the next of them."""

    def run(self, waiting: deque[ArchiveJob]) -> None:
        """Do these jobs, or wait until other machines have done them, unless this machine fails."""
        while (waiting or self._running) and self._results.problem is None:
            self._start(waiting)
            self._progress.wait_for(sum(job.archive in self._read_by_others for job in waiting))
            if waiting and not self._running:  # other machines work, or the executor has no slots for a while
                time.sleep(_TICK)
            done, _ = wait(self._running, timeout=_TICK, return_when=FIRST_COMPLETED)
            for future in done:
                job = self._running.pop(future)
                self._add_result(job, future)
                self._progress.finish(job.archive)
            self._progress.tick()

    def add_finished(self) -> None:
        """Add the results of the jobs that finished just before the shutdown of the executor."""
        for future, job in self._running.items():
            if not future.cancelled() and future.exception() is None:
                self._add_result(job, future)

    def _start(self, waiting: deque[ArchiveJob]) -> None:
        for _ in range(len(waiting)):
            if len(self._running) >= self._executor.slots or self._results.problem is not None:
                return
            job = waiting.popleft()
            turn = self._take(job)
            if turn is Turn.READ:
                self._running[self._executor.submit(job)] = job
            elif turn is Turn.WAIT:
                waiting.append(job)
            else:
                self._progress.advance(job.archive, size := self._versions[job.archive].size, size)
                self._progress.finish(job.archive)

    def _take(self, job: ArchiveJob) -> Turn | None:
        """Return what to do about an archive; None if it fails."""
        name = job.archive
        if name in self._read_by_others:
            # Many machines wait for the last archives: each asks for one of them at a time.
            if time.monotonic() < self._look_at:
                return Turn.WAIT
            self._look_at = time.monotonic() + _TICK
        try:
            turn = self._turns.take(name, self._versions[name])
        except FetchError as error:
            self._add_failure(name, error)
            return None
        if turn is Turn.WAIT:
            self._read_by_others.add(name)
        elif turn is Turn.DONE:
            self._results.read_elsewhere.append(name)
        return turn

    def _add_result(self, job: ArchiveJob, future: Future[Outcome]) -> None:
        name, version = job.archive, self._versions[job.archive]
        try:
            summary, index = future.result()
            if index is not None:
                with ArchiveIndexDB(self._index_db) as opened:
                    opened.add(index, confirmed=not summary.taken_over)
            self._turns.finish(name, version, summary, index)
        except KineticsError as error:
            self._add_failure(name, error)
            self._turns.fail(name, error)
            return
        self._results.read[name] = summary
        # The processes that are fetching busy clips may fail. A shared store has records of its own.
        if not summary.busy and not job.shared:
            remember_done(job.checkpoints, name, version, all_clips=job.unlisted is not None)

    def _add_failure(self, name: str, error: KineticsError) -> None:
        results = self._results
        results.failed[name] = str(error)
        if isinstance(error, UnfinishedArchive):
            if error.incomplete:
                results.failed[name] = f"incomplete: {error}"
            if error.incomplete or error.summary.stored or error.summary.present:
                results.partly_read[name] = error.summary
        elif isinstance(error, FetchError) and error.kind is FailureKind.LOCAL:
            results.problem = error


# Filling


@dataclass(frozen=True)
class FillSettings:
    """Settings of a fill.

    Args:
        base: http(s) or s3 address, or folder, that has the archives.
        archives: names of the archives to read; empty for all that hold the selection.
        whole: the selection has all classes of its release, so that it needs all archives of its splits.
        min_free: bytes of the disk to leave free.
        index_db: file of the archive index database.
        index: index the archives on the way.
        checkpoints: where in half-read archives to continue, and the marks of those that were read to their end.
        verify: how to verify each clip.
        unlisted: returns which clips of archives to store besides the selection, by archive.
        shared: the shared store to fill, too; None for none.
        local: store the clips in the cache; otherwise only in the shared store.
        shard: the archives with which this machine begins; None to begin with the largest.
    """

    base: str
    archives: Sequence[str]
    whole: bool
    min_free: int
    index_db: Path
    index: bool
    checkpoints: FillCheckpoints
    verify: VerifyLevel
    unlisted: Callable[[Sequence[str]], Mapping[str, Unlisted]]
    shared: SharedStore | None = None
    local: bool = True
    shard: Shard | None = None


@dataclass
class FillResult:
    """The result of a fill.

    Attributes:
        archives: results of reading the archives.
        missing: clips of the selection that are not cached in the end, or with a shared store not there. Empty if the
            fill was interrupted or read only archives that were named.
        left: with a shared store, the archives of which it does not have all clips, sorted; None without one.
    """

    archives: ArchiveResults
    missing: MissingClips
    left: list[str] | None = None

    @property
    def problem(self) -> FetchError | None:
        """The failure of this machine that ended the fill early; None if none did."""
        return self.archives.problem

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the fill early."""
        return self.archives.interrupted

    @property
    def complete(self) -> bool:
        """Whether every archive was read to its end, all its clips were stored, and the selection lacks none."""
        if self.archives.failed or self.problem or self.interrupted:
            return False
        # Clips that another process of this machine fetches are in the shared store all the same.
        not_stored = any(summary.corrupt or (summary.busy and self.left is None) for summary in self.archives.summaries)
        return not (not_stored or self.missing.not_stored or self.missing.in_no_archive)

    def to_json(self, *, names: bool = False) -> dict[str, Any]:
        """Return the numbers, and on request the names of the missing clips."""
        archives = self.archives
        result: dict[str, Any] = {
            "stored": archives.sum("stored"),
            "already_cached": archives.sum("present"),
            "not_in_annotations": archives.sum("not_wanted"),
            "named_by_archives": archives.sum("unlisted"),
            "busy": archives.sum("busy"),
            "indexed": archives.sum("indexed"),
            "bytes_read": archives.sum("bytes"),
            "corrupt": dict(archives.corrupt),
            "not_clips": dict(archives.not_clips),
            "archives": archives.to_json(),
            "not_stored": len(self.missing.not_stored),
            "in_no_archive": len(self.missing.in_no_archive),
            "interrupted": archives.interrupted,
        }
        if self.left is not None:
            result["uploaded"] = archives.sum("uploaded")
            result["archives"] |= {"read_elsewhere": sorted(archives.read_elsewhere), "left": self.left}
        if names:
            result["clips_not_stored"] = [clip.key for clip in self.missing.not_stored]
            result["clips_in_no_archive"] = [clip.key for clip in self.missing.in_no_archive]
        return result


def fill_store(
    settings: FillSettings,
    catalog: Catalog,
    release: Catalog,
    store: Store,
    *,
    executor: Executor,
    progress: ArchiveProgress,
) -> FillResult:
    """Fill a store with a selection from the archives that hold it, in one pass over each archive.

    A clip is remembered as gone from the archives if every archive that may have it was read to its end and indexed.

    Args:
        settings: what to read, and how.
        catalog: the selection.
        release: all clips of the release.
        store: the store to fill.
        executor: reads the archives; it is shut down in the end.
        progress: receives the progress.

    Raises:
        KineticsError: the clips do not fit into the cache or on the disk.
        FetchError: the list of archives cannot be read.
        ArchiveError: the list of archives is damaged.
        SharedStoreError: the shared store cannot be used.
    """
    with _shared_fill(settings, catalog) as shared:
        return _fill_store(settings, catalog, release, store, shared, executor, progress)


@contextmanager
def _shared_fill(settings: FillSettings, catalog: Catalog) -> Iterator[SharedFill | None]:
    if settings.shared is None:
        yield None
        return
    from kinetics_fs.fill.shared_fill import SharedFill

    with SharedFill(settings.shared, catalog, index=settings.index and finds_block_boundaries()) as shared:
        yield shared


def _fill_store(
    settings: FillSettings,
    catalog: Catalog,
    release: Catalog,
    store: Store,
    shared: SharedFill | None,
    executor: Executor,
    progress: ArchiveProgress,
) -> FillResult:
    found = _Candidates.find(settings, catalog)
    index = found.index
    results = ArchiveResults(failed=found.failed)
    if shared is not None:
        shared.unlisted = found.unlisted
        results.read_elsewhere = sorted(shared.complete(found.versions))
    elif not executor.is_local:
        _log.warning("the clips of each archive go into the cache of the worker that reads it; --shared collects them")
    to_read = {name: version for name, version in found.versions.items() if name not in results.read_elsewhere}
    if settings.local:
        plan = found.plan(settings, to_read, catalog, store)
        if executor.is_local:  # workers of a cluster look at their own disks
            plan.space.check(store, min_free=settings.min_free, is_shared=shared is not None)
        if shared is None:
            results.read_before = plan.read_before
            for name in plan.read_before:
                del to_read[name]
    elif executor.is_local:
        check_scratch(store, executor.slots * MAX_NOT_UPLOADED, min_free=settings.min_free)
    jobs = (
        ArchiveJob(
            base=settings.base,
            archive=name,
            cache_dir=store.folder,
            min_free=settings.min_free,
            catalog_file=catalog.path,
            index=index,
            checkpoints=settings.checkpoints,
            verify=settings.verify,
            unlisted=found.unlisted.get(name),
            profile=store.profile,
            shared=shared.store.backend.address if shared is not None else "",
            local=settings.local,
            coverage=shared.coverage(name) if shared is not None else "",
        )
        for name in to_read
    )
    with HistoryRecorder(store.history, results.activity) if settings.local and executor.is_local else nullcontext():
        read_archives(
            jobs,
            to_read,
            results,
            index_db=settings.index_db,
            executor=executor,
            progress=progress,
            turns=shared,
            ranks=settings.shard.ranks(found.names) if settings.shard is not None else None,
        )
    results.forget_replaced(store)
    elsewhere = {name: found.versions[name] for name in results.read_elsewhere}
    is_cut_short = results.interrupted or (shared is not None and results.problem is not None)
    if shared is not None and index and not is_cut_short:
        shared.import_indexes(elsewhere, settings.index_db, store.failures)
    # Named archives prove nothing about clips that others may have.
    missing = MissingClips()
    if not settings.archives and not is_cut_short:
        with ExitStack() as opened:
            index_db = opened.enter_context(_open_if_exists(settings.index_db))
            listing = None if shared is None else opened.enter_context(shared.listing())
            missing = MissingClips.of(catalog, store, index_db, listing)
            if shared is not None and listing is not None and index_db is not None:
                for name in shared.forget_lost(missing.not_stored, elsewhere, index_db, listing):
                    results.read_elsewhere.remove(name)
                    results.failed[name] = "the shared store has lost clips of it; run the same command again"
            indexed = indexed_archives(index_db, elsewhere)
        if shared is None and not executor.is_local:
            missing.not_stored.clear()  # the caches of the workers have them
        if index:
            complete = [name for name, summary in results.read.items() if not summary.not_indexed]
            verdict = ArchiveVerdict(settings.base, release, [*complete, *results.read_before, *indexed])
            gone = FetchError(FailureKind.GONE, "not in archives", source="archive")
            store.failures.remember_all(filter(verdict.is_gone, missing.in_no_archive), gone)
    if shared is None:
        return FillResult(results, missing)
    return FillResult(results, missing, sorted({*found.names} - results.read.keys() - {*results.read_elsewhere}))


@dataclass(frozen=True)
class _Candidates:
    """The archives that hold a selection.

    Attributes:
        names: their names.
        versions: the versions of those that can be read.
        failed: those that cannot be read, with the reasons.
        index: they are to be indexed.
        unlisted: which clips to store besides the selection, by archive.
    """

    names: Sequence[str]
    versions: dict[str, Version]
    failed: dict[str, str]
    index: bool
    unlisted: Mapping[str, Unlisted]

    @classmethod
    def find(cls, settings: FillSettings, catalog: Catalog) -> _Candidates:
        """Find the archives; sends a request for each.

        Raises:
            FetchError: the list of archives cannot be read.
            ArchiveError: the list of archives is damaged.
        """
        index = settings.index and finds_block_boundaries()
        names = settings.archives or archives_holding(settings.base, catalog, whole=settings.whole)
        # Without an index, no catalog would show them.
        unlisted = settings.unlisted(names) if index else {}
        return cls(names, *find_versions(settings.base, names), index, unlisted)

    def plan(self, settings: FillSettings, to_read: Mapping[str, Version], catalog: Catalog, store: Store) -> FillPlan:
        """Return the plan for these of the archives."""
        with _open_if_exists(settings.index_db) as index_db:
            return plan_fill(
                to_read,
                catalog,
                store,
                index_db,
                settings.checkpoints,
                index=self.index,
                all_clips_of=self.unlisted,
            )


def archives_left(settings: FillSettings, catalog: Catalog, store: Store) -> ArchivesLeft:
    """Return which archives a fill still has to read. Reads only the list and the versions of the archives.

    Raises:
        FetchError: the list of archives cannot be read.
        ArchiveError: the list of archives is damaged.
        SharedStoreError: the shared store cannot be used.
    """
    found = _Candidates.find(settings, catalog)
    if settings.shared is None:
        done = set(found.plan(settings, found.versions, catalog, store).read_before)
    else:
        from kinetics_fs.fill.shared_fill import SharedFill

        shared = SharedFill(settings.shared, catalog, index=found.index)
        shared.unlisted = found.unlisted
        done = shared.complete(found.versions)
    return ArchivesLeft(sorted(found.names), sorted({*found.names} - done), found.failed)


@contextmanager
def _open_if_exists(path: Path) -> Iterator[ArchiveIndexDB | None]:
    if not path.exists():
        yield None
        return
    with ArchiveIndexDB(path) as index_db:
        yield index_db
