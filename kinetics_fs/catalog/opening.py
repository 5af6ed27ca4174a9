"""Opening the catalog of a selection: download, compile, select."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kinetics_fs.catalog.catalog import Catalog
from kinetics_fs.catalog.compile import AnnotationList, ArchiveClips, compile_catalog
from kinetics_fs.catalog.download import fetch_annotations
from kinetics_fs.catalog.progress import CatalogProgress
from kinetics_fs.catalog.releases import Release
from kinetics_fs.catalog.selection import Selection, resolve_splits, select
from kinetics_fs.errors import CatalogError

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
