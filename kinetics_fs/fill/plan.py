"""Which archives hold a selection, and which of them were done before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from kinetics_fs.catalog import Catalog
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.layout import archive_of_class, list_archives, stem
from kinetics_fs.util.files import atomic_write


def archives_holding(base: str, catalog: Catalog, *, whole: bool) -> list[str]:
    """The names of the archives that hold the clips of a catalog, those of replacements first.

    Args:
        base: where all archives are: an http(s) or s3 address, or a folder.
        catalog: a release, or a selection from it.
        whole: it has all classes of its release, so that all archives of its splits are wanted.

    Raises:
        FetchError, ArchiveError: the archives that are there cannot be found out.
    """
    labels = catalog.labels()
    names: list[str] = []
    for split in catalog.splits():
        there = list_archives(base, catalog.release, split.split)
        classes = [str(directory.label) for directory in catalog.classes(split)]
        if not whole:
            wanted = [archive_of_class(catalog.release, split.split, label, labels) for label in classes]
            by_class = {stem(name): name for name in wanted if name is not None}
            if len(by_class) == len(classes):
                found = {stem(name): name for name in there}
                there = [found.get(key, name) for key, name in by_class.items()]
        names += there
    return sorted(dict.fromkeys(names), key=lambda name: not is_replacement(name))


def is_replacement(name: str) -> bool:
    """Whether an archive was published in place of broken clips of others, and so must be read before them."""
    return "replacement" in name


def remember_done(states: Path, name: str, version: Version) -> None:
    """Writes down that an archive was passed over to its end."""
    states.mkdir(parents=True, exist_ok=True)
    with atomic_write(_mark(states, name), durable=False) as file:
        file.write(json.dumps([version.size, version.etag]).encode())


def was_done(states: Path, name: str, version: Version) -> bool:
    """Whether this version of an archive was passed over to its end."""
    try:
        size, etag = json.loads(_mark(states, name).read_text())
    except (OSError, ValueError, TypeError):  # none, or one that a power cut has damaged
        return False
    return Version(size, etag).matches(version)


def _mark(states: Path, name: str) -> Path:
    return states / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.done"
