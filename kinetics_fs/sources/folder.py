"""Clips in folders that other tools have created.

A folder of 650,000 files on a file server must cost nothing until a clip is requested, and little then. The source
first tries the paths at which common tools put a clip `ID_000010_000020.mp4` of a class and split, below each folder
and below its `kinetics-<release>` (FiftyOne's zoo)::

    validation/surfing water/     FiftyOne, kinetics-fs mount and export; val/surfing_water/ of torchvision
    surfing water/                the ActivityNet crawler, the arranged archives
    validation/
    ./                            the unpacked archives

and in each of them also `ID_10_20.mp4`. Only if the clip is at none of these does the source list folders: those whose
names do not say that they are of another split or class. It keeps the lists, and compares the modification
times of the folders with them only after `_REST` times the time that this took.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.catalog.file_names import NO_TIMES, VIDEO_SUFFIXES, FileName, parse_file_name
from kinetics_fs.catalog.naming import UNLABELED, ClassNames, class_name, name_fault, split_name
from kinetics_fs.errors import CatalogError, FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.archive.tar import MAX_CLIP_SIZE
from kinetics_fs.sources.base import FindExcerpt, NotInSource, OnClip
from kinetics_fs.sources.folder_files import list_folder
from kinetics_fs.store import one_line
from kinetics_fs.util.beneath import Found, find_beneath
from kinetics_fs.util.files import link_or_copy
from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)

SOURCE = "folder"

_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "validate", "valid"),
    "test": ("test",),
}

_REST = 20
"""Multiple of the time that a search took, after which the next one compares the lists with the folders."""
_LARGE = 5000
"""Names in a folder above which those that can be tried one by one are not kept in memory."""
_TRIED_NAME = re.compile(r"[A-Za-z0-9_-]{11}_(?:[0-9]{6}_[0-9]{6}|(?:0|[1-9][0-9]*)_[1-9][0-9]*)\.mp4")
"""The names that `file_names` returns."""
_KNOWN_NAMES = 4096
"""Names of folders whose meaning is kept."""
_CLOCK = 2 * 10**9
"""Nanoseconds within which a folder may change without a change of its modification time (FAT)."""

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
        on_clip: receives the clip and verifies it, so that a good file follows a broken one. None to return the first
            file.
        find_excerpt: finds a clip in a video file; None to do that in this process.
    """

    name = SOURCE

    def __init__(
        self,
        folders: Sequence[Path],
        catalog: Path | None,
        on_clip: OnClip | None = None,
        find_excerpt: FindExcerpt | None = None,
    ) -> None:
        self._folders = folders
        self._path = catalog
        self._on_clip = on_clip
        self._find_excerpt = find_excerpt or _find_excerpt
        self._catalog: Catalog | None = None
        self._classes: set[str] = set()
        self._lists: dict[str, _FolderList] = {}
        self._unreadable: set[str] = set()
        self._has_logged_excluded = False
        self._opened = contextlib.ExitStack()

    def fetch(self, clip: Clip, folder: Path) -> Media | None:
        failure: FetchError | None = None
        unused: list[tuple[Path, str]] = []
        self._opened.close()
        try:
            for given, name in self._candidates(clip, unused):
                path = given / name
                try:
                    with self._opened as opened:
                        file = opened.enter_context(find_file(given, name))
                        media = self._take(file, path, clip, folder)
                        self._opened = opened.pop_all()  # the media of a whole video are a link to it
                        return media
                except NotInSource as missing:
                    if missing.note:
                        unused.append((path, missing.note))
                except FetchError as error:  # another file may be a good copy
                    failure = FetchError(error.kind, f"{path}: {error.reason}", cause_errno=error.cause_errno)
                    _log.warning("%s: folder: %s is not used: %s", clip.key, one_line(str(path)), error.reason)
        except CatalogError as error:
            failure = FetchError(FailureKind.CONFIG, str(error))
        note = ""
        for path, reason in unused:
            note = f"{one_line(str(path))} is not used: {reason}"
            _log.warning("%s: folder: %s", clip.key, note)
        if failure is None:
            raise NotInSource(note)
        failure.source = self.name
        raise failure

    def has(self, clip: Clip) -> bool:
        """Return whether a folder has a file of a clip, without reading it."""
        for given, name in self._candidates(clip, []):
            with contextlib.suppress(OSError), find_beneath(given, name) as file:
                if file.is_file:
                    return True
        return False

    def _candidates(self, clip: Clip, unused: list[tuple[Path, str]]) -> Iterator[_Place]:
        """Yield the files that may be a clip, the best first. At the end, add those that are not used, with the reason.

        Folders are listed only when the caller asks for more than the paths of common tools.
        """
        layout = self._layout(clip)
        tried = set[_Place]()
        for given, folder in self._expected_folders(layout):
            for name in file_names(clip):
                place = _Place(given, folder / name)
                tried.add(place)
                yield place
        found = self._search(clip, layout)
        yield from (place for place in found.usable if place not in tried)
        unused += found.unused

    def _take(self, file: Found, path: Path, clip: Clip, folder: Path) -> Media | None:
        """Use a file for a clip. Arguments and result as of `fetch`.

        Raises:
            FetchError: the file cannot be used.
        """
        if parse_file_name(path.name).clip is None:
            media = find_excerpt_of(file, clip, self._find_excerpt)
            if not media.whole:
                return media
        target = folder / clip.name
        import_file(file, target)
        if self._on_clip is None:
            return Media(target, 0.0, None, whole=True)
        try:
            self._on_clip(clip, target)
        except FetchError:
            target.unlink(missing_ok=True)
            raise
        return None

    # The paths of common tools

    def _expected_folders(self, layout: _Layout) -> Iterator[_Place]:
        """Yield the existing folders that may contain a clip, the most likely first."""
        for given in self._folders:
            for root in (Path(f"kinetics-{layout.release}"), Path()) if layout.release else (Path(),):
                if not _is_folder(given / root):
                    continue
                names = [name for split in layout.splits for name in _SPLIT_FOLDERS[split]]
                split_folders = [path for name in names if _is_folder(given / (path := root / name))]
                for parent in (*split_folders, root):
                    for name in layout.classes:
                        if _is_folder(given / (path := parent / name)):
                            yield _Place(given, path)
                yield from (_Place(given, path) for path in (*split_folders, root))

    def _layout(self, clip: Clip) -> _Layout:
        if self._path is None:
            return _Layout("", [], [], [])
        if self._catalog is None:
            self._catalog = Catalog(self._path)
            self._classes = {_plain(label) for label in self._catalog.labels()}
        splits, labels, classes = dict[str, None](), dict[str, None](), dict[str, None]()
        for entry in self._catalog.locate(clip):
            directory = self._catalog.directory(entry.directory)
            if directory is not None:
                splits[directory.split] = labels[str(directory.label)] = None
                classes.update(dict.fromkeys(_class_folders(str(directory.label))))
        return _Layout(self._catalog.release, list(splits), list(labels), list(classes))

    # All other paths

    def _search(self, clip: Clip, layout: _Layout) -> _Found:
        """Find the files of a clip in all folders that may have it."""
        begun = time.monotonic()
        usable: list[tuple[int, _Place]] = []
        unused: list[tuple[Path, str]] = []
        seen = set[tuple[int, int]]()
        visited: list[_FolderList] = []
        excluded: list[Path] = []
        pending = [(given, "") for given in reversed(self._folders)]
        while pending:
            given, folder = pending.pop()
            listed = self._list(given, folder, begun)
            if listed is None or listed.identity in seen:
                continue
            seen.add(listed.identity)
            visited.append(listed)
            if self._path is not None:
                for name in reversed(listed.folders):
                    path = f"{folder}/{name}" if folder else name
                    if self._excludes(name, layout):
                        excluded.append(Path(given, path))
                    else:
                        pending.append((given, path))
            names = listed.names_with(clip.youtube_id)
            if listed.large:
                names += (name for name in file_names(clip) if Path(given, folder, name).exists())
            for name in names:
                place, parsed = _Place(given, Path(folder, name)), parse_file_name(name)
                if parsed.clip not in (None, clip) or (parsed.clip is None and parsed.youtube_id != clip.youtube_id):
                    continue
                if reason := parsed.fault or self._ambiguity(clip, parsed):
                    unused.append((given / place.name, reason))
                else:
                    usable.append((preference(parsed), place))
        if excluded and not usable and not self._has_logged_excluded:
            self._has_logged_excluded = True
            _log.warning(
                "%s: folder: %s not searched, such as %s: its name is that of another split or class; rename it if it"
                " has such clips",
                clip.key,
                count(len(excluded), "folder"),
                one_line(str(excluded[0])),
            )
        until = time.monotonic() + _REST * (time.monotonic() - begun)
        for listed in visited:
            listed.fresh_until = max(listed.fresh_until, until)
        return _Found([place for _, place in sorted(usable, key=lambda one: one[0])], unused)

    def _list(self, given: Path, name: str, now: float) -> _FolderList | None:
        """Return what is in a folder below a given one; None if it cannot be read."""
        path = f"{given}/{name}"
        listed = self._lists.get(path)
        if listed is not None and now < listed.fresh_until:
            return listed
        try:
            with find_beneath(given, name) as folder:
                if listed is None or listed.changed_at != folder.status.st_mtime_ns:
                    listed = self._lists[path] = _FolderList(folder)
        except OSError as error:
            if path not in self._unreadable:
                self._unreadable.add(path)
                _log.warning("cannot read the folder %s: %s", one_line(path), error.strerror)
            return None
        return listed

    def _excludes(self, name: str, layout: _Layout) -> bool:
        """Return whether a folder has clips of another split or class, by its name."""
        plain = _plain(name)
        if plain in map(_plain, layout.labels):
            return False
        if plain in self._classes and split_name(name) is None:
            return True
        splits = _splits_in(name)
        return bool(splits) and splits.isdisjoint(layout.splits)

    def _ambiguity(self, clip: Clip, parsed: FileName) -> str:
        """Return why a file is not used for a clip if its name gives no times; empty if it is."""
        if parsed.clip is not None:
            return ""
        if self._catalog is None:
            return "its name has no times, and the catalog is unknown"
        return "" if self._catalog.clips_of_videos([clip.youtube_id]).get(clip.youtube_id) == [clip] else NO_TIMES


class _Layout(NamedTuple):
    """Where a clip is in the release.

    Attributes:
        release: name of the release; empty if the catalog is unknown.
        splits: splits that have the clip.
        labels: labels of the clip.
        classes: possible names of the folders of its classes.
    """

    release: str
    splits: list[str]
    labels: list[str]
    classes: list[str]


class _Place(NamedTuple):
    """A file or folder: the folder that the user gave, and its path below that one."""

    given: Path
    name: Path


class _Found(NamedTuple):
    """Files of a clip: those to try, the best first, and those that are not used, with the reason."""

    usable: list[_Place]
    unused: list[tuple[Path, str]]


class _FolderList:
    """The names in a folder.

    Attributes:
        identity: device and inode number of the folder.
        changed_at: modification time of the folder, in nanoseconds; None if it may have changed since.
        folders: names of the folders in it, sorted.
        large: names that `file_names` returns are not in the list.
        fresh_until: time until which the list is used as it is, by the monotonic clock.
    """

    def __init__(self, folder: Found) -> None:
        status = folder.status
        self.identity = (status.st_dev, status.st_ino)
        self.changed_at = status.st_mtime_ns if time.time_ns() - status.st_mtime_ns > _CLOCK else None
        self.fresh_until = 0.0
        self.folders: list[str] = []
        self.large = False
        names: list[str] = []
        standard: list[str] = []
        for file in list_folder(folder):
            if file.name.startswith("."):
                continue
            if file.folder:
                self.folders.append(file.name)
            elif not _TRIED_NAME.fullmatch(file.name):
                if parse_file_name(file.name).youtube_id:
                    names.append(file.name)
            elif not self.large:
                standard.append(file.name)
                self.large = len(standard) > _LARGE
        self.folders.sort()
        if not self.large:
            names += standard
        # One object instead of one for each name.
        self._names = os.fsencode("".join(f"{name}/" for name in sorted(names)))

    def names_with(self, youtube_id: str) -> list[str]:
        """Return the names that contain the id of a video."""
        found, at, wanted = [], 0, youtube_id.encode()
        while (at := self._names.find(wanted, at)) >= 0:
            begin, end = self._names.rfind(b"/", 0, at) + 1, self._names.index(b"/", at)
            found.append(os.fsdecode(self._names[begin:end]))
            at = end
        return found


@lru_cache(_KNOWN_NAMES)
def _splits_in(name: str) -> frozenset[str]:
    """Return the splits that the words in the name of a folder stand for: `videos_val` is a folder of validation."""
    return frozenset(split for word in re.findall("[a-z]+", name.lower()) if (split := split_name(word)) is not None)


@lru_cache(_KNOWN_NAMES)
def _plain(name: str) -> str:
    """Return a name of a class without what its styles change: case, spaces and punctuation."""
    name = unicodedata.normalize("NFC", name).casefold().strip()
    return "".join(filter(str.isalnum, name)) or name


def preference(parsed: FileName) -> int:
    """Return a key that sorts files of a clip: names with times first, then mp4 files, which stay as they are."""
    return VIDEO_SUFFIXES.index(parsed.suffix) + (len(VIDEO_SUFFIXES) if parsed.clip is None else 0)


def find_file(folder: Path, name: str | Path) -> Found:
    """Find a file that may be a clip, whose content is on a disk.

    Args:
        folder: the folder that the user gave.
        name: path of the file below it.

    Returns:
        The file, which the caller must close.

    Raises:
        NotInSource: there is no such file, it is not a regular file, it is empty, or it is a clip in a mount of
            kinetics-fs that is not cached.
        FetchError: the file is not accessible (TRANSIENT).
    """
    try:
        file = find_beneath(folder, name)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise NotInSource from None
        raise _cannot_read(error) from error
    if not is_on_disk(file) or not file.status.st_size:
        is_empty = file.is_file and not file.status.st_size
        file.close()
        raise NotInSource("the file is empty" if is_empty else "")
    return file


def _find_excerpt(path: Path, start: int, end: int) -> Media:
    from kinetics_fs.media.excerpt import find_excerpt  # loads PyAV

    return find_excerpt(path, path, start, end)


def find_excerpt_of(file: Found, clip: Clip, find_excerpt: FindExcerpt) -> Media:
    """Find a clip in a file whose name gives no times.

    Args:
        file: the file. The result is valid while it is open.
        clip: the clip.
        find_excerpt: the function of that name, or one that calls it in another process.

    Raises:
        FetchError: the file does not have the clip (CORRUPT).
    """
    return find_excerpt(file.path, clip.start, clip.end)


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


def import_file(file: Found, target: Path, *, link: bool = True) -> bool:
    """Create a clone, hard link or copy of a user's file.

    Args:
        file: the file.
        target: path to create. It must not exist, and does not exist after a failure.
        link: allow a hard link.

    Returns:
        Whether the target is a hard link.

    Raises:
        FetchError: the file cannot be read (TRANSIENT), is too large for a clip (CORRUPT), or the disk is full (LOCAL).
    """
    try:
        fd = file.open()
    except OSError as error:
        raise _cannot_read(error) from error
    try:
        return link_or_copy(fd, target, max_size=MAX_CLIP_SIZE, link=link)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise FetchError(
                FailureKind.LOCAL, f"cannot store the file: {error.strerror}", cause_errno=error.errno
            ) from error
        if error.errno == errno.EFBIG:
            raise FetchError(FailureKind.CORRUPT, f"cannot use the file: it is {error.strerror}") from error
        raise _cannot_read(error) from error
    finally:
        os.close(fd)


def is_on_disk(file: Found) -> bool:
    """Return whether a file is a regular one whose content is on a disk, and no clip that a mount must fetch first."""
    if not file.is_file:
        return False
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # Opening the clip would make its mount fetch it, and that mount may wait for this process.
            return os.getxattr(file.path, _STATE_ATTRIBUTE) == b"cached"
    return True


def _cannot_read(error: OSError) -> FetchError:
    # Neither LOCAL nor CONFIG, which stop a prefetch: only this file is affected.
    return FetchError(FailureKind.TRANSIENT, f"cannot read the file: {error.strerror}", cause_errno=error.errno)


def file_names(clip: Clip) -> tuple[str, ...]:
    """Return the names that tools give to the file of a clip."""
    return tuple(dict.fromkeys((clip.name, f"{clip.youtube_id}_{clip.start}_{clip.end}.mp4")))
