"""Kinetics from Python, and the way from settings to all that works on them: the command line is built on this.

::

    from kinetics_fs import Library

    with Library(release="600", split="validation", classes=["surfing water"], max_samples=10) as library:
        library.prefetch()
        for path in library.paths():                # validation/surfing water/-a1B2c3D4e5_000010_000020.mp4
            with library.open(path) as file:        # fetched if it is not here
                ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import urlsplit

from kinetics_fs.catalog import (
    Catalog,
    ClassNames,
    Clip,
    Selection,
    class_name,
    find_release,
    open_catalog,
    parse_clip_name,
)
from kinetics_fs.config import Settings
from kinetics_fs.errors import ArchiveError, CatalogError, SettingError
from kinetics_fs.fetch.settings import FetchSettings
from kinetics_fs.sources.settings import ARCHIVE_INDEXES, YOUTUBE_URL, SourceSettings
from kinetics_fs.store import Counts, HistoryRecorder, Store, prepare_folder

if TYPE_CHECKING:
    from kinetics_fs.fetch import Fetcher
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

_PROXIES = {"http", "https", "socks4", "socks4a", "socks5", "socks5h"}

_GUESTS_RATE = 300
"""Videos an hour that YouTube lets somebody without an account have, by yt-dlp's wiki."""


class Library:
    """A selection of Kinetics, the clips of it that are here, and the way to the others.

    Opened when it is made; use it as a context, or `close` it. Safe for threads, but not across a fork: make one in
    each process. Any number of libraries and mounts may share a cache folder.

    Args:
        settings: all of them, as the command line has them; None for the defaults.
        values: single settings over these, by the names of their flags with `_` for `-`; `classes` is `--class`. A list
            may be given as a list, a tuple or, if it has one item, as that. Neither the environment nor the
            configuration file is asked.

    Attributes:
        settings: what it goes by.
        catalog: what is selected.
        store: what is here.

    Raises:
        TypeError: there is no setting of that name.
        SettingError: a setting has a value that makes no sense.
        CatalogError: annotations cannot be had or read, or the selection names what is not there.
        StoreError: the cache folder cannot be used.
    """

    def __init__(self, settings: Settings | None = None, **values: Any) -> None:
        self.settings = (settings or Settings()).with_values(**values)
        self._fetcher: Fetcher | None = None
        with ExitStack() as opened:
            self.catalog = opened.enter_context(selected_catalog(self.settings))
            self.store = opened.enter_context(store_of(self.settings))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way, and gives the cache folder up."""
        if self._fetcher is not None:
            self._fetcher.close()
        self._opened.close()

    def clips(self) -> Iterator[Clip]:
        """The clips of the selection, in the order of splits, classes and names."""
        return (entry.clip for entry in self.catalog.clips())

    def paths(self) -> Iterator[str]:
        """The same as paths, as a mount shows them: `split/class/clip.mp4`."""
        style = ClassNames(self.settings.class_names)
        for entry in self.catalog.clips():
            place = self.catalog.directory(entry.directory)
            assert place is not None
            yield f"{place.split}/{class_name(place.label or '', style)}/{entry.clip.name}"

    def held(self, clip: Clip | str) -> bool:
        """Whether a clip is here: one of `clips`, or of `paths`, or any path that ends with its name."""
        return self.store.holds(_clip(clip))

    def open(self, clip: Clip | str) -> BinaryIO:
        """Opens a clip, and fetches it first if it is not here. What is open stays readable, evicted or not.

        Args:
            clip: as for `held`.

        Raises:
            FetchError: it cannot be had; says why.
            CatalogError: it is not in the selection.
        """
        clip = _clip(clip)
        if not self.catalog.locate(clip):
            raise CatalogError(f"{clip.key} is not in the selection")
        while (stored := self.store.open(clip)) is None:
            self._fetching().request(clip).result()
        return os.fdopen(stored.fd, "rb")

    def prefetch(self, changed: Callable[[Mapping[str, Any]], None] = lambda report: None) -> dict[str, Any]:
        """Fetches all clips of the selection that are not here.

        Args:
            changed: told how it is going, often, and from any thread.

        Returns:
            How it went: `state`, `reason`, and the numbers of `clips`, those `fetched`, `already_here` and `failed`,
            and `failures` by kind.
        """
        from kinetics_fs.fetch.prefetch import Prefetch

        fetcher = self._fetching()
        prefetch = Prefetch(
            fetcher,
            self.store,
            self.clips(),
            self.catalog.clip_count,
            window=2 * self.settings.workers,
            changed=lambda: changed(prefetch.report()),
        )
        counters = fetcher.counters
        with HistoryRecorder(self.store.history, lambda: Counts(counters.fetched, counters.failed)):
            try:
                prefetch.run()
            finally:
                prefetch.cancel()
        return prefetch.report()

    def status(self) -> dict[str, Any]:
        """How the cache and the sources are doing, as `kinetics-fs status --json` has it."""
        return self.store.report()

    def _fetching(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = fetcher_of(self.settings, self.store, self.catalog.path)
        return self._fetcher


def _clip(clip: Clip | str) -> Clip:
    if isinstance(clip, Clip):
        return clip
    parsed = parse_clip_name(clip.rpartition("/")[2])
    if parsed is None:
        raise CatalogError(f"{clip!r} is not the name of a clip")
    return parsed


def selected_catalog(settings: Settings) -> Catalog:
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
    return open_catalog(find_release(settings.release), settings.annotations, selection, settings.cache_dir / "catalog")


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
        SettingError: an address or a folder is none, or no source is left to be asked.
    """
    from kinetics_fs.fetch import Fetcher

    check_places(settings)
    rate = settings.rate
    if rate is None and settings.video_url == YOUTUBE_URL:
        rate = _GUESTS_RATE
    index_db = index_db_path(settings)
    there = {
        "archive": index_db.exists() or (catalog is not None and settings.archive_stream_limit > 0),
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
        raise SettingError("; ".join(f"--source {source}: {wants[source]}" for source in settings.source))
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
                archive_index=str(index_db),
                archive_stream_limit=settings.archive_stream_limit,
                folders=tuple(map(str, settings.folder)),
                catalog=str(catalog or ""),
            ),
        ),
    )


def index_db_path(settings: Settings) -> Path:
    """The file of the indexes of archives that are here; it need not be there."""
    return settings.cache_dir / ARCHIVE_INDEXES


def open_index_db(settings: Settings) -> ArchiveIndexDB:
    """The indexes of archives that are here.

    Raises:
        ArchiveError: there are none, or they cannot be used.
    """
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

    path = index_db_path(settings)
    if not path.exists():
        raise ArchiveError(f"{settings.cache_dir} has no index of an archive: see kinetics-fs index --help")
    return ArchiveIndexDB(path)


def check_places(settings: Settings) -> None:
    """Refuses an address template without a place for the id, a proxy that is none (without showing it), and a folder
    that is not there.

    Raises:
        SettingError: in these cases.
    """
    proxy = urlsplit(settings.proxy or "http://127.0.0.1:1")
    try:
        usable = proxy.port != 0 and bool(proxy.hostname) and proxy.scheme in _PROXIES
    except ValueError:
        usable = False
    if not usable:
        raise SettingError("--proxy is not an address like socks5://127.0.0.1:1080; escape what is odd in a password")
    if "{id}" not in settings.video_url:
        raise SettingError(f"--video-url {settings.video_url!r} has no {{id}} in it")
    for folder in settings.folder:
        if not folder.is_dir():
            raise SettingError(f"--folder {str(folder)!r} is not a folder")
