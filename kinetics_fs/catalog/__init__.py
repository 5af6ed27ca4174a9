"""The catalog: the annotations of Kinetics, compiled into one file that says which clips exist.

How a catalog is made:

1. `find_release` has the releases and the addresses of their annotations; `fetch_annotations` keeps copies of them.
2. `read_annotations` reads every dialect, row by row, and refuses the rows that must not become a path.
3. `compile_catalog` sorts the rows, and the clips of archives that no list names, into one SQLite file, named by a hash
   of its input: it is built when the input changes, and otherwise opened in milliseconds. Each entry has an inode
   number that never changes.
4. `select` makes a part of it, which is again a catalog.
5. `Catalog` answers queries for splits, classes, clips and positions. It keeps no clip in memory.

`open_catalog` does all of this. A clip is (YouTube id, start, end); its label is the raw one. The name of a class
folder is derived from the label (`ClassNames`, `class_name`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kinetics_fs.catalog.annotations import Refusal, read_annotations
from kinetics_fs.catalog.catalog import Catalog, ClipPosition, Directory, Entry, Origin, Refusals, origins_to_json
from kinetics_fs.catalog.clip import KEY_LENGTH, Clip, parse_clip_name
from kinetics_fs.catalog.compile import AnnotationList, ArchiveClips, compile_catalog
from kinetics_fs.catalog.download import fetch_annotations
from kinetics_fs.catalog.file_names import FileName, parse_file_name
from kinetics_fs.catalog.naming import (
    SPLITS,
    UNLABELED,
    ClassNames,
    class_name,
    name_table,
    split_name,
    split_of_file_name,
)
from kinetics_fs.catalog.progress import CatalogProgress
from kinetics_fs.catalog.releases import RELEASES, Release, find_release
from kinetics_fs.catalog.rows import Annotation
from kinetics_fs.catalog.selection import Selection, draw_seed, resolve_splits, select, select_clips
from kinetics_fs.errors import CatalogError

__all__ = [
    "KEY_LENGTH",
    "RELEASES",
    "SPLITS",
    "UNLABELED",
    "Annotation",
    "AnnotationList",
    "ArchiveClips",
    "Catalog",
    "CatalogProgress",
    "ClassNames",
    "Clip",
    "ClipPosition",
    "Directory",
    "Entry",
    "FileName",
    "Origin",
    "Refusal",
    "Refusals",
    "Release",
    "Selection",
    "class_name",
    "compile_catalog",
    "draw_seed",
    "fetch_annotations",
    "find_release",
    "name_table",
    "open_catalog",
    "origins_to_json",
    "parse_clip_name",
    "parse_file_name",
    "read_annotations",
    "select",
    "select_clips",
    "split_name",
    "split_of_file_name",
]

_log = logging.getLogger(__name__)


def open_catalog(
    release: Release,
    annotations: Sequence[str],
    selection: Selection,
    folder: Path,
    *,
    downloads: Path,
    archives: ArchiveClips | None = None,
    unavailable: Collection[str] = (),
    progress: CatalogProgress | None = None,
) -> Catalog:
    """Open the catalog of a selection from a release; download and compile the annotations if necessary.

    A list of the release that cannot be downloaded or read costs only the clips that no other list names, and a
    warning.

    Args:
        release: the release; gives the catalog its name and date.
        annotations: paths or http(s) URLs that replace the annotations of the release; empty for its own.
        selection: the part of the release.
        folder: folder of the catalogs. Created if it is missing.
        downloads: folder of the downloaded annotations. Created if it is missing.
        archives: more clips, in archives of whole classes.
        unavailable: `Clip.key` of the clips that are known to be unavailable, for `Selection.available`.
        progress: receives the progress.

    Raises:
        CatalogError: the annotations cannot be downloaded or read, the catalog cannot be written, or the selection
            matches nothing.
    """
    if annotations:
        lists = [AnnotationList(_local(location, downloads, progress)) for location in annotations]
    else:
        lists = _lists_of(release, downloads, progress)
    # A file of the user's own need not repeat what --split says already.
    splits = resolve_splits(selection.splits)
    split = splits[0] if annotations and len(splits) == 1 else None
    path = compile_catalog(
        lists, release, folder, split=split, union=not annotations, archives=archives, progress=progress
    )
    whole = Catalog(path)
    try:
        selected = select(whole, selection, folder, unavailable)
    except BaseException:
        whole.close()
        raise
    if selected is not whole:
        whole.close()
    return selected


def _lists_of(release: Release, downloads: Path, progress: CatalogProgress | None) -> list[AnnotationList]:
    """Return the lists of a release that can be downloaded.

    Raises:
        CatalogError: none can be downloaded.
    """
    with ThreadPoolExecutor(len(release.annotations)) as pool:
        copies = [pool.submit(_local, location, downloads, progress) for location in release.annotations]
    lists = []
    for location, copy in zip(release.annotations, copies, strict=True):
        undocumented = location.endswith(".txt")
        try:
            lists.append(AnnotationList(copy.result(), known_labels=undocumented))
        except CatalogError as error:
            if all(other.exception() for other in copies):
                raise
            _log.warning("%s; clips that no other list names are left out", error)
    return lists


def _local(location: str, downloads: Path, progress: CatalogProgress | None) -> Path:
    scheme, separator, _ = location.partition("://")
    if not separator:
        return Path(location)
    if scheme.lower() not in ("http", "https"):
        raise CatalogError(f"cannot download {location}: annotations come from a path, http or https")
    return fetch_annotations(location, downloads, progress=progress)
