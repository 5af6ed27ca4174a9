"""Which archives there are, and which of them holds a class.

The layout is that of the Common Visual Data Foundation's public bucket, in which each split has a list of its archives;
its read-me and scripts (github.com/cvdfoundation/kinetics-dataset) tell the rest. Archives are named by their path in
it, as `600/val/pull ups.tar.gz`, wherever they are: in the bucket, in a copy on another server, or in a folder.

=========  ===========  =====================================================================================
release    split        archives
=========  ===========  =====================================================================================
400        all          numbered parts of about 1,000 clips, classes mixed; one more replaces broken clips of train
600        train, val   one for each class, by its label, spaces and parentheses and all
600        test         numbered parts, classes mixed
700-2020   train, val   one for each class, numbered from 001 in the order of the sorted labels
700-2020   test         numbered parts, classes mixed
=========  ===========  =====================================================================================

700 has no archives of its own; those of 700-2020 hold nearly all of its clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.sources.archive.index import check_name
from kinetics_fs.sources.archive.reader import open_archive, read_small

_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_CLASSES_OF_700 = 700
_LARGEST_LIST = 4 * 1024 * 1024
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class _Layout(NamedTuple):
    folder: str
    lists: str
    """The list of a split's archives, in the folder of the split."""
    of_class: str | None
    """The archive of a class, in the folder of a split that has them by class."""
    replacements: str | None = None
    """In place of broken clips of train."""


_700 = _Layout("700_2020", "k700_2020_{split}_path.txt", "k700_{split}_{number:03d}.tar.gz")
_LAYOUTS = {
    "400": _Layout("400", "k400_{split}_path.txt", None, "400/replacement_for_corrupted_k400.tgz"),
    "600": _Layout("600", "k600_{split}_path.txt", "{label}.tar.gz"),
    "700": _700,
    "700-2020": _700,
}


def archive_address(base: str, name: str) -> str:
    """Where an archive is.

    Args:
        base: where all of them are: an http(s) or s3 address, or a folder.
        name: of the archive.

    Raises:
        ArchiveError: it is no name of an archive.
    """
    check_name(name)
    return f"{base.rstrip('/')}/{quote(name)}" if _is_remote(base) else str(Path(base, name))


def archives_of(base: str, release: str, split: str) -> list[str]:
    """The names of the archives of a split: by the list of it, or in a folder those that are there.

    The archive of replacements, where there is one, comes first: who takes the first of each clip has the right one.

    Args:
        base: where they all are.
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.

    Raises:
        FetchError: the list cannot be read, or the folder is not there.
        ArchiveError: it is no such list.
    """
    layout, word = _LAYOUTS[release], _SPLITS[split]
    folder = f"{layout.folder}/{word}"
    names = []
    if split == "train" and layout.replacements and (_is_remote(base) or Path(base, layout.replacements).exists()):
        names.append(layout.replacements)
    if not _is_remote(base):
        try:
            there = sorted(path.name for path in Path(base, folder).iterdir())
        except OSError as error:
            raise FetchError(FailureKind.CONFIG, f"no archives in {Path(base, folder)}: {error.strerror}") from error
        return names + [f"{folder}/{name}" for name in there if stem(name) != name and not name.startswith(".")]
    lists = open_archive(archive_address(base, f"{folder}/{layout.lists.format(split=word)}"))
    try:
        lines = read_small(lists, _LARGEST_LIST).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{lists.address} is no list of archives") from error
    # Only the last part is taken of the addresses in the list: they name the public bucket, whatever server has it.
    for line in filter(None, map(str.strip, lines)):
        name = unquote(line.rsplit("/", 1)[-1])
        if not stem(name) or stem(name) == name:
            raise ArchiveError(f"{lists.address} is no list of archives: {line[:100]!r}")
        names.append(check_name(f"{folder}/{name}"))
    return names


def archive_of_class(release: str, split: str, label: str, labels: Sequence[str]) -> str | None:
    """The name of the archive that holds all clips of a class in a split; None where classes are mixed, or if the
    annotations are somebody's own and do not tell.

    Args:
        release: `400`, `600`, `700` or `700-2020`.
        split: `train`, `validation` or `test`.
        label: of the class.
        labels: of the whole release, which for 700 must be those of 700-2020; they are the same.
    """
    layout, word = _LAYOUTS[release], _SPLITS[split]
    if layout.of_class is None or split == "test" or label not in labels:
        return None
    if layout is _700 and len(labels) != _CLASSES_OF_700:
        return None
    number = sorted(labels).index(label) + 1
    return f"{layout.folder}/{word}/{layout.of_class.format(split=word, label=label, number=number)}"


def archives_of_clip(base: str, catalog: Catalog, clip: Clip) -> list[str]:
    """The names of the archives of the classes that a clip is in, as far as classes have archives of their own.

    In a folder they may end otherwise than in the public bucket, and only those that are there are named.

    Args:
        base: where they all are.
        catalog: in which the clip is.
        clip: which.
    """
    names = []
    for entry in catalog.locate(clip):
        place = catalog.directory(entry.directory)
        if place is None or place.label is None:
            continue
        name = archive_of_class(catalog.release, place.split, place.label, catalog.labels())
        if name is not None and _is_remote(base):
            names.append(name)
        elif name is not None:
            names += [f"{stem(name)}{end}" for end in _SUFFIXES if Path(base, f"{stem(name)}{end}").is_file()][:1]
    return list(dict.fromkeys(names))


def stem(name: str) -> str:
    """The name of an archive without what says how it is packed."""
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name)


def _is_remote(base: str) -> bool:
    return base.startswith(("http://", "https://", "s3://"))
