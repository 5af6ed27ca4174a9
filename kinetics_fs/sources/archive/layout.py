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
    return f"{base.rstrip('/')}/{quote(name)}" if is_remote(base) else str(Path(base, name))


def list_archives(base: str, release: str, split: str) -> list[str]:
    """Return the names of the archives of a split: from the published list, or the existing files of a folder.

    An archive of replacements comes first. A reader that keeps the first copy of each clip then has the right one.

    Args:
        base: location of all archives.
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.

    Raises:
        FetchError: the list cannot be read, or the folder does not exist.
        ArchiveError: the file is not a list of archives.
    """
    if is_remote(base):
        return published_archives(base, release, split)
    layout, word = _LAYOUTS[release], _SPLITS[split]
    folder = f"{layout.folder}/{word}"
    names = []
    if split == "train" and layout.replacements and Path(base, layout.replacements).exists():
        names.append(layout.replacements)
    try:
        found = sorted(path.name for path in Path(base, folder).iterdir())
    except OSError as error:
        raise FetchError(
            FailureKind.CONFIG,
            f"cannot list the archives in {Path(base, folder)}: {error.strerror}; check --archive-url",
        ) from error
    return names + [f"{folder}/{name}" for name in found if stem(name) != name and not name.startswith(".")]


def published_archives(base: str, release: str, split: str) -> list[str]:
    """Return the names of the archives in the published list of a split, replacements first.

    Args:
        base: location of all archives, which has the list.
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.

    Raises:
        FetchError: the list cannot be read.
        ArchiveError: the file is not a list of archives.
    """
    layout, word = _LAYOUTS[release], _SPLITS[split]
    folder = f"{layout.folder}/{word}"
    names = [layout.replacements] if split == "train" and layout.replacements else []
    lists = open_archive(archive_address(base, f"{folder}/{layout.lists.format(split=word)}"))
    try:
        lines = read_small(lists, _MAX_LIST).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"cannot read {lists.address}: it is not a list of archives") from error
    # The list has addresses in the public bucket, also on mirrors, so only the last part of each is used.
    for line in filter(None, map(str.strip, lines)):
        name = unquote(line.rsplit("/", 1)[-1])
        if not stem(name) or stem(name) == name:
            raise ArchiveError(f"cannot read {lists.address}: it is not a list of archives: {line[:100]!r}")
        names.append(check_name(f"{folder}/{name}"))
    if not names or names == [layout.replacements]:
        raise ArchiveError(f"cannot read {lists.address}: it is an empty list of archives")
    return names


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
            names += [f"{stem(name)}{end}" for end in _SUFFIXES if Path(base, f"{stem(name)}{end}").is_file()][:1]
    return list(dict.fromkeys(names))


def stem(name: str) -> str:
    """Return the name of an archive without the suffix of its format."""
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name)
