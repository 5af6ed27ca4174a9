"""Upkeep of a shared store from Python: `Library.shared`.

::

    with Library(shared="s3://bucket/kinetics") as library:
        print(library.shared.status().content)
        library.shared.verify(sample=1000, repair=True)

Mounts and fetches use the store by themselves; these methods are for the people who look after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_fs.app import cut_profile, open_shared_store, open_whole_catalog
from kinetics_fs.catalog import UNLABELED, Catalog, Clip
from kinetics_fs.config import Settings
from kinetics_fs.errors import SettingError, SharedStoreError, StoreError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.store import CacheLayout, Store
from kinetics_fs.store.layout import is_cache
from kinetics_fs.util.parallel import map_in_order

if TYPE_CHECKING:
    from kinetics_fs.fill.importer import ImportResult
    from kinetics_fs.media import VerifyLevel
    from kinetics_fs.shared import QueueStatus, SharedStore
    from kinetics_fs.shared.pruning import PruneResult
    from kinetics_fs.shared.store import ListedClip
    from kinetics_fs.shared.summary import StoreContent, StoreSummary
    from kinetics_fs.shared.sync import SyncResult
    from kinetics_fs.shared.verification import SharedCheck

_log = logging.getLogger(__name__)

_MAX_LOOKUPS = 1000
"""Failures that are looked up one by one; of more, all are listed."""
_LOOKUPS = 8
"""Lookups at the same time."""
_BATCH = 1000


class SharedUpkeep:
    """The shared store of some settings, to look after it.

    Every method raises:
        SettingError: the settings name no shared store, or the address is invalid.
        SharedStoreError: the place is no shared store, or cannot be used.

    Args:
        settings: the settings.
        store: returns the cache.
        catalog: returns the catalog of the selection.
    """

    def __init__(self, settings: Settings, *, store: Callable[[], Store], catalog: Callable[[], Catalog]) -> None:
        self._settings = settings
        self._cache = store
        self._catalog = catalog

    def _open(self, *, write: bool) -> SharedStore:
        store = open_shared_store(self._settings)
        if store is None:
            raise SettingError("cannot use a shared store: none is given; give its address with --shared")
        if not store.open(create=False) and write:
            raise SharedStoreError(
                f"cannot write to {store.backend.address}: a newer version of kinetics-fs writes to it; update"
                " kinetics-fs"
            )
        return store

    def check(self) -> None:
        """Check that this version of kinetics-fs may write to the store."""
        self._open(write=True)

    def status(
        self, *, quick: bool = False, on_progress: Callable[[StoreContent], object] = lambda content: None
    ) -> StoreSummary:
        """Return what the store has, and which machines use it.

        Args:
            quick: do not list the clips.
            on_progress: receives what has been listed so far.
        """
        from kinetics_fs.shared.summary import summarize_store

        return summarize_store(self._open(write=False), quick=quick, on_progress=on_progress)

    def uploads(self) -> QueueStatus | None:
        """Return how many clips of the cache wait for their upload; None if there never were any.

        Raises:
            StoreError: the queue cannot be read.
        """
        path = CacheLayout(self._settings.cache_dir).uploads
        if not path.exists():
            return None
        from kinetics_fs.shared import UploadQueue

        queue = UploadQueue(path)
        try:
            return queue.status()
        finally:
            queue.close()

    def verify(
        self,
        *,
        sample: int | None = 100,
        decode: bool = False,
        repair: bool = False,
        on_progress: Callable[[SharedCheck], object] = lambda check: None,
    ) -> SharedCheck:
        """Compare clips with the size and the SHA-256 with which they were stored, and read their containers.

        Args:
            sample: number of clips to verify, at random; None for all.
            decode: also decode each clip, which is slow.
            repair: delete damaged clips. They are fetched and uploaded again when a machine needs them.
            on_progress: receives the check so far.

        Raises:
            CatalogError: with `repair`, the annotations cannot be read.
        """
        from kinetics_fs.shared.verification import verify_shared

        store = self._open(write=repair)
        check = verify_shared(store, sample=sample, decode=decode, repair=repair, on_progress=on_progress)
        if any(one.profile == SOURCE for one in check.first_damaged) and repair:
            with open_whole_catalog(self._settings) as catalog:
                deleted = DeletedFrom(catalog)
                for one in check.first_damaged:
                    deleted.add(one.clip, one.profile)
                check.forgotten_fills = store.forget_fills(deleted.is_affected)
        return check

    def prune(
        self,
        *,
        selection: bool,
        profiles: Collection[str] = (),
        delete: bool,
        on_progress: Callable[[PruneResult], object] = lambda result: None,
    ) -> PruneResult:
        """Delete clips, and the leases, failures and probes that have no effect any more.

        Clips that are younger than 7 days by the clock of the store stay.

        Args:
            selection: delete clips of the selection.
            profiles: delete clips of these profiles only. Without a selection, delete all of them.
            delete: delete objects; else only count them.
            on_progress: receives the result so far.

        Raises:
            CatalogError: the annotations cannot be read.
        """
        from kinetics_fs.shared.pruning import prune_store

        store = self._open(write=delete)
        selected = self._catalog() if selection else None

        def is_chosen(listed: ListedClip) -> bool:
            return (not profiles or listed.profile in profiles) and (
                selected is None or bool(selected.locate(listed.clip))
            )

        with open_whole_catalog(self._settings) if selection or profiles else nullcontext() as release:
            return prune_store(
                store,
                chosen=is_chosen if release is not None else None,
                archives=DeletedFrom(release),
                delete=delete,
                on_progress=on_progress,
            )

    def sync(
        self,
        *,
        selection: bool = False,
        dry_run: bool = False,
        on_progress: Callable[[SyncResult], object] = lambda result: None,
    ) -> SyncResult:
        """Upload the cached clips that the store lacks, of the profiles that this machine uses.

        It also empties the queue of uploads that a mount could not make.

        Args:
            selection: upload only clips of the selection.
            dry_run: only count the clips.
            on_progress: receives the result so far.

        Raises:
            CatalogError: the annotations cannot be read.
            SettingError: the setting `shared_write` forbids all uploads.
            StoreError: the cache cannot be used.
        """
        from kinetics_fs.shared.sync import sync_cache

        if self._settings.shared_write == "none":
            raise SettingError("cannot upload clips: --shared-write is none; give all or youtube")
        store, cache = self._open(write=True), self._cache()
        return sync_cache(
            store,
            cache,
            self._catalog() if selection else None,
            profiles=(SOURCE, cache.profile.name),
            source=None if self._settings.shared_write == "all" else self._settings.shared_write,
            dry_run=dry_run,
            on_progress=on_progress,
        )

    def import_folder(
        self,
        folder: str | Path,
        *,
        verify: VerifyLevel | str = "container",
        on_listed: Callable[[int], object] = lambda listed: None,
        on_progress: Callable[[ImportResult], object] = lambda result: None,
    ) -> ImportResult:
        """Upload the clips of the selection that are anywhere below a folder. Nothing is cached.

        Args:
            folder: the folder, in the layout of any download tool.
            verify: how to verify each file: `none`, `container` or `decode`.
            on_listed: receives the number of clips of the store that were listed so far.
            on_progress: receives the result so far after each file.

        Raises:
            CatalogError: the annotations cannot be read.
        """
        from kinetics_fs.fill.importer import import_folder
        from kinetics_fs.fill.shared_target import SharedTarget
        from kinetics_fs.media import VerifyLevel

        settings = self._settings
        return import_folder(
            Path(folder).absolute(),
            # A process that is killed leaves files there, which the next one that uses the cache removes.
            SharedTarget(self._open(write=True), cut_profile(settings).name, self._cache().scratch, on_listed),
            self._catalog(),
            verify=VerifyLevel(verify),
            link=False,
            min_free=settings.min_free,
            max_height=settings.max_height,
            exact=settings.trim == "exact",
            on_progress=on_progress,
        )

    def import_cache(
        self,
        folder: str | Path,
        *,
        selection: bool = False,
        on_progress: Callable[[SyncResult], object] = lambda result: None,
    ) -> SyncResult:
        """Upload the clips of any cache of this user, of all profiles, that the store lacks.

        Args:
            folder: the cache directory.
            selection: upload only clips of the selection.
            on_progress: receives the result so far.

        Raises:
            CatalogError: the annotations cannot be read.
            StoreError: the folder is no cache, or it cannot be used.
        """
        from kinetics_fs.shared.sync import sync_cache

        if not is_cache(Path(folder)):
            raise StoreError(f"cannot import {folder}: it is no cache directory of kinetics-fs; give one that is")
        store = self._open(write=True)
        with Store(Path(folder), profile=cut_profile(self._settings), min_free=self._settings.min_free) as cache:
            catalog = self._catalog() if selection else None
            return sync_cache(store, cache, catalog, profiles=None, source=None, on_progress=on_progress)

    @contextmanager
    def reader(self) -> Iterator[Callable[[Clip], bytes | None]]:
        """Yield a function that returns the bytes of a clip, verified; None if the store does not have it.

        It reads clips as this machine cuts them, or as their source has them. It is safe for threads.
        """
        from kinetics_fs.media.checker import Checker
        from kinetics_fs.shared import ObjectDamaged
        from kinetics_fs.shared.verification import find_container_fault

        store = self._open(write=False)
        profiles = (cut_profile(self._settings).name, SOURCE)

        with Checker() as checker:

            def read(clip: Clip) -> bytes | None:
                for profile in profiles:
                    try:
                        found = store.get_clip(clip, profile)
                    except ObjectDamaged as error:
                        _log.warning("%s: %s", clip.key, error)
                        continue
                    if found is None:
                        continue
                    if not (fault := find_container_fault(found.body, checker.measure)):
                        return found.body
                    _log.warning("%s: damaged in %s: %s", clip.key, store.backend.address, fault)
                return None

            yield read

    def gone(self, clips: Collection[Clip] | None = None) -> Iterator[Clip]:
        """Yield the clips that no machine tries, because one of them found that they are gone.

        Args:
            clips: the clips to look up; None for all.
        """
        store = self._open(write=False)
        if clips is not None and len(clips) <= _MAX_LOOKUPS:
            found = map_in_order(lambda clip: (clip, store.has_gone(clip)), clips, _LOOKUPS)
            return (clip for clip, is_gone in found if is_gone)
        wanted = None if clips is None else frozenset(clips)
        return (clip for clip in store.gone_clips() if wanted is None or clip in wanted)

    def forget_failures(self, clips: Collection[Clip] | None = None) -> int:
        """Forget that clips are gone, so that every machine whose own failure is due tries them again.

        Args:
            clips: the clips; None for all.

        Returns:
            The number of failures that were forgotten.
        """
        store = self._open(write=True)
        gone, forgotten = self.gone(clips), 0
        while batch := list(islice(gone, _BATCH)):
            store.forget_gone(batch)
            forgotten += len(batch)
        return forgotten

    def forget_failures_if_reachable(self, clips: Collection[Clip]) -> None:
        """Forget that clips are gone; log a warning if the store is away, because then no machine asks it."""
        from kinetics_fs.shared import StoreUnreachable

        try:
            self.forget_failures(clips)
        except StoreUnreachable as error:
            _log.warning("the failures of the shared store stay: %s", error)

    def reset_blocks(self) -> int:
        """Let all machines of the rate group use blocked sources again. Return the number of these sources."""
        from kinetics_fs.shared import ObjectDamaged, SharedBudget, node_id
        from kinetics_fs.shared.budget import budget_names, read_budget

        store = self._open(write=True)
        unblocked = 0
        for source, group in budget_names(store.backend):
            if group == self._settings.rate_group:
                try:
                    is_blocked = bool(read_budget(store.records, source, group, time.time()).reason)
                except ObjectDamaged:  # the next machine that uses it begins a new one
                    continue
                if is_blocked:
                    SharedBudget(store.records, store.backend, store.clock, source, group, node_id()).reset_block()
                    unblocked += 1
        return unblocked


class DeletedFrom:
    """The classes and archives from which clips were deleted.

    Args:
        catalog: of the whole release; None if no clips are deleted.
    """

    def __init__(self, catalog: Catalog | None) -> None:
        from kinetics_fs.sources.archive.layout import ArchiveClasses

        self._catalog = catalog
        self._archives = ArchiveClasses(catalog.release, catalog.labels()) if catalog is not None else None
        self._classes: set[tuple[str, str]] = set()
        self._is_anywhere = False
        """A clip that is not in the catalog was deleted."""

    @property
    def are_affected(self) -> bool:
        """Whether any clip may be from an archive."""
        return self._is_anywhere or bool(self._classes)

    def add(self, clip: Clip, profile: str) -> None:
        """Note a clip. Only clips as their source has them come from archives."""
        if profile != SOURCE or self._catalog is None:
            return
        entries = self._catalog.locate(clip)
        self._is_anywhere |= not entries
        for entry in entries:
            if (directory := self._catalog.directory(entry.directory)) is not None:
                self._classes |= {(directory.split, directory.label or UNLABELED), (directory.split, UNLABELED)}

    def is_affected(self, archive: str) -> bool:
        """Return whether an archive may have had one of the clips. One of another release may."""
        found = self._archives.of(archive) if self._archives is not None else None
        return self.are_affected and (found is None or self._is_anywhere or found in self._classes)
