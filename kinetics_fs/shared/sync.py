"""Upload of the cached clips that a shared store lacks: after an outage, after a full queue, or of a whole cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from kinetics_fs.catalog import Catalog
from kinetics_fs.errors import FetchError, SharedStoreError
from kinetics_fs.media.profile import UNKNOWN
from kinetics_fs.shared.backend import ObjectDamaged
from kinetics_fs.shared.listing import StoredClips
from kinetics_fs.shared.store import SharedStore
from kinetics_fs.shared.upload_queue import Upload, UploadQueue
from kinetics_fs.shared.write_back import CachedClips, WriteBack
from kinetics_fs.store import CachedFile, Store
from kinetics_fs.store.selection import selected_files
from kinetics_fs.util.parallel import map_in_order

_log = logging.getLogger(__name__)

_THREADS = 4
"""Uploads at the same time. Each clip is in memory as a whole."""


@dataclass
class SyncResult:
    """The result of uploading the clips of a cache.

    Attributes:
        listed: clips of the store that were listed so far.
        to_upload: cached clips that the store lacks.
        to_upload_bytes: their bytes.
        done: those of them that were uploaded or refused so far.
        uploaded: clips that were uploaded.
        bytes: their bytes.
        already_stored: clips that the store has; another machine may have uploaded them meanwhile.
        evicted: clips that were evicted meanwhile.
        refused: clips that are damaged, unreadable or too large.
        problem: the fault of the store that ended the uploads early.
        interrupted: Ctrl-C ended them early.
    """

    listed: int = 0
    to_upload: int = 0
    to_upload_bytes: int = 0
    done: int = 0
    uploaded: int = 0
    bytes: int = 0
    already_stored: int = 0
    evicted: int = 0
    refused: int = 0
    problem: SharedStoreError | None = None
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether the store has every clip that could be uploaded."""
        return not (self.refused or self.problem or self.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers without the progress."""
        left_out = ("listed", "done", "problem")
        return {name: value for name, value in vars(self).items() if name not in left_out}


OnProgress = Callable[[SyncResult], object]
"""Receives the result so far."""


def sync_cache(
    store: SharedStore,
    cache: Store,
    catalog: Catalog | None,
    *,
    profiles: Collection[str] | None,
    source: str | None,
    dry_run: bool = False,
    on_progress: OnProgress = lambda result: None,
) -> SyncResult:
    """Upload the cached clips that the store lacks, and take them out of the queue of the cache.

    Args:
        store: the store.
        cache: the cache.
        catalog: the clips to upload; None for all, and for all in the queue.
        profiles: the profiles to upload; None for all that are known.
        source: upload only clips that this source delivered; None for all.
        dry_run: only count the clips.
        on_progress: receives the result so far.

    Raises:
        StoreError: the cache cannot be used.
    """
    sync = _Sync(store, cache, catalog, profiles, source, on_progress)
    try:
        sync.run(dry_run=dry_run)
    except KeyboardInterrupt:
        sync.result.interrupted = True
    except SharedStoreError as error:
        sync.result.problem = error
    finally:
        sync.close()
    return sync.result


class _Outcome(Enum):
    STORED_BEFORE = "stored before"
    """The listing had the clip."""
    STORED_MEANWHILE = "stored meanwhile"
    UPLOADED = "uploaded"
    EVICTED = "evicted"
    REFUSED = "refused"
    UNREADABLE = "unreadable"


class _Upload(NamedTuple):
    file: CachedFile
    outcome: _Outcome


class _Sync:
    def __init__(
        self,
        store: SharedStore,
        cache: Store,
        catalog: Catalog | None,
        profiles: Collection[str] | None,
        source: str | None,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._cache = cache
        self._catalog = catalog
        self._profiles = profiles
        self._source = source
        self._on_progress = on_progress
        self._clips = CachedClips(cache)
        self._queue: UploadQueue | None = None
        if cache.layout.uploads.exists():
            self._queue = UploadQueue(cache.layout.uploads)
        self.result = SyncResult()

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()

    def run(self, *, dry_run: bool) -> None:
        """Upload what is missing.

        Raises:
            SharedStoreError: the store cannot be used.
        """
        with StoredClips(self._store, self._profiles, self._show_listed) as stored:
            for file in self._files():
                if stored.has(file.clip, file.profile):
                    self.result.already_stored += 1
                else:
                    self.result.to_upload += 1
                    self.result.to_upload_bytes += file.size
            if dry_run:
                return
            for outcome in map_in_order(lambda file: self._upload(file, stored), self._files(), _THREADS):
                self._count(outcome)
                self._on_progress(self.result)
        if self._catalog is None and self._queue is not None:
            # Clips of other settings that a mount enqueued, and clips that are no longer cached.
            rest = WriteBack(self._store, self._queue, self._clips)
            while rest.upload_next():
                self._on_progress(self.result)
            status = rest.status()
            self.result.uploaded += status.uploaded
            self.result.bytes += status.bytes

    def _show_listed(self, listed: int) -> None:
        self.result.listed = listed
        self._on_progress(self.result)

    def _files(self) -> Iterator[CachedFile]:
        for file in selected_files(self._cache, self._catalog, source=self._source):
            if file.profile != UNKNOWN and (self._profiles is None or file.profile in self._profiles):
                yield file

    def _upload(self, file: CachedFile, stored: StoredClips) -> _Upload:
        """Upload a clip if the store lacks it."""
        if stored.has(file.clip, file.profile):
            return _Upload(file, _Outcome.STORED_BEFORE)
        try:
            found = self._clips.read(file.clip, file.profile)
            if found is None:
                return _Upload(file, _Outcome.EVICTED)
            is_new = self._store.put_clip(file.clip, file.profile, found.body, found.facts)
        except ObjectDamaged as error:  # of the cached file, or something in the way that is no object
            _log.warning("%s: not uploaded: %s", file.clip.key, error)
            return _Upload(file, _Outcome.REFUSED)
        except FetchError as error:
            _log.warning("%s: not uploaded: %s", file.clip.key, error.reason)
            return _Upload(file, _Outcome.UNREADABLE)
        return _Upload(file, _Outcome.UPLOADED if is_new else _Outcome.STORED_MEANWHILE)

    def _count(self, upload: _Upload) -> None:
        result, outcome = self.result, upload.outcome
        if outcome is not _Outcome.STORED_BEFORE:
            result.done += 1
        match outcome:
            case _Outcome.UPLOADED:
                result.uploaded += 1
                result.bytes += upload.file.size
            case _Outcome.STORED_MEANWHILE:
                result.already_stored += 1
            case _Outcome.EVICTED:
                result.evicted += 1
            case _Outcome.REFUSED | _Outcome.UNREADABLE:
                result.refused += 1
        entry = Upload(upload.file.clip, upload.file.profile)
        if self._queue is not None and outcome is not _Outcome.UNREADABLE and self._queue.has(entry):
            dropped = outcome.value if outcome in (_Outcome.EVICTED, _Outcome.REFUSED) else ""
            self._queue.finish(entry, dropped)
