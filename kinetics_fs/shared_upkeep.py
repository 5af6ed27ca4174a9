"""Upkeep of a shared store from Python: `Library.shared`.

::

    with Library(shared="s3://bucket/kinetics") as library:
        print(library.shared.status().content)
        library.shared.verify(sample=1000, repair=True)

Mounts and fetches use the store by themselves; these methods are for the people who look after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kinetics_fs.app import open_shared_store
from kinetics_fs.catalog import Catalog
from kinetics_fs.config import Settings
from kinetics_fs.errors import SettingError, SharedStoreError
from kinetics_fs.store import CacheLayout, Store

if TYPE_CHECKING:
    from kinetics_fs.shared import QueueStatus, SharedStore
    from kinetics_fs.shared.summary import StoreContent, StoreSummary


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
