"""Clips that somebody has already, in the folders that other tools leave behind.

They are found by trying the names that they may have, and never by listing: a folder of 650,000 files on a file server
must cost nothing until one of them is wanted. For a clip `ID_000010_000020.mp4` of a class in a split these are tried,
below each folder and below its `kinetics-<release>` (FiftyOne's zoo)::

    validation/surfing water/     FiftyOne, our own mount and export; val/surfing_water/ of torchvision
    surfing water/                the ActivityNet crawler, the arranged archives
    validation/
    ./                            the archives as they unpack

and in each of them also `ID_10_20.mp4`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.clip import LAST_SECOND, Clip
from kinetics_fs.catalog.naming import UNLABELED, ClassNames, class_name, name_fault
from kinetics_fs.errors import CatalogError, FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.archive.tar import MOST_CLIP_BYTES
from kinetics_fs.sources.base import NotInSource
from kinetics_fs.util.files import link_or_copy

SOURCE = "folder"

_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "validate", "valid"),
    "test": ("test",),
}
_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{1,6})_([0-9]{1,6})\.mp4")

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_STATE = "user.kinetics.state"
"""Attribute of a clip in a mount of ours."""


class FolderSource:
    """Folders of clips.

    Args:
        folders: where to look, in this order.
        catalog: file of the catalog, which tells split and class of a clip; None to look for loose files alone.
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
            for place in self._places(clip):
                for path in (place / name for name in file_names(clip)):
                    try:
                        take_file(path, target)
                    except NotInSource:
                        continue
                    except FetchError as error:  # there may be another
                        failure = FetchError(error.kind, f"{path}: {error.reason}", errno=error.errno)
                    else:
                        return Media(target, 0.0, None, whole=True)
        except CatalogError as error:
            failure = FetchError(FailureKind.CONFIG, str(error))
        if failure is None:
            raise NotInSource
        failure.source = self.name
        raise failure

    def _places(self, clip: Clip) -> Iterator[Path]:
        """The folders that are there in which the clip may be, the likeliest first."""
        release, splits, classes = self._layout(clip)
        for given in self._folders:
            for root in (given / f"kinetics-{release}", given) if release else (given,):
                if not _is_folder(root):
                    continue
                there = [path for split in splits if _is_folder(path := root / split)]
                for above in (*there, root):
                    yield from (path for name in classes if _is_folder(path := above / name))
                yield from (*there, root)

    def _layout(self, clip: Clip) -> tuple[str, list[str], list[str]]:
        """The release, and the names that folders of the clip's splits and classes may have."""
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
    except OSError:  # one that nobody may look into: looking for the clip itself will tell
        return False


def _class_folders(label: str) -> Iterator[str]:
    for style in ClassNames:
        name = class_name(label, style)
        if label == UNLABELED or not name_fault(name):
            yield name


def take_file(path: Path, target: Path, *, link: bool = True) -> bool:
    """Puts a file of the user's into a folder of ours, as a clone, a hard link or a copy.

    Args:
        path: the file, or a symbolic link to it.
        target: what is to be made; nothing is there yet, nor after a failure.
        link: whether a hard link will do.

    Returns:
        Whether it is a hard link.

    Raises:
        NotInSource: there is no file with anything in it.
        FetchError: it cannot be read (TRANSIENT), is too large for a clip (CORRUPT), or there is no room (LOCAL).
    """
    try:
        status = look_at(path)
        if status is None or not status.st_size:
            raise NotInSource
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise NotInSource from None
        raise _cannot_read(error) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotInSource  # changed since
        return link_or_copy(file, target, most=MOST_CLIP_BYTES, link=link)
    except OSError as error:
        if error.errno in _FULL:
            raise FetchError(FailureKind.LOCAL, f"cannot be stored: {error.strerror}", errno=error.errno) from error
        if error.errno == errno.EFBIG:
            raise FetchError(FailureKind.CORRUPT, f"the file is {error.strerror}") from error
        raise _cannot_read(error) from error
    finally:
        os.close(file)


def look_at(path: Path) -> os.stat_result | None:
    """What is known of a regular file; None if it is none, or a clip that a mount of ours would have to fetch.

    Raises:
        OSError: there is nothing, or nobody can tell.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # To open it would make that mount fetch it: it may be our own, and wait for us.
            return status if os.getxattr(path, _STATE) == b"cached" else None
    return status


def _cannot_read(error: OSError) -> FetchError:
    # Neither LOCAL nor CONFIG, which end a prefetch: it is one file.
    return FetchError(FailureKind.TRANSIENT, f"cannot be read: {error.strerror}", errno=error.errno)


def file_names(clip: Clip) -> tuple[str, ...]:
    """The names that tools give to the file of a clip."""
    return tuple(dict.fromkeys((clip.name, f"{clip.youtube_id}_{clip.start}_{clip.end}.mp4")))


def clip_of(name: str) -> Clip | None:
    """The clip of which a file has this name; the inverse of `file_names`."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    clip = Clip(match[1], int(match[2]), int(match[3]))
    return clip if clip.start < clip.end <= LAST_SECOND and name in file_names(clip) else None
