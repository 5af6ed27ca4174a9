"""The composition root: settings in, the parts of kinetics-fs out.

`Library`, the commands and a mount open the same catalog, store, fetcher and archive indexes from the same `Settings`.
This module is the only one that maps settings to the arguments of those parts.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kinetics_fs.catalog import ArchiveClips, Catalog, CatalogProgress, Selection, find_release, open_catalog
from kinetics_fs.config import Settings
from kinetics_fs.errors import ArchiveError, SettingError
from kinetics_fs.fetch.fetcher import FetchSettings
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.sources.cookies import read_cookies
from kinetics_fs.sources.settings import YOUTUBE_URL, SourceSettings, is_remote, is_youtube
from kinetics_fs.store import CacheLayout, LimitRefused, Store, prepare_folder

if TYPE_CHECKING:
    from kinetics_fs.fetch.fetcher import Fetcher
    from kinetics_fs.shared import Connection, SharedStore
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

_log = logging.getLogger(__name__)

_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")

_YOUTUBE_GUEST_RATE = 300
"""Videos per hour that YouTube serves to a client without an account, according to the wiki of yt-dlp."""


def open_selected_catalog(settings: Settings, progress: CatalogProgress | None = None) -> Catalog:
    """Open the catalog of the selection; download and compile the annotations first if that was not done before.

    Args:
        settings: settings of the catalog.
        progress: receives the progress.

    Raises:
        CatalogError: the annotations cannot be downloaded or read, or the selection matches nothing.
        StoreError: with `--available`, the cache directory cannot be used.
    """
    return _open_catalog(settings, selection_of(settings), progress)


def open_whole_catalog(settings: Settings) -> Catalog:
    """Open the catalog of the whole release, whatever is selected.

    Raises:
        CatalogError: the annotations cannot be downloaded or read.
    """
    return _open_catalog(settings, Selection())


def _open_catalog(settings: Settings, selection: Selection, progress: CatalogProgress | None = None) -> Catalog:
    prepare_folder(settings.cache_dir)
    layout = CacheLayout(settings.cache_dir)
    release = find_release(settings.release)
    return open_catalog(
        release,
        settings.annotations,
        selection,
        layout.catalogs,
        downloads=layout.annotations,
        archives=_indexed_clips(settings, release.name),
        unavailable=_unavailable_clips(settings) if selection.available else (),
        progress=progress,
    )


def _unavailable_clips(settings: Settings) -> Collection[str]:
    """Return `Clip.key` of the clips that are known to be unavailable."""
    with Store(settings.cache_dir, min_free=settings.min_free) as store:
        return store.failures.unavailable(include_due=True)


def has_archive_clips(settings: Settings) -> bool:
    """Return whether the catalog includes the clips of archives that no annotation names.

    A release's own lists leave out clips that exist. A list of the user's own says what its owner wants.

    Raises:
        SettingError: the settings contradict each other.
    """
    if settings.archive_clips and settings.annotations_only:
        raise SettingError("cannot use --archive-clips with --annotations-only: they contradict; give one of them")
    return settings.archive_clips or not (settings.annotations or settings.annotations_only)


def _indexed_clips(settings: Settings, release: str) -> ArchiveClips | None:
    """Return the clips of the indexed archives, if the catalog includes them and there are any.

    Raises:
        ArchiveError: the archive index database is damaged.
    """
    path = index_db_path(settings)
    if not has_archive_clips(settings) or not path.exists():
        return None
    from kinetics_fs.sources.archive.indexed_clips import IndexedClips

    clips = IndexedClips(path, release)
    return clips if clips.stamp else None


def selection_of(settings: Settings) -> Selection:
    """Return the selection from the release that the settings describe."""
    return Selection(
        splits=settings.split,
        classes=settings.klass,
        max_samples=settings.max_samples,
        shuffle=settings.shuffle,
        seed=settings.seed,
        available=settings.available,
    )


def open_store(settings: Settings) -> Store:
    """Open the store in the cache directory. The cache takes the limit of the settings, if they have one.

    Raises:
        StoreError: the cache directory cannot be used, or clips would have to be evicted for the limit.
    """
    return Store(
        settings.cache_dir,
        profile=cut_profile(settings),
        limit=settings.cache_size,
        shrink=settings.shrink,
        min_free=settings.min_free,
    )


def open_store_to_read(settings: Settings) -> tuple[Store, LimitRefused | None]:
    """Open the store for a command that stores no clips. It works also if its limit would evict clips.

    Returns:
        The store, and why the limit of the settings was not given to the cache, with a warning; None if it was.

    Raises:
        StoreError: the cache directory cannot be used.
    """
    try:
        return open_store(settings), None
    except LimitRefused as refusal:
        _log.warning("%s", refusal)
        return open_store(settings.with_values(cache_size=None)), refusal


def open_shared_store(settings: Settings) -> SharedStore | None:
    """Return the shared store of the settings; None if they name none. Sends no request.

    Raises:
        SettingError: the address is invalid, or its library is not installed.
    """
    if settings.shared is None:
        return None
    from kinetics_fs.shared import SharedStore, open_backend

    return SharedStore(open_backend(settings.shared))


def exchange_shared_indexes(settings: Settings, *, apart: bool = False) -> None:
    """Import the indexes that the shared store has of archives, and share those of archives that this machine has read.

    Then the catalog has the clips that only archives list. Nothing happens without a shared store.

    Args:
        settings: settings of the shared store, the cache and the sources.
        apart: do it in a process of its own, because this one is going to fork.

    Raises:
        SettingError: the address is invalid, or its library is not installed.
        SharedStoreError: the address has no store, or one that this program cannot use.
        StoreError: the cache directory cannot be used.
    """
    if open_shared_store(settings) is None or settings.shared is None or "archive" not in settings.source:
        return
    from kinetics_fs.fill.index_exchange import IndexExchange

    prepare_folder(settings.cache_dir)
    write = settings.shared_write == "all"
    exchange = IndexExchange(settings.shared, str(settings.cache_dir), settings.min_free, write)
    if apart:
        exchange.run_apart()
    else:
        exchange.run()


def cut_profile(settings: Settings) -> CutProfile:
    """Return the profile of clips that are cut with these settings."""
    return CutProfile.of(settings.max_height, exact=settings.trim == "exact", ytdlp=dict(settings.ytdlp))


def make_fetcher(settings: Settings, store: Store, catalog: Path | None) -> Fetcher:
    """Start a fetcher that fetches into a store. Close the fetcher before the store.

    Args:
        settings: settings of the fetcher and of the sources.
        store: the store to fetch into.
        catalog: file of the catalog that has the clips; None if it is unknown.

    Raises:
        SettingError: an address, a folder or the cookie file is invalid, or none of the sources in `--source` can be
            used.
        SharedStoreError: the address of the shared store has none, or one that this program cannot use.
    """
    from kinetics_fs.fetch.fetcher import Fetcher

    check_source_settings(settings)
    check_cookies(settings)
    layout = CacheLayout(settings.cache_dir)
    return Fetcher(
        store,
        FetchSettings(
            workers=settings.workers,
            timeout=settings.timeout,
            max_fetches_per_hour=fetches_per_hour(settings),
            replace_short=settings.short_clips == "youtube",
            sources=SourceSettings(
                order=_usable_sources(settings, catalog),
                video_url=settings.video_url,
                max_height=settings.max_height,
                max_bandwidth=settings.max_bandwidth / settings.workers if settings.max_bandwidth else None,
                cookies=str(settings.cookies.absolute()) if settings.cookies else "",
                proxy=settings.proxy or "",
                source_address=settings.source_address or "",
                exact=settings.trim == "exact",
                ytdlp=dict(settings.ytdlp),
                ytdlp_cache=str(layout.ytdlp_cache),
                archive_url=settings.archive_url,
                archive_index=str(layout.archive_indexes),
                archive_lock=str(layout.archive_reading_lock),
                max_archive_download=settings.max_archive_download,
                folders=tuple(map(str, settings.folder)),
                catalog=str(catalog or ""),
            ),
        ),
        _connect(settings, store),
    )


def _connect(settings: Settings, store: Store) -> Connection | None:
    """Return the connection to the shared store of the settings; None if they name none."""
    shared = open_shared_store(settings)
    if shared is None:
        return None
    from kinetics_fs.shared import Connection

    limits: dict[str, int | None] = {"youtube": fetches_per_hour(settings)}
    if is_remote(settings.archive_url):
        limits["archive"] = None
    return Connection(shared, store, write=settings.shared_write, group=settings.rate_group, limits=limits)


def fetches_per_hour(settings: Settings) -> int | None:
    """Return the maximum number of clips to request from YouTube per hour; None if there is no limit."""
    limit = settings.max_fetches_per_hour
    if limit is None and settings.video_url == YOUTUBE_URL:
        return _YOUTUBE_GUEST_RATE
    return limit or None


def _usable_sources(settings: Settings, catalog: Path | None) -> tuple[str, ...]:
    """Return the sources of `--source` that can have clips, in that order.

    Raises:
        SettingError: there are none.
    """
    usable = {
        "archive": index_db_path(settings).exists() or catalog is not None,
        "folder": bool(settings.folder),
        "youtube": True,
    }
    order = tuple(source for source in settings.source if usable[source])
    if not order:
        remedies = {
            "archive": "build an index of an archive with kinetics-fs index build, or give a selection",
            "folder": "name a folder with --folder",
        }
        raise SettingError(
            f"cannot fetch clips: --source {','.join(settings.source)} has no source that can be used;"
            f" {', or '.join(remedies[source] for source in settings.source)}"
        )
    return order


def index_db_path(settings: Settings) -> Path:
    """Return the path of the archive index database of the cache; the file need not exist."""
    return CacheLayout(settings.cache_dir).archive_indexes


def open_index_db(settings: Settings) -> ArchiveIndexDB:
    """Open the archive index database of the cache.

    Raises:
        ArchiveError: the cache has none, or it cannot be used.
    """
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

    path = index_db_path(settings)
    if not path.exists():
        raise ArchiveError(
            f"cannot open the indexes of archives: {settings.cache_dir} has none; see kinetics-fs index build --help"
        )
    return ArchiveIndexDB(path)


def check_source_settings(settings: Settings) -> None:
    """Check the address template, the proxy, the source address and the folders.

    Raises:
        SettingError: the template has no `{id}`, the proxy is not an address, this machine does not have the source
            address, or a folder does not exist.
    """
    table = settings.ytdlp
    for setting, proxy in (("--proxy", settings.proxy), ("proxy in [youtube.ytdlp]", table.get("proxy"))):
        if proxy:
            _check_proxy(str(proxy), setting)
    own, other = settings.source_address, table.get("source_address")
    for setting, address in (("--source-address", own), ("source_address in [youtube.ytdlp]", other)):
        if address:
            _check_source_address(str(address), setting)
    if "{id}" not in settings.video_url:
        raise SettingError(
            f"cannot use --video-url {settings.video_url!r}: it has no {{id}}; write {{id}} where the id belongs"
        )
    for folder in settings.folder:
        if not folder.is_dir():
            raise SettingError(f"cannot use --folder {str(folder)!r}: there is no such folder; give one that exists")


def _check_proxy(address: str, setting: str) -> None:
    """Check the address of a proxy. No message shows it: it may have a password.

    Raises:
        SettingError: it is not an address, or its scheme is unknown.
    """
    schemes = ", ".join(_PROXY_SCHEMES)
    scheme, separator, _ = address.partition("://")
    if not separator:
        raise SettingError(f"cannot use {setting}: it has no scheme; begin it with one of {schemes} and ://")
    if scheme.lower() not in _PROXY_SCHEMES:
        raise SettingError(f"cannot use {setting}: its scheme is {scheme[:20]!r}; use one of {schemes}")
    try:
        proxy = urlsplit(address)
        usable = proxy.port != 0 and bool(proxy.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise SettingError(
            f"cannot use {setting}: it is not a URL such as socks5://127.0.0.1:1080; percent-encode the special"
            " characters of a password"
        )


def _check_source_address(address: str, setting: str) -> None:
    """Check that connections can come from an address.

    Raises:
        SettingError: it is not an IP address, or not one of this machine.
    """
    try:
        [(family, kind, _, _, name), *_] = socket.getaddrinfo(
            address, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        with socket.socket(family, kind) as connection:
            connection.bind(name)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError):
            cause = "it is not an IP address"
        elif error.errno == errno.EADDRNOTAVAIL:
            cause = "this machine does not have that address"
        else:
            cause = str(error.strerror)
        raise SettingError(
            f"cannot use {setting} {address!r}: {cause}; `ip address` lists the addresses of this machine"
        ) from error


def check_cookies(settings: Settings) -> None:
    """Check the cookie file if YouTube is one of the sources; log what is likely to be wrong with it.

    Raises:
        SettingError: the file cannot be read, or is no Netscape cookie file.
    """
    if settings.cookies is None or "youtube" not in settings.source:
        return
    cookies = read_cookies(settings.cookies)
    for warning in cookies.warnings(settings.cookies, on_youtube=is_youtube(settings.video_url)):
        _warn_once(warning)


@cache
def _warn_once(text: str) -> None:
    """Log a warning: a command may check its settings several times."""
    _log.warning("%s", text)
