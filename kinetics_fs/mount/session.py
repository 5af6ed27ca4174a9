"""A mount from its settings to its end: check, compose, serve, and close everything in order."""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics_fs.app import (
    check_cookies,
    check_source_settings,
    exchange_shared_indexes,
    index_db_path,
    make_fetcher,
    open_selected_catalog,
    open_store,
)
from kinetics_fs.catalog import Catalog, CatalogProgress, ClassNames, Entry, Selection, select, select_clips
from kinetics_fs.config import Settings, default_log_dir
from kinetics_fs.control import ControlServer
from kinetics_fs.errors import ArchiveError, MountError, SettingError
from kinetics_fs.fetch.fetcher import Fetcher
from kinetics_fs.fetch.prefetch_manager import PrefetchManager
from kinetics_fs.mount.collector import OnReady, ReadFrontend, StatusCollector
from kinetics_fs.mount.daemon import run_in_background
from kinetics_fs.mount.handlers import make_handlers
from kinetics_fs.mount.mountpoint import is_below, prepare_mountpoint, real_path
from kinetics_fs.mount.systemd import Notifier, Service
from kinetics_fs.sources.settings import is_remote
from kinetics_fs.store import ActivityCounts, HistoryRecorder
from kinetics_fs.store.coverage import Coverage, measure_coverage
from kinetics_fs.util import logs
from kinetics_fs.util.text import count
from kinetics_fs.vfs import (
    FetchBudget,
    Filesystem,
    FilesystemOptions,
    OnOpen,
    OpenLimit,
    OpenObserver,
    OpenPhase,
    Readahead,
)

_log = logging.getLogger(__name__)

_OWN_FILES = 256
"""Descriptors that a mount keeps for itself: databases of each thread, sockets, logs."""
_FILES_OF_WORKER = 16
"""The same for each worker process."""

_SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that computes lets the thread that answers the kernel run."""


FindSizes = Callable[[Sequence[str]], Mapping[str, int]]
"""Returns the sizes in bytes that are known of clips, by `Clip.key`."""


@dataclass(frozen=True, slots=True)
class MountPlan:
    """A mount that has been checked and can be served.

    Attributes:
        settings: settings of the mount.
        mountpoint: absolute path of a prepared mount point.
        catalog_path: file of the catalog of the clips to show.
        title: the release and the number of clips, in words.
        prefetch: clips to prefetch once it is mounted; None for none.
    """

    settings: Settings
    mountpoint: Path
    catalog_path: Path
    title: str
    prefetch: Selection | None


def plan_mount(
    settings: Settings,
    mountpoint: Path,
    *,
    prefetch_classes: Sequence[str] = (),
    on_catalog: Callable[[Catalog], None] = lambda catalog: None,
    progress: CatalogProgress | None = None,
) -> MountPlan:
    """Check the settings, prepare the mount point, and compile the catalog.

    No database stays open: none may be carried over a fork.

    Args:
        settings: settings of the mount.
        mountpoint: where to mount.
        prefetch_classes: labels of classes to prefetch once it is mounted.
        on_catalog: called with the catalog of the selection while it is open.
        progress: receives the progress of downloading and compiling the annotations.

    Raises:
        SettingError: a setting is invalid.
        MountError: the mount point or FUSE cannot be used.
        CatalogError: the annotations cannot be downloaded or read, or the selection matches nothing.
        StoreError: the cache directory cannot be used.
        SharedStoreError: the address of the shared store has none, or one that this program cannot use.
    """
    check_source_settings(settings)
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", settings.fsname):
        raise SettingError(f"cannot use --fsname {settings.fsname!r}; use letters, digits and . _ : - only")
    if settings.frontend == "fusepy":
        from kinetics_fs.mount import fusepy  # noqa: F401  # fails without libfuse, before anything is downloaded
    _check_apart(real_path(mountpoint), settings)
    check_cookies(settings)
    mountpoint = prepare_mountpoint(mountpoint, allow_other=settings.allow_other)
    if settings.cache_size is not None:
        # Given to the cache once, and in the foreground: a refusal or a warning belongs on the terminal of the user.
        open_store(settings).close()
        settings = settings.with_values(cache_size=None)
    exchange_shared_indexes(settings, apart=True)
    prefetch = Selection(classes=tuple(prefetch_classes)) if prefetch_classes else None
    with open_selected_catalog(settings, progress) as catalog:
        on_catalog(catalog)
        path, title = catalog.path, f"Kinetics-{catalog.release}, {count(catalog.clip_count, 'clip')}"
        if settings.only == "cached":
            path, title = _select_cached(settings, catalog)
        if prefetch is not None:
            select(catalog, prefetch, path.parent)  # fails if there are no such classes
    return MountPlan(settings, mountpoint, path, title, prefetch)


def _check_apart(mountpoint: Path, settings: Settings) -> None:
    """Refuse a mount that would hide the files it needs: it would wait for itself.

    Raises:
        MountError: the cache directory, the archives, the cookies or the log file are below the mount point; or the
            mount point is in the cache directory.
    """
    needed = {
        "cache-dir": settings.cache_dir,
        "archive-url": None if is_remote(settings.archive_url) else Path(settings.archive_url),
        "shared": None if settings.shared is None or "://" in settings.shared else Path(settings.shared),
        "cookies": settings.cookies,
        "log-file": settings.log_file,
    }
    for flag, path in needed.items():
        if path is not None and is_below(path, mountpoint):
            raise MountError(
                f"cannot mount on {mountpoint}: the mount would hide {path}, which it needs;"
                f" choose another mount point, or another --{flag}"
            )
    if is_below(mountpoint, settings.cache_dir):
        raise MountError(
            f"cannot mount on {mountpoint}: it is in the cache directory {settings.cache_dir};"
            " choose another mount point, or another --cache-dir"
        )


def _select_cached(settings: Settings, catalog: Catalog) -> tuple[Path, str]:
    """Write a catalog of the cached clips, for this mount only; return its path and its title."""
    with (
        open_store(settings) as store,
        select_clips(
            catalog,
            (clip for clip, _ in store.cached_clips()),
            catalog.path.parent,
            if_none="none of them is in the cache (--only cached)",
        ) as cached,
    ):
        return cached.path, f"Kinetics-{cached.release}, {count(cached.clip_count, 'cached clip')}"


def start(plan: MountPlan) -> tuple[int, Path]:
    """Serve a mount in a process in the background; return when the mount can be used.

    Returns:
        The process id of the mount, and the path of its log.

    Raises:
        MountError: mounting failed, or the log cannot be written.
    """
    log = _prepare_log(plan)

    def serve(ready: Callable[[], None]) -> None:
        logs.reopen_on_hangup(log)
        run(plan, Notifier(), ready)

    return run_in_background(serve, log), log


def _prepare_log(plan: MountPlan) -> Path:
    name = str(plan.mountpoint).strip("/").replace("/", "-") or "root"
    log = (plan.settings.log_file or default_log_dir() / f"{name}.log").absolute()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        raise MountError(f"cannot write the log {log}: {error.strerror}; give another path with --log-file") from error
    return log


def run(plan: MountPlan, notifier: Notifier, ready: Callable[[], None]) -> None:
    """Serve a mount in this process until it is unmounted, or SIGTERM, SIGINT or SIGHUP arrives.

    Call it in the main thread: it handles the signals.

    Args:
        plan: what to mount.
        notifier: the service manager, if there is one.
        ready: called once, when the mount can be used.

    Raises:
        MountError: mounting failed.
        StoreError: the cache directory cannot be used.
    """
    settings, mountpoint = plan.settings, plan.mountpoint
    if notifier:
        logs.hold_hangups()  # the log belongs to the service manager
    capacity = _prepare_process(settings.workers)
    # Closed in reverse order: first the prefetches and whatever can start a fetch, then the fetcher, the store last.
    with ExitStack() as parts:
        if settings.only == "cached":
            parts.callback(_remove, plan.catalog_path)
        metrics_server = None
        if settings.metrics_port is not None:
            from kinetics_fs.mount.metrics import MetricsServer

            metrics_server = parts.enter_context(MetricsServer(settings.metrics_port))
        catalog = parts.enter_context(Catalog(plan.catalog_path))
        store = parts.enter_context(open_store(settings))
        store.faults.start_log()
        fetcher = parts.enter_context(closing(make_fetcher(settings, store, plan.catalog_path)))

        prefetches = PrefetchManager(
            fetcher, store, catalog, store.layout.prefetches(mountpoint), window=2 * settings.workers
        )

        def advance_cursors(entry: Entry, phase: OpenPhase) -> None:
            if phase is OpenPhase.OPEN:
                prefetches.advance_cursors(entry.clip)

        listeners: list[OnOpen] = [advance_cursors]
        if settings.readahead and settings.only == "all":
            listeners.append(Readahead(catalog, store, fetcher, settings.readahead).on_open)
        observer = parts.enter_context(closing(OpenObserver(listeners)))
        budget = FetchBudget(
            cached_only=settings.only == "cached", max_fetches=settings.max_fetches, max_bytes=settings.max_fetch_bytes
        )
        collector = StatusCollector(
            mountpoint,
            metrics_url=None if metrics_server is None else metrics_server.url,
            catalog=catalog,
            store=store,
            fetcher=fetcher,
            prefetches=prefetches,
            budget=budget,
        )
        filesystem = Filesystem(
            catalog,
            store,
            fetcher,
            FilesystemOptions(
                class_names=ClassNames(settings.class_names),
                hide_unavailable=settings.hide_unavailable,
                elsewhere=_clips_elsewhere(settings, fetcher),
                budget=budget,
                known_sizes=_known_sizes(settings, fetcher),
                on_open=observer.on_open,
                status=collector.status_json,
                metrics=collector.metrics_text,
                open_limit=OpenLimit(capacity, is_shared=settings.allow_other),
            ),
        )
        collector.attach(filesystem)

        def activity() -> ActivityCounts:
            opens = filesystem.opens()
            return ActivityCounts(fetcher.stats.fetched, fetcher.stats.failed, opens.from_cache, opens.not_in_cache)

        parts.enter_context(HistoryRecorder(store.history, activity))
        if metrics_server is not None:
            metrics_server.start(collector.metrics())

        def coverage() -> Coverage:
            return measure_coverage(catalog, store)

        handlers = make_handlers(
            mountpoint,
            status=collector.status,
            store=store,
            prefetches=prefetches,
            coverage=coverage,
            fetcher=fetcher,
        )
        try:
            parts.enter_context(ControlServer(mountpoint, handlers))
        except MountError as error:
            _log.error("%s; commands cannot reach this mount", error)
        parts.callback(prefetches.close)  # before the control socket, so that its clients learn that they ended
        service = parts.enter_context(Service(notifier, mountpoint, collector.status))

        def begin(frontend: ReadFrontend) -> None:
            collector.set_frontend(frontend)
            threading.Thread(target=prefetches.resume, args=(plan.prefetch,), daemon=True).start()
            service.ready()
            ready()

        _serve(filesystem, plan, begin)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the disk may have become read-only
        path.unlink()


def _prepare_process(workers: int) -> int | None:
    """Set limits and handlers of the process for serving a mount.

    Args:
        workers: number of worker processes.

    Returns:
        The maximum number of open files that leaves enough descriptors to the mount itself; None for no limit.
    """
    logging.getLogger().setLevel(logging.INFO)
    # A descriptor per open clip: shells allow 1,024, and more on request.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # Tracebacks of all threads go to the log: on SIGUSR1, and when the service manager aborts a mount that hangs.
    faulthandler.register(signal.SIGUSR1)
    faulthandler.enable()
    if hard_limit == resource.RLIM_INFINITY:
        return None
    return hard_limit - min(hard_limit // 2, _OWN_FILES + _FILES_OF_WORKER * workers)


def _serve(filesystem: Filesystem, plan: MountPlan, on_ready: OnReady) -> None:
    """Run the front end that the settings choose, until it is unmounted."""
    settings = plan.settings
    shared: dict[str, Any] = {"allow_other": settings.allow_other, "source": settings.fsname, "on_ready": on_ready}
    if settings.frontend == "fusepy" or (settings.frontend == "auto" and sys.platform != "linux"):
        from kinetics_fs.mount import fusepy

        fusepy.serve(filesystem, plan.mountpoint, **shared)
    else:
        from kinetics_fs.mount import native

        passthrough = settings.cache_dir if settings.passthrough else None
        native.serve(filesystem, plan.mountpoint, passthrough=passthrough, **shared)


def _clips_elsewhere(settings: Settings, fetcher: Fetcher) -> Callable[[Collection[str]], Collection[str]]:
    """Return the function that finds clips in the folders and the indexes of archives."""
    if not settings.hide_unavailable:
        return lambda keys: ()
    from kinetics_fs.sources.local import LocalClips

    return LocalClips(fetcher.sources).among


def _known_sizes(settings: Settings, fetcher: Fetcher) -> FindSizes | None:
    """Return the function that looks sizes up in the shared store and in the archive indexes; None if neither can."""
    shared, indexed = fetcher.list_shared_sizes(), _indexed_sizes(settings)
    if shared is None or indexed is None:
        return shared or indexed

    def find(keys: Sequence[str]) -> Mapping[str, int]:
        found = shared(keys)
        others = [key for key in keys if key not in found]
        return {**found, **indexed(others)} if others else found

    return find


def _indexed_sizes(settings: Settings) -> FindSizes | None:
    """Return the function that looks sizes up in the archive indexes; None if clips come from another source first."""
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

    if settings.source[0] != "archive":
        return None
    try:
        # Created if it is missing: archives may be indexed while this is mounted.
        return ArchiveIndexDB(index_db_path(settings)).sizes
    except ArchiveError as error:
        _log.error("cannot open the archive indexes: %s; sizes are estimates", error)
        return None
