"""What exists: the annotations of Kinetics, compiled into one file that everything else asks.

The story of a catalog:

1. `find_release` knows the releases and where their annotations are; `fetch_annotations` keeps copies of them.
2. `read_annotations` reads every dialect they come in, row by row, and refuses the rows that must not become a path.
3. `compile_catalog` sorts the rows into one SQLite file, named by a hash of what went into it: it is built when that
   changes and opened in milliseconds otherwise. Each entry has an inode number that never changes.
4. `select` takes a part of it, which is a catalog again.
5. `Catalog` answers: splits, classes, clips, and where a clip stands. It holds no clip in memory.

`open_catalog` does all of this. A clip is (YouTube id, start, end), its label is raw; how a class folder is named is a
view of that label (`ClassNames`, `class_name`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kinetics_fs.catalog.annotations import Annotation, Refusal, read_annotations
from kinetics_fs.catalog.catalog import Catalog, ClipPosition, Directory, Entry, Refusals
from kinetics_fs.catalog.clip import KEY_LENGTH, Clip, parse_clip_name
from kinetics_fs.catalog.compile import compile_catalog
from kinetics_fs.catalog.download import fetch_annotations
from kinetics_fs.catalog.naming import SPLITS, UNLABELED, ClassNames, class_name, name_table, split_name
from kinetics_fs.catalog.releases import RELEASES, Release, find_release
from kinetics_fs.catalog.selection import Selection, only, select
from kinetics_fs.errors import CatalogError

__all__ = [
    "KEY_LENGTH",
    "RELEASES",
    "SPLITS",
    "UNLABELED",
    "Annotation",
    "Catalog",
    "ClassNames",
    "Clip",
    "ClipPosition",
    "Directory",
    "Entry",
    "Refusal",
    "Refusals",
    "Release",
    "Selection",
    "class_name",
    "compile_catalog",
    "fetch_annotations",
    "find_release",
    "name_table",
    "only",
    "open_catalog",
    "parse_clip_name",
    "read_annotations",
    "select",
    "split_name",
]


def open_catalog(
    release: Release, annotations: Sequence[str], selection: Selection, folder: Path, *, downloads: Path
) -> Catalog:
    """The catalog of a selection from a release, fetched, compiled and cached in `folder` as far as needed.

    Args:
        release: what the files are of; gives the catalog its name and date.
        annotations: paths or http(s) URLs that replace the release's own; none means the release's own.
        selection: what to take of it.
        folder: folder of the catalogs. Created if it is missing.
        downloads: folder of the downloaded annotations. Created if it is missing.

    Raises:
        CatalogError: something of this cannot be had, read or written, or the selection matches nothing.
    """
    files = [_local(place, downloads) for place in annotations or release.annotations]
    whole = Catalog(compile_catalog(files, release, folder))
    try:
        selected = select(whole, selection, folder)
    except BaseException:
        whole.close()
        raise
    if selected is not whole:
        whole.close()
    return selected


def _local(place: str, downloads: Path) -> Path:
    scheme, separator, _ = place.partition("://")
    if not separator:
        return Path(place)
    if scheme.lower() not in ("http", "https"):
        raise CatalogError(f"annotations can come from a path, http or https, not from {place}")
    return fetch_annotations(place, downloads)
