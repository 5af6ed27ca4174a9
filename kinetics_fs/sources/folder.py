"""Clips in folders that other tools have created.

The source tries the names that a clip may have and never lists a folder, so that a folder of 650,000 files on a file
server costs nothing until a clip is requested. For a clip `ID_000010_000020.mp4` of a class and split it tries these
paths, below each folder and below its `kinetics-<release>` (FiftyOne's zoo)::

    validation/surfing water/     FiftyOne, kinetics-fs mount and export; val/surfing_water/ of torchvision
    surfing water/                the ActivityNet crawler, the arranged archives
    validation/
    ./                            the unpacked archives

and in each of them also `ID_10_20.mp4`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.naming import UNLABELED, ClassNames, class_name, name_fault
from kinetics_fs.errors import CatalogError, FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.archive.tar import MAX_CLIP_SIZE
from kinetics_fs.sources.base import NotInSource
from kinetics_fs.util.files import link_or_copy

SOURCE = "folder"

_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "validate", "valid"),
    "test": ("test",),
}

_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_STATE_ATTRIBUTE = "user.kinetics.state"
"""Extended attribute of each clip in a mount of kinetics-fs."""


class FolderSource:
    """Folders of clips.

    Args:
        folders: folders to search, in this order.
        catalog: file of the catalog, which gives the split and class of a clip; None to search only for files that lie
            directly in the folders.
    """

    name = SOURCE

    def __init__(self, folders: Sequence[Path], catalog: Path | None) -> None:
        self._folders = folders
        self._path = catalog
        self._catalog: Catalog | None = None

    def fetch(self, clip: Clip, folder: Path) -> Media:
        target = folder / clip.name
        failure: FetchError | None = None
        try:
            for folder_of_clip in self._folders_of(clip):
                for path in (folder_of_clip / name for name in file_names(clip)):
                    try:
                        import_file(path, target)
                    except NotInSource:
                        continue
                    except FetchError as error:  # another folder may have a good copy
                        failure = FetchError(error.kind, f"{path}: {error.reason}", errno=error.errno)
                    else:
                        return Media(target, 0.0, None, whole=True)
        except CatalogError as error:
            failure = FetchError(FailureKind.CONFIG, str(error))
        if failure is None:
            raise NotInSource
        failure.source = self.name
        raise failure

    def _folders_of(self, clip: Clip) -> Iterator[Path]:
        """Yield the existing folders that may contain a clip, the most likely first."""
        release, splits, classes = self._layout(clip)
        for given in self._folders:
            for root in (given / f"kinetics-{release}", given) if release else (given,):
                if not _is_folder(root):
                    continue
                split_folders = [path for split in splits if _is_folder(path := root / split)]
                for parent in (*split_folders, root):
                    yield from (path for name in classes if _is_folder(path := parent / name))
                yield from (*split_folders, root)

    def _layout(self, clip: Clip) -> tuple[str, list[str], list[str]]:
        """Return the release, and the possible folder names of the clip's splits and classes."""
        if self._path is None:
            return "", [], []
        self._catalog = self._catalog or Catalog(self._path)
        splits, classes = dict[str, None](), dict[str, None]()
        for entry in self._catalog.locate(clip):
            directory = self._catalog.directory(entry.directory)
            if directory is not None:
                splits.update(dict.fromkeys(_SPLIT_FOLDERS.get(directory.split, ())))
                classes.update(dict.fromkeys(_class_folders(str(directory.label))))
        return self._catalog.release, list(splits), list(classes)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not readable: the lookup of the clip itself reports that
        return False


def _class_folders(label: str) -> Iterator[str]:
    for style in ClassNames:
        name = class_name(label, style)
        if label == UNLABELED or not name_fault(name):
            yield name


def import_file(path: Path, target: Path, *, link: bool = True) -> bool:
    """Create a clone, hard link or copy of a user's file.

    Args:
        path: the file, or a symbolic link to it.
        target: path to create. It must not exist, and does not exist after a failure.
        link: allow a hard link.

    Returns:
        Whether the target is a hard link.

    Raises:
        NotInSource: there is no such file, or it is empty.
        FetchError: the file cannot be read (TRANSIENT), is too large for a clip (CORRUPT), or the disk is full (LOCAL).
    """
    try:
        status = stat_local(path)
        if status is None or not status.st_size:
            raise NotInSource
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise NotInSource from None
        raise _cannot_read(error) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotInSource  # replaced since the check
        return link_or_copy(file, target, max_size=MAX_CLIP_SIZE, link=link)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise FetchError(
                FailureKind.LOCAL, f"cannot store the file: {error.strerror}", errno=error.errno
            ) from error
        if error.errno == errno.EFBIG:
            raise FetchError(FailureKind.CORRUPT, f"cannot use the file: it is {error.strerror}") from error
        raise _cannot_read(error) from error
    finally:
        os.close(file)


def stat_local(path: Path) -> os.stat_result | None:
    """Return the status of a regular file whose content is on a disk.

    Returns:
        The status; None if the path is not a regular file, or is a clip in a mount of kinetics-fs that is not cached.

    Raises:
        OSError: there is no such file, or it is not accessible.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # Opening the clip would make its mount fetch it, and that mount may wait for this process.
            return status if os.getxattr(path, _STATE_ATTRIBUTE) == b"cached" else None
    return status


def _cannot_read(error: OSError) -> FetchError:
    # Neither LOCAL nor CONFIG, which stop a prefetch: only this file is affected.
    return FetchError(FailureKind.TRANSIENT, f"cannot read the file: {error.strerror}", errno=error.errno)


def file_names(clip: Clip) -> tuple[str, ...]:
    """Return the names that tools give to the file of a clip."""
    return tuple(dict.fromkeys((clip.name, f"{clip.youtube_id}_{clip.start}_{clip.end}.mp4")))
