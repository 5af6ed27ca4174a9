"""The sources of clips: archives, folders and YouTube.

A source receives a clip and a private folder. It leaves a media file there that contains the clip, or raises
`kinetics_fs.errors.FetchError`. Sources run in worker processes (see `kinetics_fs.fetch`), never in the mount. Confined
processes parse what comes from outside: pages, archives and videos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_fs.sources.base import FindExcerpt, InProgressElsewhere, NotInSource, OnClip, Source
from kinetics_fs.sources.settings import SourceSettings

if TYPE_CHECKING:
    from kinetics_fs.sources.archive.access import ArchiveAccess

__all__ = [
    "FindExcerpt",
    "InProgressElsewhere",
    "NotInSource",
    "OnClip",
    "Source",
    "SourceSettings",
    "make_source",
]


def make_source(
    name: str,
    settings: SourceSettings,
    on_clip: OnClip,
    wait_until_stored: Callable[[], None],
    access: ArchiveAccess,
    find_excerpt: FindExcerpt,
) -> Source:
    """Create the source of archives or that of folders.

    Args:
        name: `archive` or `folder`.
        settings: settings of all sources.
        on_clip: receives the clips of a source that reads many at once.
        wait_until_stored: returns when every clip that `on_clip` has received is in the store or was refused.
        access: reads archives.
        find_excerpt: finds a clip in a video file.
    """
    # Imported here because requests is slow to load.
    catalog = Path(settings.catalog) if settings.catalog else None
    if name == "folder":
        from kinetics_fs.sources.folder import FolderSource

        return FolderSource([Path(folder) for folder in settings.folders], catalog, on_clip, find_excerpt)
    from kinetics_fs.sources.archive.location import locate
    from kinetics_fs.sources.archive.source import ArchiveSource
    from kinetics_fs.sources.archive.stream import ArchiveStreamer

    index_db, lock = Path(settings.archive_index), Path(settings.archive_lock)
    url, limit = locate(settings.archive_url).base, settings.archive_limit
    streamer = ArchiveStreamer(url, index_db, lock, catalog, limit, on_clip, wait_until_stored, access)
    return ArchiveSource(url, index_db, limit=limit, streamer=streamer, on_clip=on_clip, access=access)
