"""The layout of the public archives: which archives a release has, and which of them contains a class.

The layout is that of the public bucket of the Common Visual Data Foundation, in which each split has a list of its
archives. The read-me and scripts of github.com/cvdfoundation/kinetics-dataset describe the rest. The name of an archive
is its path in the bucket, for example `600/val/pull ups.tar.gz`, also in a mirror and in a folder.

=========  ===========  =====================================================================================
release    split        archives
=========  ===========  =====================================================================================
400        all          numbered parts of about 1,000 clips, classes mixed; one more replaces broken clips of train
600        train, val   one for each class, named by its label, with spaces and parentheses
600        test         numbered parts, classes mixed
700-2020   train, val   one for each class, numbered from 001 in the order of the sorted labels
700-2020   test         numbered parts, classes mixed
=========  ===========  =====================================================================================

700 has no archives of its own. Those of 700-2020 contain nearly all of its clips.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from kinetics_fs.catalog import UNLABELED, Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.sources.archive.index import check_name
from kinetics_fs.sources.archive.reader import open_archive, read_small
from kinetics_fs.sources.settings import is_remote

_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_CLASSES_OF_700 = 700
_MAX_LIST = 4 * 1024 * 1024
_MAX_SHOWN = 5
"""Names of files that a message shows."""
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class _Layout(NamedTuple):
    folder: str
    lists: str
    """Name of the list of a split's archives, in the folder of the split."""
    of_class: str | None
    """Name of the archive of a class, in the folder of the split; None if the archives mix classes."""
    replacements: str | None = None
    """Path of the archive that replaces broken clips of train."""


_700 = _Layout("700_2020", "k700_2020_{split}_path.txt", "k700_{split}_{number:03d}.tar.gz")
_LAYOUTS = {
    "400": _Layout("400", "k400_{split}_path.txt", None, "400/replacement_for_corrupted_k400.tgz"),
    "600": _Layout("600", "k600_{split}_path.txt", "{label}.tar.gz"),
    "700": _700,
    "700-2020": _700,
}

FOLDERS = tuple(dict.fromkeys(layout.folder for layout in _LAYOUTS.values()))
"""Names of the folders of all releases."""
WORDS = tuple(_SPLITS.values())
"""Names of the folders of splits in them."""


def folder_of_release(release: str) -> str:
    """Return the first part of the names of the archives of a release."""
    return _LAYOUTS[release].folder


def archive_address(base: str, name: str) -> str:
    """Return the address of an archive.

    Args:
        base: location of all archives: an http(s) or s3 address, or a folder.
        name: name of the archive.

    Raises:
        ArchiveError: the name is not a plain path.
    """
    check_name(name)
    if is_remote(base):
        address, mark, query = base.partition("?")
        return f"{address.rstrip('/')}/{quote(name)}{mark}{query}"
    return str(_local_path(base, name))


def _local_path(base: str, name: str) -> Path:
    """Return the path of an archive in a folder, which may lack the upper levels of the layout."""
    last = name.rpartition("/")[2]
    # The scripts of CVDF make folders such as k400_targz with train, val, test and replacement.
    levels = (name, name.partition("/")[2], last, f"replacement/{last}")
    paths = (Path(base, level) for level in levels if level)
    return next((path for path in paths if path.is_file()), Path(base, name))


def list_archives(base: str, release: str, split: str) -> list[str]:
    """Return the names of the archives of a split: from the published list, or the existing files of a folder.

    An archive of replacements comes first. A reader that keeps the first copy of each clip then has the right one. If a
    folder has no folders of splits, all its archives are returned, except those that name another split.

    Args:
        base: location of all archives.
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.

    Raises:
        FetchError: the list cannot be read, or the folder has no archives of the split.
        ArchiveError: the file is not a list of archives.
    """
    if is_remote(base):
        return published_archives(base, release, split)
    layout, word = _LAYOUTS[release], _SPLITS[split]
    folder = f"{layout.folder}/{word}"
    names = []
    if split == "train" and layout.replacements and _local_path(base, layout.replacements).is_file():
        names.append(layout.replacements)
    for level in (folder, word):
        if found := archives_in(Path(base, level)):
            return names + [f"{folder}/{name}" for name in found]
    others = "|".join(other for other in _SPLITS.values() if other != word)
    names_other = re.compile(rf"(?:^|[_-])(?:{others})[_-]")
    if found := [name for name in archives_in(Path(base)) if not names_other.search(name)]:
        return found
    raise FetchError(
        FailureKind.CONFIG,
        f"cannot find archives of the split {split} in {base}: expected {folder}/*.tar.gz, {word}/*.tar.gz or *.tar.gz,"
        f" found {content_of(Path(base))}; check --archive-url",
    )


def archives_in(folder: Path) -> list[str]:
    """Return the sorted names of the archives directly in a folder; none if it does not exist."""
    try:
        found = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return [name for name in found if stem(name) != name and not name.startswith(".")]


def content_of(folder: Path) -> str:
    """Return the first names in a folder for a message, or why they cannot be listed."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"no folder ({error.strerror})"
    more = ", …" if len(names) > _MAX_SHOWN else ""
    return f"{', '.join(names[:_MAX_SHOWN])}{more}" if names else "nothing"


def published_archives(base: str, release: str, split: str) -> list[str]:
    """Return the names of the archives in the published list of a split, replacements first.

    Args:
        base: location of all archives, which has the list; or of those of the split alone.
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.

    Raises:
        FetchError: the list cannot be read.
        ArchiveError: the file is not a list of archives.
    """
    layout, word = _LAYOUTS[release], _SPLITS[split]
    prefix, name = f"{layout.folder}/{word}/", layout.lists.format(split=word)
    try:
        address, content = _read_list(base, prefix + name)
    except FetchError as error:
        if error.kind is not FailureKind.CONFIG:
            reason = f"cannot read the list of archives: {error.reason}; try again later"
            raise FetchError(error.kind, reason, retry_after=error.retry_after) from error
        try:
            address, content = _read_list(base, name)
        except FetchError:
            raise FetchError(
                error.kind, f"{error.reason}; --archive-url must be the location of {prefix}{name}"
            ) from error
        prefix = ""
    names = [layout.replacements] if prefix and split == "train" and layout.replacements else []
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"cannot read {address}: it is not a list of archives") from error
    # The list has addresses in the public bucket, also on mirrors, so only the last part of each is used.
    for line in filter(None, map(str.strip, lines)):
        archive = unquote(line.rsplit("/", 1)[-1])
        if not stem(archive) or stem(archive) == archive:
            raise ArchiveError(f"cannot read {address}: it is not a list of archives: {line[:100]!r}")
        names.append(check_name(prefix + archive))
    if not names or names == [layout.replacements]:
        raise ArchiveError(f"cannot read {address}: it is an empty list of archives")
    return names


def _read_list(base: str, name: str) -> tuple[str, bytes]:
    file = open_archive(archive_address(base, name))
    return file.address, read_small(file, _MAX_LIST)


def archive_of_class(release: str, split: str, label: str, labels: Sequence[str]) -> str | None:
    """Return the name of the archive that contains all clips of a class in a split.

    Args:
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.
        label: label of the class.
        labels: labels of the whole release. 700 and 700-2020 have the same.

    Returns:
        The name; None if the archives mix classes, or the labels are not those of the release.
    """
    layout, word = _LAYOUTS[release], _SPLITS[split]
    if layout.of_class is None or split == "test" or label not in labels:
        return None
    if layout is _700 and len(labels) != _CLASSES_OF_700:
        return None
    number = sorted(labels).index(label) + 1
    return f"{layout.folder}/{word}/{layout.of_class.format(split=word, label=label, number=number)}"


class ArchiveClasses:
    """The split and class of the clips of each archive of a release, according to the name of the archive.

    Args:
        release: `400`, `600`, `700` or `700-2020`. 700 has no archives of its own: those of 700-2020 have other clips
            besides.
        labels: labels of the whole release.
    """

    def __init__(self, release: str, labels: Sequence[str]) -> None:
        self._layout = None if release == "700" else _LAYOUTS[release]
        self._classes: dict[str, tuple[str, str]] = {}
        for split in _SPLITS if self._layout is not None else ():
            for label in labels:
                if name := archive_of_class(release, split, label, labels):
                    self._classes[stem(name)] = split, label

    def of(self, archive: str) -> tuple[str, str] | None:
        """Return split and label; `UNLABELED` if the archive mixes classes, None if it is not one of the release."""
        layout = self._layout
        if layout is None:
            return None
        if archive == layout.replacements:
            return "train", UNLABELED
        folder, _, name = archive.rpartition("/")
        split = next((split for split, word in _SPLITS.items() if folder == f"{layout.folder}/{word}"), None)
        if split is None or stem(name) == name:
            return None
        if layout.of_class is None or split == "test":
            return split, UNLABELED
        return self._classes.get(stem(archive))


def archives_of_clip(base: str, catalog: Catalog, clip: Clip) -> list[str]:
    """Return the names of the class archives that should contain a clip; none if the archives mix classes.

    In a folder, only existing archives are named, and their suffix may differ from that in the public bucket.

    Args:
        base: location of all archives.
        catalog: catalog that has the clip.
        clip: the clip.
    """
    names = []
    for entry in catalog.locate(clip):
        directory = catalog.directory(entry.directory)
        if directory is None or directory.label is None:
            continue
        name = archive_of_class(catalog.release, directory.split, directory.label, catalog.labels())
        if name is not None and is_remote(base):
            names.append(name)
        elif name is not None:
            names += [found for end in _SUFFIXES if (found := _existing(base, f"{stem(name)}{end}"))][:1]
    return list(dict.fromkeys(names))


def _existing(base: str, name: str) -> str | None:
    """Return the name of an archive in a folder, which is shorter if the folder has no levels; None if it is not there.

    A short name does not say from which split the archive is.
    """
    path = _local_path(base, name)
    if not path.is_file():
        return None
    return path.name if path.parent == Path(base) else name


def names_split(name: str) -> bool:
    """Return whether the name of an archive says of which release and split it is."""
    return "/" in name


def stem(name: str) -> str:
    """Return the name of an archive without the suffix of its format."""
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name)
