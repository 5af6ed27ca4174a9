"""Reading many archives, several at a time, and filling a store from those that hold a selection."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinetics_fs.catalog import Catalog
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fill.archive_job import ArchiveJob, Outcome, Summary, UnfinishedArchive, Unlisted
from kinetics_fs.fill.executors import Executor
from kinetics_fs.fill.plan import (
    ArchiveVerdict,
    MissingClips,
    archives_holding,
    is_replacement,
    plan_fill,
    remember_done,
)
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.store import ActivityCounts, FillCheckpoints, HistoryRecorder, Store

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

    def tick(self) -> None:
        """Handle the passing of about a second."""


@dataclass
class ArchiveResults:
    """Results of reading several archives.

    Attributes:
        read: archives that were read to their end, and what came of each.
        read_before: archives that were read to their end earlier, and so not again.
        failed: archives that failed, with the reasons.
        partly_read: those of them that are incomplete, or damaged after some of their clips, and what came of each.
        problem: a failure of this machine, because of which every other archive would fail the same way.
        interrupted: Ctrl-C ended the reading early.
    """

    read: dict[str, Summary] = field(default_factory=dict)
    read_before: list[str] = field(default_factory=list)
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
    """
    # The largest would otherwise be read alone in the end, while all other slots are free.
    jobs = sorted(jobs, key=lambda job: -versions[job.archive].size)
    progress.start(sum(versions[job.archive].size for job in jobs))
    running: dict[Future[Outcome], ArchiveJob] = {}
    try:
        # The store keeps the first copy of each clip: all replacements must be read before what they replace.
        for group in (
            [job for job in jobs if is_replacement(job.archive)],
            [job for job in jobs if not is_replacement(job.archive)],
        ):
            waiting = deque(group)
            while (waiting or running) and results.problem is None:
                while waiting and len(running) < executor.slots:
                    job = waiting.popleft()
                    running[executor.submit(job)] = job
                if not running:  # an executor may have no slots for a while
                    time.sleep(_TICK)
                done, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    _add_result(job, future, versions[job.archive], results, index_db)
                    progress.finish(job.archive)
                progress.tick()
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        executor.shutdown()
    for future, job in running.items():  # jobs that finished just before the shutdown
        if not future.cancelled() and future.exception() is None:
            _add_result(job, future, versions[job.archive], results, index_db)


def _add_result(
    job: ArchiveJob, future: Future[Outcome], version: Version, results: ArchiveResults, index_db: Path
) -> None:
    try:
        summary, index = future.result()
        if index is not None:
            with ArchiveIndexDB(index_db) as opened:
                opened.add(index)
    except UnfinishedArchive as error:
        results.failed[job.archive] = f"incomplete: {error}" if error.incomplete else str(error)
        if error.incomplete or error.summary.stored or error.summary.present:
            results.partly_read[job.archive] = error.summary
        return
    except KineticsError as error:
        results.failed[job.archive] = str(error)
        if isinstance(error, FetchError) and error.kind is FailureKind.LOCAL:
            results.problem = error
        return
    results.read[job.archive] = summary
    if not summary.busy:  # the processes that are fetching those clips may fail
        remember_done(job.checkpoints, job.archive, version, all_clips=job.unlisted is not None)


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


@dataclass
class FillResult:
    """The result of a fill.

    Attributes:
        archives: results of reading the archives.
        missing: clips of the selection that are not cached in the end. Empty if the fill was interrupted or read only
            archives that were named.
    """

    archives: ArchiveResults
    missing: MissingClips

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
        not_stored = any(summary.corrupt or summary.busy for summary in self.archives.summaries)
        return not (not_stored or self.missing.not_stored or self.missing.in_no_archive)

    def to_json(self, *, names: bool = False) -> dict[str, Any]:
        """Return the numbers, and on request the names of the missing clips."""
        archives = self.archives
        result = {
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
    """
    index = settings.index and finds_block_boundaries()
    names = settings.archives or archives_holding(settings.base, catalog, whole=settings.whole)
    # Without an index, no catalog would show them.
    unlisted = settings.unlisted(names) if index else {}
    with _open_if_exists(settings.index_db) as index_db:
        plan = plan_fill(
            settings.base, names, catalog, store, index_db, settings.checkpoints, index=index, all_clips_of=unlisted
        )
    plan.space.check(store, min_free=settings.min_free)
    results = ArchiveResults(read_before=plan.read_before, failed=plan.failed)
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
            unlisted=unlisted.get(name),
            profile=store.profile,
        )
        for name in plan.to_read
    )
    with HistoryRecorder(store.history, results.activity):
        read_archives(jobs, plan.to_read, results, index_db=settings.index_db, executor=executor, progress=progress)
    results.forget_replaced(store)
    # Named archives prove nothing about clips that others may have.
    missing = MissingClips()
    if not settings.archives and not results.interrupted:
        with _open_if_exists(settings.index_db) as index_db:
            missing = MissingClips.of(catalog, store, index_db)
        if index:
            complete = [name for name, summary in results.read.items() if not summary.not_indexed]
            verdict = ArchiveVerdict(settings.base, release, [*complete, *results.read_before])
            gone = FetchError(FailureKind.GONE, "not in archives", source="archive")
            store.failures.remember_all(filter(verdict.is_gone, missing.in_no_archive), gone)
    return FillResult(results, missing)


@contextmanager
def _open_if_exists(path: Path) -> Iterator[ArchiveIndexDB | None]:
    if not path.exists():
        yield None
        return
    with ArchiveIndexDB(path) as index_db:
        yield index_db
