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

from typing import TYPE_CHECKING

from kinetics_fs.util.lazy import import_on_use

if TYPE_CHECKING:
    from kinetics_fs.catalog.annotations import read_annotations
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
    from kinetics_fs.catalog.opening import open_catalog
    from kinetics_fs.catalog.progress import CatalogProgress
    from kinetics_fs.catalog.releases import RELEASES, Release, find_release
    from kinetics_fs.catalog.rows import Annotation, Refusal
    from kinetics_fs.catalog.selection import Selection, draw_seed, select, select_clips

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

__getattr__ = import_on_use(
    __name__,
    {
        "annotations": "read_annotations",
        "catalog": "Catalog ClipPosition Directory Entry Origin Refusals origins_to_json",
        "clip": "KEY_LENGTH Clip parse_clip_name",
        "compile": "AnnotationList ArchiveClips compile_catalog",
        "download": "fetch_annotations",
        "file_names": "FileName parse_file_name",
        "naming": "SPLITS UNLABELED ClassNames class_name name_table split_name split_of_file_name",
        "progress": "CatalogProgress",
        "releases": "RELEASES Release find_release",
        "rows": "Annotation Refusal",
        "selection": "Selection draw_seed select select_clips",
        "opening": "open_catalog",
    },
)
