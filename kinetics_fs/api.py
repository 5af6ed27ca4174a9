"""Kinetics from Python: everything that the commands do. The command line uses this module.

::

    from kinetics_fs import Library

    with Library(release="600", split="validation", classes=["surfing water"], max_samples=10) as library:
        library.prefetch()
        for path in library.paths():                # validation/surfing water/-a1B2c3D4e5_000010_000020.mp4
            with library.open(path) as file:        # fetched if it is not cached
                ...
"""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

from kinetics_fs.app import (
    exchange_shared_indexes,
    has_archive_clips,
    index_db_path,
    make_fetcher,
    open_index_db,
    open_selected_catalog,
    open_shared_store,
    open_store,
    open_store_to_read,
    open_whole_catalog,
)
from kinetics_fs.catalog import (
    SPLITS,
    Catalog,
    CatalogProgress,
    ClassNames,
    Clip,
    class_name,
    draw_seed,
    parse_clip_name,
    split_name,
)
from kinetics_fs.config import Settings
from kinetics_fs.control.status import PrefetchProgress, StoreStatus
from kinetics_fs.errors import FailureKind, FetchError, SettingError, UnknownClipError
from kinetics_fs.shared_upkeep import SharedUpkeep
from kinetics_fs.store import (
    KINDS_SHARED_BY_DEFAULT,
    LASTING_KINDS,
    MAX_FETCHES_PER_OPEN,
    CacheLayout,
    ClipRecord,
    Failure,
    FailureReport,
    InvalidLine,
    LimitRefused,
    PinCounts,
    Pinned,
    Store,
    evicted_too_early,
    prepare_folder,
    read_reports,
    report_line,
)
from kinetics_fs.store.coverage import Coverage, UnavailableClip, measure_coverage, unavailable_clips

if TYPE_CHECKING:
    from kinetics_fs.fetch.fetcher import Fetcher
    from kinetics_fs.fetch.prefetch import PrefetchResult
    from kinetics_fs.fill.archive_job import Unlisted
    from kinetics_fs.fill.importer import ImportResult
    from kinetics_fs.fill.indexes import ImportedIndexes, IndexCheck
    from kinetics_fs.fill.plan import ArchivesLeft, Shard
    from kinetics_fs.fill.runner import ArchiveProgress, ArchiveResults, FillResult, FillSettings
    from kinetics_fs.media import VerifyLevel
    from kinetics_fs.shared.sync import SyncResult
    from kinetics_fs.sources.archive.index_db import IndexedArchive
    from kinetics_fs.sources.archive.location import Location
    from kinetics_fs.store.export import ExportResult
    from kinetics_fs.store.repair import CacheCheck

_INVALID_LINES_KEPT = 3


class Library:
    """A selection of Kinetics: its clips, those of them that are cached, and the means to fetch the others.

    The annotations are read, and the cache directory is opened, when a method first needs them. Use a library as a
    context, or call `close`. It is safe for threads, but not across a fork: make one in each process. Any number of
    libraries and mounts may share a cache directory.

    Args:
        settings: all settings, as the command line has them; None for the defaults.
        values: single settings that replace those, by the names of their flags with `_` for `-`; `classes` is
            `--class`. If a flag may be repeated, its value is a list, a tuple or one item. The environment and the
            configuration file are not read.

    Attributes:
        settings: the settings in effect.

    Raises:
        TypeError: there is no setting of that name.
        SettingError: the value of a setting is invalid.
    """

    def __init__(self, settings: Settings | None = None, **values: Any) -> None:
        settings = (settings or Settings()).with_values(**values)
        if settings.available and settings.shuffle and settings.seed is None:
            settings = settings.with_values(seed=draw_seed())  # the same sample when it is selected again
        self.settings = settings
        self._lock = threading.RLock()
        self._opened = ExitStack()
        self._catalog: Catalog | None = None
        self._store: Store | None = None
        self._limit_refused: LimitRefused | None = None
        self._fetcher: Fetcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all fetches of this library, and close the catalog and the store."""
        with self._lock, self._opened:
            self._catalog = self._store = self._fetcher = None

    @property
    def catalog(self) -> Catalog:
        """The catalog of the selection.

        Raises:
            CatalogError: the annotations cannot be downloaded or read, or the selection matches nothing.
        """
        return self.open_catalog()

    def open_catalog(self, progress: CatalogProgress | None = None) -> Catalog:
        """Return `catalog`. The first call downloads and compiles the annotations if that was not done before.

        Args:
            progress: receives the progress.

        Raises:
            CatalogError: as for `catalog`.
        """
        with self._lock:
            if self._catalog is None:
                exchange_shared_indexes(self.settings)
                self._catalog = self._opened.enter_context(open_selected_catalog(self.settings, progress))
            return self._catalog

    @property
    def store(self) -> Store:
        """The clips in the cache directory.

        Raises:
            StoreError: the cache directory cannot be used.
        """
        with self._lock:
            if self._store is None:
                store, self._limit_refused = open_store_to_read(self.settings)
                self._store = self._opened.enter_context(store)
            return self._store

    @property
    def _store_to_fill(self) -> Store:
        """The store, to store clips in it.

        Raises:
            LimitRefused: the cached clips exceed the limit of the settings.
        """
        with self._lock:
            if self._limit_refused is not None:
                raise self._limit_refused
            if self._store is None:
                self._store = self._opened.enter_context(open_store(self.settings))
            return self._store

    @property
    def fetcher(self) -> Fetcher:
        """The fetcher into the store, with the worker processes that fetch.

        Raises:
            SettingError: an address or a folder is invalid, or none of the sources can be used.
        """
        with self._lock:
            if self._fetcher is None:
                fetcher = make_fetcher(self.settings, self._store_to_fill, self.catalog.path)
                self._fetcher = self._opened.enter_context(closing(fetcher))
            return self._fetcher

    def clips(self) -> Iterator[Clip]:
        """Yield the clips of the selection, in the order of splits, classes and names."""
        return (entry.clip for entry in self.catalog.clips())

    def paths(self) -> Iterator[str]:
        """Yield the path of each clip of the selection in a mount: `split/class/clip.mp4`."""
        style = ClassNames(self.settings.class_names)
        for entry in self.catalog.clips():
            directory = self.catalog.directory(entry.directory)
            assert directory is not None
            yield f"{directory.split}/{class_name(directory.label or '', style)}/{entry.clip.name}"

    def classes(self) -> builtins.list[ClassClips]:
        """Return the classes of the selection, by label."""
        clips: dict[str, dict[str, int]] = {}
        for split in self.catalog.splits():
            for directory in self.catalog.classes(split):
                clips.setdefault(directory.label or "", {})[split.split] = directory.clips
        indexes = {label: index for index, label in enumerate(self.catalog.labels())}
        return [ClassClips(label, indexes.get(label, -1), clips[label]) for label in sorted(clips)]

    def is_cached(self, clip: Clip | str) -> bool:
        """Return whether a clip is in the cache.

        Args:
            clip: a clip, or a path that ends in its file name, such as one of `paths`.

        Raises:
            CatalogError: the path does not end in the file name of a clip.
        """
        return self.store.is_cached(_to_clip(clip))

    def record(self, clip: Clip | str) -> ClipRecord | None:
        """Return the size, digest, source and duration of a clip that is or was cached; None if it never was.

        Args:
            clip: as in `is_cached`.
        """
        return self.store.record(_to_clip(clip))

    def open(self, clip: Clip | str) -> BinaryIO:
        """Open a clip for reading; fetch it first if it is not cached. An open file stays readable after an eviction.

        Args:
            clip: as in `is_cached`.

        Raises:
            FetchError: the clip is unavailable, or the cache evicted it before it could be opened (`ENOSPC`).
            CatalogError: the clip is not in the selection.
        """
        clip = _to_clip(clip)
        if not self.catalog.locate(clip):
            raise UnknownClipError(f"cannot open the clip {clip.key}: it is not in the selection")
        settings = self.settings
        replaces_short = settings.short_clips == "youtube" and "youtube" in settings.source
        wants_longer = replaces_short and self.fetcher.wants_longer(clip)
        stored = None if wants_longer else self.store.open(clip)
        fetches = 0
        while stored is None:
            if fetches == MAX_FETCHES_PER_OPEN:
                raise evicted_too_early()
            self.fetcher.request(clip).result()
            fetches += 1
            stored = self.store.open(clip)
        return os.fdopen(stored.fd, "rb")

    def prefetch(
        self,
        clips: Iterable[Clip | str] | None = None,
        *,
        whole_cache: bool = False,
        on_progress: Callable[[PrefetchProgress], object] = lambda progress: None,
    ) -> PrefetchResult:
        """Fetch the clips of the selection that are not cached.

        It ends early if every other clip would fail the same way. With the setting `available`, clips that turn out to
        be unavailable are replaced: the selection then has other clips.

        Args:
            clips: the clips to fetch, in their order, as for `open`; None for all of the selection.
            whole_cache: `clips` may be outside the selection. The annotations are not read then, so that sources which
                need the class of a clip are not asked.
            on_progress: receives the progress so far whenever a number changes, and twice a second; called by any
                thread.

        Raises:
            SettingError: an address or a folder is invalid, or none of the sources can be used.
        """
        wanted = list(map(_to_clip, clips)) if clips is not None else None
        if wanted is not None and not whole_cache:
            wanted = [clip for clip in wanted if self.catalog.locate(clip)]
        if wanted is not None:
            with self._fetcher_for(whole_cache) as fetcher:
                return self._prefetch(fetcher, wanted, len(wanted), on_progress, keep=wanted)
        fetched = 0
        while True:
            result = self._prefetch(self.fetcher, self.clips(), self.catalog.clip_count, on_progress, keep=self.clips())
            result = replace(
                result, fetched=result.fetched + fetched, already_cached=max(0, result.already_cached - fetched)
            )
            fetched = result.fetched
            has_ended = result.problem is not None or result.interrupted or not result.failed
            if has_ended or not self.settings.available or not self._select_again():
                return result

    def _select_again(self) -> bool:
        """Replace the clips of the selection that have turned out to be unavailable; return whether there were any."""
        with self._lock:
            selected = open_selected_catalog(self.settings)
            if selected.digest == self.catalog.digest:
                selected.close()
                return False
            self._catalog = self._opened.enter_context(selected)
            fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            fetcher.close()  # it looks clips up in the catalog of the selection before
        return True

    def retry(
        self,
        clips: Iterable[Clip | str],
        *,
        whole_cache: bool = False,
        on_progress: Callable[[PrefetchProgress], object] = lambda progress: None,
    ) -> PrefetchResult:
        """Fetch clips that failed again, whether they are due for a retry or not.

        With a shared store, its failures of these clips are forgotten, too.

        Args:
            clips: the clips, as for `open`; for example those of `failures`.
            whole_cache: the clips may be outside the selection, as for `prefetch`.
            on_progress: receives the progress so far whenever a number changes, and twice a second; called by any
                thread.

        Raises:
            SettingError: an address or a folder is invalid, or none of the sources can be used.
            SharedStoreError: the shared store refuses to forget its failures. Nothing was fetched. A store that is away
                only costs a warning.
        """
        wanted = list(map(_to_clip, clips))
        if self.settings.shared is not None:
            self.shared.forget_failures_if_reachable(wanted)

        def due() -> Iterator[Clip]:
            for clip in wanted:
                self.store.failures.make_due(clip)
                yield clip

        with self._fetcher_for(whole_cache) as fetcher:
            return self._prefetch(fetcher, due(), len(wanted), on_progress)

    def verify(
        self,
        *,
        decode: bool = False,
        repair: bool = False,
        whole_cache: bool = False,
        on_progress: Callable[[CacheCheck], object] = lambda check: None,
        on_fetch_progress: Callable[[PrefetchProgress], object] = lambda progress: None,
    ) -> VerifyResult:
        """Compare the cached clips of the selection with the size and the SHA-256 with which they were stored.

        Args:
            decode: also decode each clip, which is slow.
            repair: remove damaged and lost clips, and fetch them again.
            whole_cache: verify all cached clips, and list files that belong to no clip; `repair` removes these. The
                annotations are not read then.
            on_progress: receives the check so far after each clip.
            on_fetch_progress: receives the progress of fetching again; called by any thread.

        Raises:
            SettingError: with `repair`, an address or a folder is invalid, or none of the sources can be used. Nothing
                was removed.
        """
        from kinetics_fs.store.repair import verify_cache

        catalog = None if whole_cache else self.catalog
        with self._fetcher_for(whole_cache) if repair else nullcontext() as fetcher:
            check = verify_cache(self.store, catalog, decode=decode, repair=repair, on_progress=on_progress)
            fetched = None
            if fetcher is not None and check.removed and not check.interrupted:
                fetched = self._prefetch(fetcher, check.removed, len(check.removed), on_fetch_progress)
        return VerifyResult(check, fetched)

    @contextmanager
    def _fetcher_for(self, whole_cache: bool) -> Iterator[Fetcher]:
        """Yield the fetcher of the selection, or one that knows no annotations."""
        if not whole_cache:
            yield self.fetcher
            return
        with closing(make_fetcher(self.settings, self._store_to_fill, None)) as fetcher:
            yield fetcher

    def _prefetch(
        self,
        fetcher: Fetcher,
        clips: Iterable[Clip],
        total: int,
        on_progress: Callable[[PrefetchProgress], object],
        *,
        keep: Iterable[Clip] = (),
    ) -> PrefetchResult:
        from kinetics_fs.fetch.prefetch import prefetch_clips

        window = 2 * self.settings.workers
        return prefetch_clips(fetcher, self.store, clips, total, window=window, keep=keep, on_progress=on_progress)

    def fill(
        self,
        archives: Sequence[str] = (),
        *,
        verify: VerifyLevel | str = "container",
        index: bool = True,
        processes: int = 2,
        shard: Shard | None = None,
        local: bool = True,
        dask: str | None = None,
        worker_cache_dir: str | None = None,
        progress: ArchiveProgress | None = None,
    ) -> FillResult:
        """Fill the cache with the selection from the archives that hold it, in one pass over each archive.

        A fill may end at any point, and be repeated: it reads no archive again that it has finished. With a shared
        store, this fills it, too, together with all other machines that do the same at the same time: each archive is
        read by one of them, and its clips go into the cache of that machine and into the shared store.

        Args:
            archives: names of the archives to read, below `archive_url`; empty for all that hold the selection.
            verify: how to verify each clip: `none`, `container` or `decode`.
            index: index the archives on the way, so that clips can be fetched from them later.
            processes: number of archives to read at the same time.
            shard: with a shared store, the archives with which this machine begins; None for the largest.
            local: store the clips in the cache; otherwise only in the shared store.
            dask: address of the scheduler of a dask cluster whose workers read the archives instead, into their own
                caches and into the shared store.
            worker_cache_dir: cache directory on their machines; None for the path of the cache.
            progress: receives the progress.

        Raises:
            SettingError: there is no shared store, nothing may be written to it, or the cluster cannot be used with
                these settings.
            SharedStoreError: the shared store cannot be used.
            KineticsError: the clips do not fit into the cache or on the disk; the cluster does not answer, or has
                other versions.
            FetchError: the list of archives cannot be read.
            ArchiveError: the list of archives is damaged.
        """
        from kinetics_fs.fill.executors import open_executor
        from kinetics_fs.fill.runner import ArchiveProgress, fill_store

        progress = progress or ArchiveProgress()
        with (
            open_whole_catalog(self.settings) as release,
            open_executor(processes, progress.report, dask=dask, worker_cache_dir=worker_cache_dir) as executor,
        ):
            settings = self._fill_settings(release, archives, verify=verify, index=index, shard=shard, local=local)
            if not executor.is_local and settings.shared is None:
                workers = worker_cache_dir or str(self.settings.cache_dir)
                checkpoints = self.store.layout.fill_checkpoints(self.catalog.annotations_digest, workers=workers)
                settings = replace(settings, checkpoints=checkpoints)
            return fill_store(
                settings,
                self.catalog,
                release,
                self._store_to_fill,
                executor=executor,
                progress=progress,
            )

    def archives_left(self, archives: Sequence[str] = (), *, index: bool = True) -> ArchivesLeft:
        """Return which archives `fill` still has to read: for the shared store if there is one, else for the cache.

        This reads only the list and the versions of the archives.

        Args:
            archives: names of the archives, below `archive_url`; empty for all that hold the selection.
            index: an archive that is not indexed is to be read, too.

        Raises:
            SettingError: nothing may be written to the shared store.
            SharedStoreError: the shared store cannot be used.
            FetchError: the list of archives cannot be read.
            ArchiveError: the list of archives is damaged.
        """
        from kinetics_fs.fill.runner import archives_left

        with open_whole_catalog(self.settings) as release:
            settings = self._fill_settings(release, archives, verify="none", index=index, shard=None, local=True)
            return archives_left(settings, self.catalog, self.store)

    def _fill_settings(
        self,
        release: Catalog,
        archives: Sequence[str],
        *,
        verify: VerifyLevel | str,
        index: bool,
        shard: Shard | None,
        local: bool,
    ) -> FillSettings:
        from kinetics_fs.fill.runner import FillSettings
        from kinetics_fs.media import VerifyLevel
        from kinetics_fs.sources.archive.location import locate

        settings = self.settings
        shared = open_shared_store(settings)
        if shared is not None and settings.shared_write != "all":
            raise SettingError(
                f"cannot fill the shared store with --shared-write {settings.shared_write}: nothing from archives may"
                " be written to it; give --shared-write all"
            )
        if shared is None and not local:
            raise SettingError(
                "cannot use --no-local without --shared: the clips would be stored nowhere; give --shared"
            )
        if shared is None and shard is not None:
            raise SettingError(
                "cannot use --shard without --shared: machines share work only through a shared store; give --shared"
            )
        location = locate(settings.archive_url)
        return FillSettings(
            base=location.base,
            archives=archives or _only(location),
            whole=_has_all_classes(settings),
            min_free=settings.min_free,
            index_db=index_db_path(settings),
            index=index,
            # An archive with nothing more for one selection may have clips of another.
            checkpoints=self.store.layout.fill_checkpoints(self.catalog.annotations_digest),
            verify=VerifyLevel(verify),
            unlisted=partial(self._unlisted_in, release),
            shared=shared,
            local=local,
            shard=shard,
        )

    def _unlisted_in(self, release: Catalog, archives: Sequence[str]) -> dict[str, Unlisted]:
        """Return which clips a fill stores besides the selection, by archive."""
        from kinetics_fs.fill.archive_job import Unlisted
        from kinetics_fs.sources.archive.layout import ArchiveClasses

        if not has_archive_clips(self.settings) or self.settings.max_samples is not None or self.settings.available:
            return {}
        splits = {split_name(word) for word in self.settings.split} or set(SPLITS)
        labels = {one.label for one in self.classes()} if self.settings.klass else None
        classes = ArchiveClasses(release.release, release.labels())
        found = {archive: classes.of(archive) for archive in archives}
        return {
            archive: Unlisted(release.path, *split_and_label)
            for archive, split_and_label in found.items()
            if split_and_label is not None
            and split_and_label[0] in splits
            and (labels is None or split_and_label[1] in labels)
        }

    def import_(
        self,
        folder: str | Path,
        *,
        verify: VerifyLevel | str = "container",
        link: bool = True,
        on_progress: Callable[[ImportResult], object] = lambda result: None,
        on_upload_progress: Callable[[SyncResult], object] = lambda result: None,
    ) -> ImportResult:
        """Import the clips of the selection that are anywhere below a folder. Nothing is evicted for them.

        With a shared store, all cached clips of the selection that it lacks are uploaded afterwards, unless the setting
        `shared_write` forbids it.

        Args:
            folder: the folder.
            verify: how to verify each file: `none`, `container` or `decode`.
            link: make hard links where possible, which take no space; else copy.
            on_progress: receives the result so far after each file.
            on_upload_progress: receives the progress of the uploads.

        Raises:
            KineticsError: the clips do not fit into the cache or on the disk.
            SharedStoreError: the shared store cannot be used. Nothing was imported.
        """
        from kinetics_fs.fill.importer import CacheTarget, import_folder
        from kinetics_fs.media import VerifyLevel

        uploads = self.settings.shared is not None and self.settings.shared_write == "all"
        if uploads:
            self.shared.check()
        result = import_folder(
            Path(folder).absolute(),
            CacheTarget(self._store_to_fill),
            self.catalog,
            verify=VerifyLevel(verify),
            link=link,
            min_free=self.settings.min_free,
            max_height=self.settings.max_height,
            exact=self.settings.trim == "exact",
            on_progress=on_progress,
        )
        if uploads and not (result.problem or result.interrupted):
            result.uploads = self.shared.sync(selection=True, on_progress=on_upload_progress)
            result.problem, result.interrupted = result.uploads.problem, result.uploads.interrupted
        return result

    def export(
        self,
        folder: str | Path,
        *,
        link: bool = True,
        on_progress: Callable[[ExportResult], object] = lambda result: None,
    ) -> ExportResult:
        """Write the cached clips of the selection as `split/class/clip.mp4`. Nothing is fetched or overwritten.

        With a shared store, clips that are not cached come from there. They are not cached on the way.

        Args:
            folder: the folder to write into; created if it does not exist.
            link: make hard links where possible, which take no space and only you can read; else copy.
            on_progress: receives the result so far after each clip.

        Raises:
            CatalogError: two classes would share a folder.
        """
        from kinetics_fs.store.export import export_clips

        style = ClassNames(self.settings.class_names)
        with self.shared.reader() if self.settings.shared is not None else nullcontext() as elsewhere:
            return export_clips(
                self.store,
                self.catalog,
                Path(folder),
                class_names=style,
                link=link,
                elsewhere=elsewhere,
                on_progress=on_progress,
            )

    @property
    def shared(self) -> SharedUpkeep:
        """The shared store of the setting `shared`, to look after it."""
        return SharedUpkeep(self.settings, store=lambda: self.store, catalog=lambda: self.catalog)

    @property
    def indexes(self) -> ArchiveIndexes:
        """The archive indexes of the cache."""
        return ArchiveIndexes(self)

    def status(self) -> StoreStatus:
        """Return the size and limits of the cache, the state of the sources, and the number of remembered failures."""
        return self.store.status()

    def coverage(self) -> Coverage:
        """Measure how many clips of the selection are cached, and why others are unavailable; uses no network."""
        return measure_coverage(self.catalog, self.store)

    def unavailable(self) -> Iterator[UnavailableClip]:
        """Yield the clips of the selection that are not cached and failed to be fetched, with the failure."""
        return unavailable_clips(self.catalog, self.store)

    def failures(
        self, kinds: Collection[FailureKind] = (), clips: Collection[Clip] = (), *, whole_cache: bool = False
    ) -> Iterator[Failure]:
        """Yield the remembered failures, the latest first.

        Args:
            kinds: kinds to include; all if empty.
            clips: clips to include; all if empty.
            whole_cache: include clips outside the selection. The annotations are not read then.
        """
        wanted = set(clips)
        catalog = None if whole_cache else self.catalog
        for failure in self.store.failures.all(kinds):
            if (not wanted or failure.clip in wanted) and (catalog is None or catalog.locate(failure.clip)):
                yield failure

    def forget_failures(
        self, clips: Collection[Clip] | None = None, kinds: Collection[FailureKind] = ()
    ) -> ForgottenFailures:
        """Forget failures of the cache, so that the next open retries the clip.

        If this covers all failures, or those of the kind `blocked`, blocked sources may be used again at once. With a
        shared store, this holds for all machines that use it, or the rate group of the settings.

        Args:
            clips: the clips whose failures are forgotten; None for all, in the selection or not.
            kinds: the kinds that are forgotten; all if empty.

        Raises:
            SharedStoreError: the shared store cannot be used. The failures of the cache were forgotten.
        """
        forgotten = ForgottenFailures(self.store.failures.forget(clips, kinds))
        unblocks = FailureKind.BLOCKED in kinds or (clips is None and not kinds)
        if unblocks:
            forgotten = forgotten._replace(unblocked_sources=self.store.throttle.reset_blocks())
        if self.settings.shared is not None:
            if not kinds or FailureKind.GONE in kinds:
                forgotten = forgotten._replace(shared_failures=self.shared.forget_failures(clips))
            if unblocks:
                forgotten = forgotten._replace(unblocked_for_all=self.shared.reset_blocks())
        return forgotten

    def export_failures(self, file: BinaryIO, kinds: Collection[FailureKind] = ()) -> int:
        """Write the clips of the cache that failed to a file, for other caches to import, and return how many.

        A clip that only certain archives lack is left out: another cache may use others.

        Args:
            file: receives a JSON object per line.
            kinds: kinds to write: `gone`, `corrupt` or `credentials`; `gone` if empty.

        Raises:
            SettingError: a kind says nothing about a clip, only about a machine or its network.
        """
        wanted = _shareable(kinds)
        known = (failure for failure in self.failures(wanted, whole_cache=True) if not failure.is_of_archives)
        failures = sorted(known, key=lambda failure: failure.key)
        file.writelines(f"{report_line(failure)}\n".encode() for failure in failures)
        return len(failures)

    def import_failures(self, file: BinaryIO, kinds: Collection[FailureKind] = ()) -> FailureImport:
        """Read the clips that failed elsewhere from a file that `export_failures` wrote.

        A failure that the cache remembers with a later date stays, and so does a cached clip.

        Args:
            file: need not be trusted.
            kinds: kinds to read, as in `export_failures`.

        Raises:
            KineticsError: the file is too long.
            SettingError: as in `export_failures`.
        """
        wanted = _shareable(kinds)
        other_kind = invalid = 0
        first_invalid: list[InvalidLine] = []

        def reports() -> Iterator[FailureReport]:
            nonlocal other_kind, invalid
            for line in read_reports(file):
                if isinstance(line, InvalidLine):
                    invalid += 1
                    if len(first_invalid) < _INVALID_LINES_KEPT:
                        first_invalid.append(line)
                elif line.kind in wanted:
                    yield line
                else:
                    other_kind += 1

        imported = self.store.failures.import_reports(reports())
        return FailureImport(imported.new, imported.known, imported.cached, other_kind, invalid, tuple(first_invalid))

    def pin(self) -> Pinned:
        """Pin the clips of the selection: eviction spares them, whether they are cached already or come later."""
        return self.store.pins.add(self.clips())

    def unpin(self, *, whole_cache: bool = False) -> PinCounts:
        """Unpin the clips of the selection; they stay cached until eviction needs their space.

        Args:
            whole_cache: unpin all clips. The annotations are not read then.
        """
        return self.store.pins.remove_all() if whole_cache else self.store.pins.remove(self.clips())

    def pin_totals(self) -> PinCounts:
        """Return the counts of all pinned clips, in the selection or not."""
        return self.store.pins.totals()

    def pins(self) -> Iterator[ClassPins]:
        """Yield the pinned clips of the selection, counted for each class of each split that has any."""
        for split in self.catalog.splits():
            for directory in self.catalog.classes(split):
                counts = self.store.pins.of([entry.clip.key for entry in self.catalog.entries(directory)])
                if counts.clips:
                    yield ClassPins(directory.split, directory.label or "", counts)


class ForgottenFailures(NamedTuple):
    """Number of failures that were forgotten, and of blocked sources that may be used again.

    Attributes:
        failures: failures of the cache.
        unblocked_sources: sources that this cache may use again.
        shared_failures: failures of the shared store.
        unblocked_for_all: sources that the machines of the rate group may use again.
    """

    failures: int
    unblocked_sources: int = 0
    shared_failures: int = 0
    unblocked_for_all: int = 0


@dataclass(frozen=True, slots=True)
class FailureImport:
    """Result of an import of failures.

    Attributes:
        imported: number of failures that the cache remembers now.
        known: number of failures that it remembered already.
        cached: number of clips that are cached, or were stored after the failure.
        other_kind: number of failures of other kinds.
        invalid: number of invalid lines, which were skipped.
        first_invalid: the first of these lines.
    """

    imported: int
    known: int
    cached: int
    other_kind: int
    invalid: int
    first_invalid: tuple[InvalidLine, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as `kinetics-fs failures import --json` prints them."""
        return {
            "imported": self.imported,
            "known": self.known,
            "cached": self.cached,
            "other_kind": self.other_kind,
            "invalid": self.invalid,
        }


@dataclass(frozen=True, slots=True)
class ClassClips:
    """A class: its label, its index among all classes of the release (-1 without labels), and its clips by split."""

    label: str
    index: int
    clips: dict[str, int]


class ClassPins(NamedTuple):
    """Number of pinned clips of a class in a split, the cached ones among them, and their bytes."""

    split: str
    label: str
    counts: PinCounts


@dataclass(frozen=True)
class VerifyResult:
    """The result of verifying the cache.

    Attributes:
        check: the bad clips, and those of them that were removed.
        fetched: the result of fetching removed clips again; None if there were none.
    """

    check: CacheCheck
    fetched: PrefetchResult | None

    @property
    def problem(self) -> FetchError | None:
        """The failure that ended the fetching early, because every other clip would fail the same way."""
        return self.fetched.problem if self.fetched else None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the verification or the fetching early."""
        return self.check.interrupted or bool(self.fetched and self.fetched.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the result as an object for `json.dumps`."""
        check, fetched = self.check, self.fetched
        repair = {
            "removed": len(check.removed),
            "unknown_files_removed": check.unknown_files_removed,
            "fetched": fetched.fetched if fetched else 0,
            "failures": fetched.failures if fetched else {},
        }
        return {
            **check.to_json(),
            "repair": repair if check.repair else None,
            "interrupted": self.interrupted,
        }


class ArchiveIndexes:
    """The archive indexes of a cache, by which clips are fetched straight out of archives."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._settings = library.settings

    def build(
        self,
        archives: Sequence[str] = (),
        *,
        processes: int = 2,
        dask: str | None = None,
        worker_cache_dir: str | None = None,
        progress: ArchiveProgress | None = None,
    ) -> ArchiveResults:
        """Index archives in one pass over each. No clip is stored. With a shared store, the indexes are shared.

        Args:
            archives: names of the archives, below `archive_url`; empty for all that hold the selection.
            processes: number of archives to read at the same time.
            dask: address of the scheduler of a dask cluster whose workers read the archives instead.
            worker_cache_dir: cache directory on their machines; None for the path of the cache.
            progress: receives the progress.

        Raises:
            SettingError: the cluster cannot be used with these settings.
            KineticsError: the cluster does not answer, or has other versions.
            SharedStoreError: the shared store cannot be used.
            FetchError: the list of archives cannot be read.
            ArchiveError: the list of archives is damaged, or this Python cannot build indexes.
        """
        from kinetics_fs.fill.executors import open_executor
        from kinetics_fs.fill.indexes import build_indexes
        from kinetics_fs.fill.plan import archives_holding, retry_indexed
        from kinetics_fs.fill.runner import ArchiveProgress
        from kinetics_fs.sources.archive.location import locate

        settings = self._settings
        location = locate(settings.archive_url)
        prepare_folder(settings.cache_dir)
        archives = archives or _only(location)
        progress = progress or ArchiveProgress()
        with open_executor(processes, progress.report, dask=dask, worker_cache_dir=worker_cache_dir) as executor:
            results = build_indexes(
                location.base,
                archives or archives_holding(location.base, self._library.catalog, whole=_has_all_classes(settings)),
                index_db_path(settings),
                cache_dir=settings.cache_dir,
                checkpoints=CacheLayout(settings.cache_dir).index_checkpoints,
                failures=self._library.store.failures,
                executor=executor,
                progress=progress,
                shared=open_shared_store(settings),
                share=settings.shared_write == "all",
            )
        with open_index_db(settings) as index_db:
            retry_indexed(index_db, self._library.store.failures)
        return results

    def list(self) -> builtins.list[IndexedArchive]:
        """Return the archives that are indexed, by name."""
        if not index_db_path(self._settings).exists():
            return []
        with open_index_db(self._settings) as index_db:
            return index_db.archives()

    def verify(
        self,
        archives: Sequence[str] = (),
        *,
        sample: int | None = 100,
        on_progress: Callable[[IndexCheck], object] = lambda check: None,
    ) -> IndexCheck:
        """Read clips by the indexes, and compare their sizes and checksums. No clip is stored.

        Args:
            archives: names of the archives; empty for all that are indexed.
            sample: number of clips to read, at random; None for all.
            on_progress: receives the check so far after each clip.

        Raises:
            ArchiveError: the cache has no indexes, or none of one of these archives.
        """
        from kinetics_fs.fill.indexes import select_archives, verify_indexes
        from kinetics_fs.sources.archive.location import locate

        location = locate(self._settings.archive_url)
        with open_index_db(self._settings) as index_db:
            names = select_archives(index_db, archives or _only(location))
            return verify_indexes(location.base, names, index_db, sample=sample, on_progress=on_progress)

    def export(self, file: BinaryIO, archives: Sequence[str] = ()) -> int:
        """Write indexes to a file, and return how many were written. Such files may be concatenated.

        Raises:
            ArchiveError: the cache has no indexes, or none of one of these archives.
        """
        from kinetics_fs.fill.indexes import export_indexes, select_archives

        with open_index_db(self._settings) as index_db:
            return export_indexes(index_db, select_archives(index_db, archives), file)

    def import_(self, file: BinaryIO) -> ImportedIndexes:
        """Import the indexes in a file that `export` wrote. An index replaces an earlier one of the same archive.

        Raises:
            ArchiveError: the first index in the file is invalid or does not fit on the disk, so that nothing was
                imported.
        """
        from kinetics_fs.fill.indexes import import_indexes
        from kinetics_fs.fill.plan import retry_indexed
        from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

        prepare_folder(self._settings.cache_dir)
        with ArchiveIndexDB(index_db_path(self._settings)) as index_db:
            result = import_indexes(index_db, file, folder=self._settings.cache_dir)
            retry_indexed(index_db, self._library.store.failures)
        return result

    def remove(self, archives: Sequence[str] = ()) -> int:
        """Remove the indexes of these archives, or all if none is named, and return how many. Cached clips stay.

        Raises:
            ArchiveError: the cache has no indexes, or none of one of these archives.
        """
        from kinetics_fs.fill.indexes import select_archives

        with open_index_db(self._settings) as index_db:
            return sum(index_db.remove(name) for name in select_archives(index_db, archives))


def _only(location: Location) -> Sequence[str]:
    """Return the archive that was given alone; nothing if all archives were."""
    return () if location.archive is None else (location.archive,)


def _has_all_classes(settings: Settings) -> bool:
    return not settings.klass and not settings.annotations


def _shareable(kinds: Collection[FailureKind]) -> Collection[FailureKind]:
    """Return the kinds of failures to write or read: those given, or the default."""
    for kind in kinds:
        if kind not in LASTING_KINDS:
            raise SettingError(
                f"cannot share failures of kind {kind}: they describe a machine or its network rather than a clip;"
                f" choose from {', '.join(LASTING_KINDS)}"
            )
    return kinds or KINDS_SHARED_BY_DEFAULT


def _to_clip(clip: Clip | str) -> Clip:
    if isinstance(clip, Clip):
        return clip
    parsed = parse_clip_name(clip.rpartition("/")[2])
    if parsed is None:
        raise UnknownClipError(
            f"cannot find the clip {clip!r}: its name has not the form <YouTube id>_<start>_<end>.mp4"
        )
    return parsed
