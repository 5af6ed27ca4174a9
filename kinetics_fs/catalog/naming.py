"""Names of splits and classes: the words that annotations use for them, and the names of their folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from kinetics_fs.errors import CatalogError

UNLABELED = "_unlabeled"
"""The folder of clips without a label, with the name that the zoo of FiftyOne uses. Reserved: no label may be this."""

SPLITS = ("train", "validation", "test")
"""All splits, in listing order."""

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",  # ActivityNet's crawler, CVDF
    "valid": "validation",
    "validate": "validation",  # DeepMind, and the ActivityNet files of 700-2020
    "validating": "validation",
    "validation": "validation",  # FiftyOne, and the name used here
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "holdout_test": "test",  # the second test list of Kinetics-600
}

_COMMON_WORDS = {
    *("k", "kinetics", "dataset", "datasets", "data", "set", "split", "splits", "part", "full", "all", "mini", "tiny"),
    *("video", "videos", "vid", "vids", "clip", "clips", "raw", "rgb", "mp", "p", "px", "fps", "short", "side", "edge"),
    *("resize", "resized", "compress", "compressed", "processed", "download", "downloads", "downloaded", "extracted"),
    *("home", "mnt", "tmp", "media", "storage", "scratch", "files", "targz", "replacement", "for", "corrupted"),
}
"""Words in the names of folders that hold a split or a dataset."""

_WORD = re.compile(r"[^\W\d_]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_NAME_BYTES = 255  # limit of Linux and macOS for one component of a path
_TORCHVISION = str.maketrans({" ": "_", "'": None, "(": None, ")": None})


class ClassNames(StrEnum):
    """A style for the folder names of classes."""

    RAW = "raw"
    """The label itself: `massaging person's head`. As in ActivityNet, CVDF and FiftyOne."""
    UNDERSCORE = "underscore"
    """Spaces become `_`: `massaging_person's_head`. As in mmaction2 and Showmax's downloader."""
    TORCHVISION = "torchvision"
    """Also without `'`, `(` and `)`: `massaging_persons_head`. As in torchvision and on Hugging Face."""


def split_name(word: str) -> str | None:
    """Return the split (one of `SPLITS`) for a word of an annotation file or a user; None if there is no such split."""
    return _SPLIT_WORDS.get(word.strip().lower().replace(" ", "_").replace("-", "_"))


def split_of_file_name(name: str) -> str | None:
    """Return the split that the name of an annotation file mentions; None if it mentions none, or several.

    Args:
        name: a base name, such as `train.csv`, `kinetics_700_test.csv` or `k600_val.txt.gz`.
    """
    words = (word.removesuffix("list") for word in _WORD.findall(name.lower()))
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder holds, such as `val`, `train_256` or `k400_videos_test`.

    Returns:
        "" if the folder holds a dataset or part of one (`data`, `kinetics600`, `12`), and None if its name may be that
        of a class.
    """
    words = set(_WORD.findall(name.lower())) - _COMMON_WORDS
    if not words <= _SPLIT_WORDS.keys():
        return None
    splits = {_SPLIT_WORDS[word] for word in words}
    return splits.pop() if len(splits) == 1 else ""


def class_name(label: str, style: ClassNames) -> str:
    """Return the folder name of a class. `UNLABELED` is the same in every style."""
    match style:
        case ClassNames.RAW:
            return label
        case ClassNames.UNDERSCORE:
            return label.replace(" ", "_")
        case ClassNames.TORCHVISION:
            return label.translate(_TORCHVISION)


def name_table(labels: Iterable[str], style: ClassNames) -> dict[str, str]:
    """Return a table of folder name → label, in the order of `labels`.

    Raises:
        CatalogError: two labels would share a folder, or a folder name is invalid.
    """
    table: dict[str, str] = {}
    for label in labels:
        name = class_name(label, style)
        if label != UNLABELED and (fault := name_fault(name)):
            raise CatalogError(f'cannot name the folder of class "{label}" in the {style} style: {fault}')
        other = table.setdefault(name, label)
        if other != label:
            raise CatalogError(
                f'cannot name the folders of classes "{other}" and "{label}" in the {style} style: both would be'
                f' "{name}"; choose another --class-names'
            )
    return table


def name_fault(name: str) -> str | None:
    """Return why `name` is invalid as the folder of a class, as a phrase without the name; None if it is valid."""
    if not name or name in (".", ".."):
        return "label is not a name"
    if name == UNLABELED:
        return "label is reserved"
    if "/" in name:
        return "label has a slash"
    if _CONTROL.search(name):
        return "label has a control character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate: JSON can write one, UTF-8 cannot
        return "not UTF-8"
    return "label is too long" if size > _MAX_NAME_BYTES else None
