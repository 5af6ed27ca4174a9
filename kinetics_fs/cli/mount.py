"""`kinetics-fs mount`."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from kinetics_fs import __version__
from kinetics_fs.cli.options import with_settings
from kinetics_fs.errors import MountError
from kinetics_fs.settings import Settings


@click.command("mount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@with_settings("selection", "store", "fetch", "archive", "names", "view")
def command(mountpoint: Path, foreground: bool, settings: Settings) -> None:
    """Show the clips of a release as files under MOUNTPOINT.

    Returns when the mount can be used; what follows goes on in the background until `kinetics-fs umount`.

    \b
    kinetics-fs mount /mnt/kinetics
    kinetics-fs mount --release 700-2020 --split train ~/kinetics
    kinetics-fs mount --annotations my.csv --class-names underscore ~/kinetics
    kinetics-fs mount --split train --hide-unavailable ~/kinetics
    """
    from kinetics_fs.cli.rooms import catalog_of, check_places
    from kinetics_fs.mount import daemon
    from kinetics_fs.mount import mountpoint as places

    check_places(settings)
    if settings.frontend == "fusepy":
        from kinetics_fs.mount import fusepy  # noqa: F401  # whether its library is there, before anything is downloaded
    place = places.prepare_mountpoint(mountpoint, allow_other=settings.allow_other)
    # Closed again before the fork: a database must not be carried over one.
    with catalog_of(settings) as catalog:
        path, what = catalog.path, f"Kinetics-{catalog.release}, {catalog.clip_count:,} clips"

    def serve(ready: Callable[[], None]) -> None:
        _serve(settings, path, place, ready)

    if foreground:
        logging.getLogger().setLevel(logging.INFO)
        serve(lambda: click.echo(f"{what}, on {place}", err=True))
    else:
        log = _usable(settings.log_file or _log_file(place))
        pid = daemon.run_in_background(serve, log.absolute())
        click.echo(f"{what}, on {place} (process {pid}, log {log})")


def _serve(settings: Settings, catalog_path: Path, place: Path, ready: Callable[[], None]) -> None:
    from kinetics_fs.catalog import Catalog, ClassNames
    from kinetics_fs.cli.rooms import fetcher_of, store_of
    from kinetics_fs.vfs import Tree

    logging.getLogger().setLevel(logging.INFO)
    # A descriptor for each open clip: shells allow 1,024, and more to who asks.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Who answers the kernel gets the interpreter back soon from a thread that computes.
    sys.setswitchinterval(0.0005)
    with Catalog(catalog_path) as catalog, store_of(settings) as store:
        fetcher = fetcher_of(settings, store, catalog_path)
        try:
            tree = Tree(
                catalog,
                store,
                fetcher,
                class_names=ClassNames(settings.class_names),
                hide_unavailable=settings.hide_unavailable,
                sizes=_indexed_sizes(settings),
                about={"version": __version__, "mountpoint": str(place)},
            )
            # To the log, for whoever wants to know what a mount is at.
            faulthandler.register(signal.SIGUSR1)
            if settings.frontend == "fusepy" or (settings.frontend == "auto" and sys.platform != "linux"):
                from kinetics_fs.mount import fusepy

                fusepy.serve(tree, place, allow_other=settings.allow_other, ready=ready)
            else:
                from kinetics_fs.mount import kernel

                cache = settings.cache_dir if settings.passthrough else None
                kernel.serve(tree, place, allow_other=settings.allow_other, passthrough=cache, ready=ready)
        finally:
            fetcher.close()


def _indexed_sizes(settings: Settings) -> Callable[[Sequence[str]], Mapping[str, int]] | None:
    """The sizes of clips that come out of an archive, if that is where they come from."""
    from kinetics_fs.cli.rooms import shelf_of, shelf_path

    if settings.source[0] != "archive" or not shelf_path(settings).exists():
        return None
    return shelf_of(settings).sizes


def _usable(log: Path) -> Path:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        raise MountError(f"cannot write the log {log} ({error.strerror}): give one with --log-file") from error
    return log


def _log_file(place: Path) -> Path:
    import platformdirs

    name = str(place).strip("/").replace("/", "-") or "root"
    return platformdirs.user_log_path("kinetics-fs") / f"{name}.log"
