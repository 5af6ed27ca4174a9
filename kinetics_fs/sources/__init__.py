"""The sources of clips: archives, folders and YouTube.

A source receives a clip and a private folder. It leaves a media file there that contains the clip, or raises
`kinetics_fs.errors.FetchError`. Sources run in worker processes (see `kinetics_fs.fetch`), never in the mount.
"""

from collections.abc import Callable
from pathlib import Path

from kinetics_fs.sources.base import ControlledSource, InProgressElsewhere, NotInSource, OnClip, Source
from kinetics_fs.sources.settings import SourceSettings

__all__ = [
    "ControlledSource",
    "InProgressElsewhere",
    "NotInSource",
    "OnClip",
    "Source",
    "SourceSettings",
    "make_source",
]


def make_source(name: str, settings: SourceSettings, on_clip: OnClip, wait_until_stored: Callable[[], None]) -> Source:
    """Create a source.

    Args:
        name: one of `SourceSettings.order`.
        settings: settings of all sources.
        on_clip: receives the clips of a source that reads many at once.
        wait_until_stored: returns when every clip that `on_clip` has received is in the store or was refused.
    """
    # Imported here because yt-dlp and requests are slow to load: only worker processes need them.
    catalog = Path(settings.catalog) if settings.catalog else None
    if name == "archive":
        from kinetics_fs.sources.archive.location import locate
        from kinetics_fs.sources.archive.source import ArchiveSource
        from kinetics_fs.sources.archive.stream import ArchiveStreamer

        base = locate(settings.archive_url).base
        index_db = Path(settings.archive_index)
        limit = settings.archive_limit
        lock = Path(settings.archive_lock)
        streamer = ArchiveStreamer(base, index_db, lock, catalog, limit, on_clip, wait_until_stored)
        return ArchiveSource(base, index_db, limit=limit, streamer=streamer, on_clip=on_clip)
    if name == "folder":
        from kinetics_fs.sources.folder import FolderSource

        return FolderSource([Path(folder) for folder in settings.folders], catalog, on_clip)
    from kinetics_fs.sources.youtube.source import YouTubeSource

    return YouTubeSource(settings)
