"""The sources of clips: archives, folders and YouTube.

A source receives a clip and a private folder. It leaves a media file there that contains the clip, or raises
`kinetics_fs.errors.FetchError`. Sources run in worker processes (see `kinetics_fs.fetch`), never in the mount.
"""

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


def make_source(name: str, settings: SourceSettings, on_clip: OnClip) -> Source:
    """Create a source.

    Args:
        name: one of `SourceSettings.order`.
        settings: settings of all sources.
        on_clip: receives the clips of a source that reads many at once.
    """
    # Imported here because yt-dlp and requests are slow to load: only worker processes need them.
    catalog = Path(settings.catalog) if settings.catalog else None
    if name == "archive":
        from kinetics_fs.sources.archive.source import ArchiveSource
        from kinetics_fs.sources.archive.stream import ArchiveStreamer

        index_db = Path(settings.archive_index)
        limit = settings.archive_limit
        streamer = ArchiveStreamer(settings.archive_url, index_db, Path(settings.archive_lock), catalog, limit, on_clip)
        return ArchiveSource(settings.archive_url, index_db, limit=limit, streamer=streamer)
    if name == "folder":
        from kinetics_fs.sources.folder import FolderSource

        return FolderSource([Path(folder) for folder in settings.folders], catalog, on_clip)
    from kinetics_fs.sources.youtube.source import YouTubeSource

    return YouTubeSource(settings)
