"""The status of a mount, collected from its parts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_fs._version import __version__
from kinetics_fs.catalog import Catalog, parse_clip_name
from kinetics_fs.control.status import FailedFetch, FrontendStatus, MountStatus, SplitCounts, StoreStatus
from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.fetcher import Fetcher
from kinetics_fs.fetch.prefetch_manager import PrefetchManager
from kinetics_fs.store import Store
from kinetics_fs.util.text import user_name
from kinetics_fs.vfs import FetchBudget, Filesystem

if TYPE_CHECKING:
    from kinetics_fs.mount.metrics import MountMetrics

ReadFrontend = Callable[[], FrontendStatus]
"""Returns the status of the front end; safe for threads."""

OnReady = Callable[[ReadFrontend], None]
"""Called by a front end once, when the mount can be used."""


class StatusCollector:
    """The source of everything that a mount reports about itself. Safe for threads.

    Args:
        mountpoint: absolute path of the mount point.
        metrics_url: address of the metrics; None if they are not served.
        catalog: the clips that the mount shows.
        store: the cache.
        fetcher: the fetcher of the mount.
        prefetches: the prefetches of the mount.
        budget: the limits on fetches that opens start.
    """

    def __init__(
        self,
        mountpoint: Path,
        *,
        metrics_url: str | None,
        catalog: Catalog,
        store: Store,
        fetcher: Fetcher,
        prefetches: PrefetchManager,
        budget: FetchBudget,
    ) -> None:
        self._mountpoint = mountpoint
        self._metrics_url = metrics_url
        self._catalog = catalog
        self._store = store
        self._fetcher = fetcher
        self._prefetches = prefetches
        self._budget = budget
        self._mounted_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._splits = {
            split.split: SplitCounts(clips=split.clips, classes=len(catalog.classes(split)))
            for split in catalog.splits()
        }
        self._metrics: MountMetrics | None = None
        self._metrics_lock = threading.Lock()
        self._filesystem: Filesystem | None = None
        self._frontend: ReadFrontend | None = None
        fetcher.stats.observer = self

    def attach(self, filesystem: Filesystem) -> None:
        """Set the filesystem of the mount, which is created after the collector because it shows the status."""
        self._filesystem = filesystem

    def set_frontend(self, frontend: ReadFrontend) -> None:
        """Set the function that returns the status of the front end, once the mount is ready."""
        self._frontend = frontend

    def status(self) -> MountStatus:
        """Return the status of the mount."""
        assert self._filesystem is not None
        refusals = self._catalog.refusals()
        store, fetch = self._store.status(), self._fetcher.status()
        in_flight = tuple(replace(one, label=self._label(one.clip)) for one in fetch.in_flight)
        failed = tuple(
            replace(one, label=self._label(one.clip)) for one in fetch.last_failures if self._still_fails(one, store)
        )
        return MountStatus(
            version=__version__,
            mountpoint=str(self._mountpoint),
            pid=os.getpid(),
            user=user_name(os.geteuid()),
            mounted_at=self._mounted_at,
            release=self._catalog.release,
            frontend=None if self._frontend is None else self._frontend(),
            metrics_url=self._metrics_url,
            clips=self._catalog.clip_count,
            hidden=self._filesystem.hidden.total,
            splits=self._splits,
            refused_rows=dict(refusals.by_reason),
            duplicate_rows=self._catalog.duplicates,
            opens=self._filesystem.opens(),
            fetch=replace(fetch, in_flight=in_flight, last_failures=failed),
            cache=store.cache,
            sources=store.sources,
            failures=store.failures,
            budget=self._budget.status(),
            evicted=self._store.evicted,
            prefetches=tuple(self._prefetches.statuses()),
            shared=self._fetcher.shared_status(),
        )

    def _label(self, key: str) -> str:
        clip = parse_clip_name(f"{key}.mp4")
        entries = self._catalog.locate(clip) if clip is not None else []
        directory = self._catalog.directory(entries[0].directory) if entries else None
        return (directory.label or "") if directory is not None else ""

    def _still_fails(self, failed: FailedFetch, store: StoreStatus) -> bool:
        """Return whether a clip is unavailable still: not cached, not being fetched, and its failure not forgotten."""
        clip = parse_clip_name(f"{failed.clip}.mp4")
        if clip is None or self._fetcher.is_fetching(clip) or self._store.is_cached(clip):
            return False
        if failed.kind == FailureKind.BLOCKED:
            source = store.sources.get(failed.source)
            return source is not None and source.blocked_for is not None
        return self._store.failures.get(clip) is not None

    def metrics(self) -> MountMetrics:
        """Return the metrics of the mount.

        They are created when the first fetch ends or a client asks for them: to import their library takes 25 ms,
        which would delay the mount.
        """
        with self._metrics_lock:
            if self._metrics is None:
                from kinetics_fs.mount.metrics import MountMetrics

                self._metrics = MountMetrics(self.status)
            return self._metrics

    def metrics_text(self) -> str:
        """Return the content of `.kinetics/metrics`."""
        return self.metrics().text()

    def on_fetched(self, source: str, size: int, seconds: float | None) -> None:
        """Count a clip that was stored, for the metrics; see `FetchObserver`."""
        self.metrics().on_fetched(source, size, seconds)

    def on_undelivered(self, source: str, kind: FailureKind) -> None:
        """Count a source that did not deliver a clip, for the metrics; see `FetchObserver`."""
        self.metrics().on_undelivered(source, kind)

    def status_json(self) -> str:
        """Return the content of `.kinetics/status.json`."""
        return json.dumps(self.status().to_json(), indent=2, ensure_ascii=False) + "\n"
