"""Opens catalog, store and fetcher as the settings say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from kinetics_fs.catalog import Catalog, Selection, find_release, open_catalog
from kinetics_fs.errors import ArchiveError
from kinetics_fs.fetch.settings import FetchSettings
from kinetics_fs.settings import Settings
from kinetics_fs.sources.settings import ARCHIVE_INDEXES, YOUTUBE_URL, SourceSettings
from kinetics_fs.store import Store, prepare_folder

if TYPE_CHECKING:
    from kinetics_fs.fetch import Fetcher
    from kinetics_fs.sources.archive.shelf import Shelf


_PROXIES = {"http", "https", "socks4", "socks4a", "socks5", "socks5h"}

_GUESTS_RATE = 300
"""Videos an hour that YouTube lets somebody without an account have, by yt-dlp's wiki."""


def catalog_of(settings: Settings) -> Catalog:
    """The catalog of the selection; compiled, or downloaded first, where that was not done before.

    Raises:
        CatalogError: annotations cannot be had or read, or the selection names what is not there.
    """
    prepare_folder(settings.cache_dir)
    selection = Selection(
        splits=settings.split,
        classes=settings.klass,
        max_samples=settings.max_samples,
        shuffle=settings.shuffle,
        seed=settings.seed,
    )
    catalog = open_catalog(
        find_release(settings.release), settings.annotations, selection, settings.cache_dir / "catalog"
    )
    refusals = catalog.refusals()
    if refusals.total:
        click.echo(f"kinetics-fs: {refusals.total} rows of the annotations were refused:", err=True)
        for refusal in refusals.first[:3]:
            click.echo(f"  {refusal.file}, line {refusal.line}: {refusal.reason}", err=True)
        if refusals.total > 3:
            click.echo("  … (all: .kinetics/refused.csv in the mount)", err=True)
    return catalog


def store_of(settings: Settings) -> Store:
    """The store in the cache folder.

    Raises:
        StoreError: it cannot be used.
    """
    return Store(settings.cache_dir, limit=settings.cache_size, min_free=settings.min_free)


def fetcher_of(settings: Settings, store: Store, catalog: Path | None) -> Fetcher:
    """A fetcher into the store; close it before the store.

    Args:
        settings: of the fetcher and the sources.
        store: where clips go.
        catalog: file of the catalog in which the clips are; None if it is not known.

    Raises:
        click.UsageError: an address or a folder is none, or no source is left to be asked.
    """
    from kinetics_fs.fetch import Fetcher

    check_places(settings)
    rate = settings.rate
    if rate is None and settings.video_url == YOUTUBE_URL:
        rate = _GUESTS_RATE
    shelf = shelf_path(settings)
    there = {
        "archive": shelf.exists() or (catalog is not None and settings.archive_stream_limit > 0),
        "folder": bool(settings.folder),
        "youtube": True,
        "whole-archive": catalog is not None,
    }
    order = tuple(source for source in settings.source if there[source])
    if not order:
        wants = {
            "archive": "no index of an archive is here; see kinetics-fs index --help",
            "folder": "no folder is given; name one with --folder",
            "whole-archive": "which class a clip is of is known only where a selection is given",
        }
        raise click.UsageError("; ".join(f"--source {source}: {wants[source]}" for source in settings.source))
    return Fetcher(
        store,
        FetchSettings(
            workers=settings.workers,
            timeout=settings.timeout,
            rate=rate or None,
            sources=SourceSettings(
                order=order,
                video_url=settings.video_url,
                max_height=settings.max_height,
                limit_rate=settings.limit_rate / settings.workers if settings.limit_rate else None,
                cookies=str(settings.cookies.absolute()) if settings.cookies else "",
                proxy=settings.proxy or "",
                source_address=settings.source_address or "",
                exact=settings.trim == "exact",
                ytdlp=dict(settings.ytdlp),
                ytdlp_cache=str(settings.cache_dir / "yt-dlp"),
                archive_url=settings.archive_url,
                archive_index=str(shelf),
                archive_stream_limit=settings.archive_stream_limit,
                folders=tuple(map(str, settings.folder)),
                catalog=str(catalog or ""),
            ),
        ),
    )


def shelf_path(settings: Settings) -> Path:
    """The file of the indexes of archives that are here; it need not be there."""
    return settings.cache_dir / ARCHIVE_INDEXES


def shelf_of(settings: Settings) -> Shelf:
    """The indexes of archives that are here.

    Raises:
        ArchiveError: there are none, or they cannot be used.
    """
    from kinetics_fs.sources.archive.shelf import Shelf

    path = shelf_path(settings)
    if not path.exists():
        raise ArchiveError(f"{settings.cache_dir} has no index of an archive: see kinetics-fs index --help")
    return Shelf(path)


def check_places(settings: Settings) -> None:
    """Refuses an address template without a place for the id, a proxy that is none (without showing it), and a folder
    that is not there.

    Raises:
        click.UsageError: in these cases.
    """
    proxy = urlsplit(settings.proxy or "http://127.0.0.1:1")
    try:
        usable = proxy.port != 0 and bool(proxy.hostname) and proxy.scheme in _PROXIES
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(
            "--proxy is not an address like socks5://127.0.0.1:1080; escape what is odd in a password"
        )
    if "{id}" not in settings.video_url:
        raise click.UsageError(f"--video-url {settings.video_url!r} has no {{id}} in it")
    for folder in settings.folder:
        if not folder.is_dir():
            raise click.UsageError(f"--folder {str(folder)!r} is not a folder")
