"""`kinetics-fs mount`."""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import with_settings
from kinetics_fs.config import Settings, default_log_dir
from kinetics_fs.errors import ArchiveError, MountError
from kinetics_fs.util import logs

if TYPE_CHECKING:
    from kinetics_fs.catalog import Catalog, Selection
    from kinetics_fs.control.status import FrontendStatus
    from kinetics_fs.mount.systemd import Notifier
    from kinetics_fs.vfs import OnOpen

_log = logging.getLogger(__name__)


@click.command("mount", cls=Command)
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option(
    "--prefetch-class",
    "prefetched",
    metavar="LABEL",
    multiple=True,
    help="Begin to fetch this class as soon as it is mounted; repeatable.",
)
@with_settings("selection", "cache", "sources", "network", "archive", "names", "mount", "log")
def command(mountpoint: Path, foreground: bool, prefetched: tuple[str, ...], settings: Settings) -> None:
    """Show the clips of a release as files under MOUNTPOINT.

    Returns when the mount can be used; what follows goes on in the background until `kinetics-fs umount`.

    \b
    kinetics-fs mount /mnt/kinetics
    kinetics-fs mount --release 700-2020 --split train ~/kinetics
    kinetics-fs mount --annotations my.csv --class-names underscore ~/kinetics
    kinetics-fs mount --split train --hide-unavailable ~/kinetics
    kinetics-fs mount --prefetch-class "surfing water" --readahead 16 ~/kinetics
    """
    from kinetics_fs.app import check_source_settings
    from kinetics_fs.catalog import Selection, select
    from kinetics_fs.cli.library import catalog_of
    from kinetics_fs.mount import daemon
    from kinetics_fs.mount import mountpoint as places
    from kinetics_fs.mount.systemd import Notifier

    notifier = Notifier.from_environment() if foreground else Notifier()
    notifier.send(STATUS="reading the annotations")
    check_source_settings(settings)
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", settings.fsname):
        raise click.UsageError(f"--fsname {settings.fsname!r}: take letters, digits and . _ : -")
    if settings.frontend == "fusepy":
        from kinetics_fs.mount import fusepy  # noqa: F401  # whether its library is there, before anything is downloaded
    place = places.prepare_mountpoint(mountpoint, allow_other=settings.allow_other)
    # Closed again before the fork: a database must not be carried over one.
    with catalog_of(settings) as catalog:
        path, what = catalog.path, f"Kinetics-{catalog.release}, {catalog.clip_count:,} clips"
        if settings.only == "cached":
            path, what = _cached(settings, catalog)
        if prefetched:
            select(catalog, Selection(classes=prefetched), path.parent)  # whether there are such classes
    first = Selection(classes=prefetched) if prefetched else None
    if foreground:
        if notifier:  # a service: nobody hangs up on it
            logs.hold_hangups()
        _serve(settings, path, place, first, notifier, lambda: _log.info("%s, on %s", what, place))
    else:
        log = _usable(settings.log_file or _log_file(place)).absolute()

        def serve(ready: Callable[[], None]) -> None:
            logs.reopen_on_hangup(log)
            _serve(settings, path, place, first, notifier, ready)

        pid = daemon.run_in_background(serve, log)
        click.echo(f"{what}, on {place} (process {pid}, log {log})")


def _serve(
    settings: Settings,
    catalog_path: Path,
    place: Path,
    prefetched: Selection | None,
    notifier: Notifier,
    ready: Callable[[], None],
) -> None:
    from kinetics_fs.app import make_fetcher, open_store
    from kinetics_fs.catalog import Catalog, ClassNames
    from kinetics_fs.control import ControlServer
    from kinetics_fs.fetch.prefetch_manager import PrefetchManager
    from kinetics_fs.mount.collector import StatusCollector
    from kinetics_fs.mount.handlers import make_handlers
    from kinetics_fs.mount.systemd import Service
    from kinetics_fs.store import ActivityCounts, HistoryRecorder
    from kinetics_fs.store.coverage import measure_coverage
    from kinetics_fs.vfs import FetchBudget, Filesystem, FilesystemOptions, OpenObserver, Readahead

    logging.getLogger().setLevel(logging.INFO)
    # A descriptor for each open clip: shells allow 1,024, and more to who asks.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Who answers the kernel gets the interpreter back soon from a thread that computes.
    sys.setswitchinterval(0.0005)
    with ExitStack() as opened:
        if settings.only == "cached":
            opened.callback(catalog_path.unlink, missing_ok=True)  # made for this mount alone
        metrics = None
        if settings.metrics_port is not None:
            from kinetics_fs.mount.metrics import MetricsServer

            metrics = opened.enter_context(MetricsServer(settings.metrics_port))
        catalog = opened.enter_context(Catalog(catalog_path))
        store = opened.enter_context(open_store(settings))
        fetcher = opened.enter_context(closing(make_fetcher(settings, store, catalog_path)))
        unfinished = store.layout.prefetches(place)
        prefetcher = PrefetchManager(fetcher, store, catalog, unfinished, window=2 * settings.workers)
        listeners: list[OnOpen] = [prefetcher.notice]
        if settings.readahead and settings.only == "all":
            listeners.append(Readahead(catalog, store, fetcher, settings.readahead).on_open)
        readers = opened.enter_context(closing(OpenObserver(listeners)))
        budget = FetchBudget(
            cached_only=settings.only == "cached", max_fetches=settings.max_fetches, max_bytes=settings.max_fetch_bytes
        )
        collector = StatusCollector(
            place,
            metrics_url=None if metrics is None else metrics.url,
            catalog=catalog,
            store=store,
            fetcher=fetcher,
            prefetches=prefetcher,
            budget=budget,
        )
        tree = Filesystem(
            catalog,
            store,
            fetcher,
            FilesystemOptions(
                class_names=ClassNames(settings.class_names),
                hide_unavailable=settings.hide_unavailable,
                budget=budget,
                indexed_sizes=_indexed_sizes(settings),
                on_open=readers.on_open,
                status=collector.status_json,
                metrics=collector.metrics_text,
            ),
        )
        collector.attach(tree)

        def counts() -> ActivityCounts:
            opens = tree.opens()
            return ActivityCounts(fetcher.stats.fetched, fetcher.stats.failed, opens.from_cache, opens.not_in_cache)

        opened.enter_context(HistoryRecorder(store.history, counts))
        if metrics is not None:
            metrics.start(collector.metrics())

        def coverage() -> list[dict[str, Any]]:
            classes: list[dict[str, Any]] = measure_coverage(catalog, store).as_json()["classes"]
            return classes

        handlers = make_handlers(place, status=collector.status, store=store, prefetches=prefetcher, coverage=coverage)
        try:
            opened.enter_context(ControlServer(place, handlers))
        except MountError as error:
            _log.error("%s; the mount cannot be spoken to", error)
        opened.callback(prefetcher.close)  # before the socket: who waits for one is told
        service = opened.enter_context(Service(notifier, place, collector.status))

        def begin(frontend: Callable[[], FrontendStatus]) -> None:
            collector.set_frontend(frontend)
            threading.Thread(target=prefetcher.resume, args=(prefetched,), daemon=True).start()
            service.ready()
            ready()

        # To the log, for whoever wants to know what a mount is at, or was when it was ended for not answering.
        faulthandler.register(signal.SIGUSR1)
        faulthandler.enable()
        same: dict[str, Any] = {"allow_other": settings.allow_other, "source": settings.fsname, "ready": begin}
        if settings.frontend == "fusepy" or (settings.frontend == "auto" and sys.platform != "linux"):
            from kinetics_fs.mount import fusepy

            fusepy.serve(tree, place, **same)
        else:
            from kinetics_fs.mount import native as kernel

            kernel.serve(tree, place, passthrough=settings.cache_dir if settings.passthrough else None, **same)


def _cached(settings: Settings, catalog: Catalog) -> tuple[Path, str]:
    """The catalog of those clips that are in the cache, and what to call it."""
    from kinetics_fs.app import open_store
    from kinetics_fs.catalog import only

    with (
        open_store(settings) as store,
        only(catalog, (clip for clip, _ in store.cached_clips()), catalog.path.parent) as cached,
    ):
        return cached.path, f"Kinetics-{cached.release}, {cached.clip_count:,} clips that are here"


def _indexed_sizes(settings: Settings) -> Callable[[Sequence[str]], Mapping[str, int]] | None:
    """The sizes of clips that come out of an archive, if that is where they come from."""
    from kinetics_fs.app import index_db_path
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

    if settings.source[0] != "archive":
        return None
    try:
        return ArchiveIndexDB(
            index_db_path(settings)
        ).sizes  # made if need be: archives may become indexed while it is mounted
    except ArchiveError as error:
        _log.error("sizes are estimates: %s", error)
        return None


def _usable(log: Path) -> Path:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        raise MountError(f"cannot write the log {log} ({error.strerror}): give one with --log-file") from error
    return log


def _log_file(place: Path) -> Path:
    name = str(place).strip("/").replace("/", "-") or "root"
    return default_log_dir() / f"{name}.log"
