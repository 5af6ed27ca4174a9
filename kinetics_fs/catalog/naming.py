"""Words from outside and the names they become: splits, class labels and the folders that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from kinetics_fs.errors import CatalogError

UNLABELED = "_unlabeled"
"""The folder of clips without a label, as FiftyOne's zoo calls it. No label may have this name."""

SPLITS = ("train", "validation", "test")
"""Every split, in the order in which they are listed."""

_SPLIT_WORDS = {
    "train": "train",
    "val": "validation",  # ActivityNet's crawler, CVDF
    "validate": "validation",  # DeepMind, and the ActivityNet files of 700-2020
    "validation": "validation",  # FiftyOne, and our own word
    "test": "test",
    "holdout_test": "test",  # the second test list of Kinetics-600
}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONGEST_NAME = 255  # bytes: what Linux and macOS allow for one component of a path
_TORCHVISION = str.maketrans({" ": "_", "'": None, "(": None, ")": None})


class ClassNames(StrEnum):
    """How the folder of a class is named."""

    RAW = "raw"
    """The label as it is: `massaging person's head`. As in ActivityNet, CVDF and FiftyOne."""
    UNDERSCORE = "underscore"
    """Spaces become `_`: `massaging_person's_head`. As in mmaction2 and Showmax's downloader."""
    TORCHVISION = "torchvision"
    """Also without `'`, `(` and `)`: `massaging_persons_head`. As in torchvision and on Hugging Face."""


def split_name(word: str) -> str | None:
    """The split (one of `SPLITS`) that an annotation file or a person means by `word`, or None."""
    return _SPLIT_WORDS.get(word.strip().lower())


def class_name(label: str, style: ClassNames) -> str:
    """The folder name of a class. `UNLABELED` is the same in every style."""
    match style:
        case ClassNames.RAW:
            return label
        case ClassNames.UNDERSCORE:
            return label.replace(" ", "_")
        case ClassNames.TORCHVISION:
            return label.translate(_TORCHVISION)


def name_table(labels: Iterable[str], style: ClassNames) -> dict[str, str]:
    """Folder name → label, in the order of `labels`.

    Raises:
        CatalogError: two labels would share a folder, or one would have a name that cannot be used.
    """
    table: dict[str, str] = {}
    for label in labels:
        name = class_name(label, style)
        if label != UNLABELED and (fault := name_fault(name)):
            raise CatalogError(f'class "{label}" cannot be named in the {style} style: {fault}')
        other = table.setdefault(name, label)
        if other != label:
            raise CatalogError(f'classes "{other}" and "{label}" are both "{name}" in the {style} style')
    return table


def name_fault(name: str) -> str | None:
    """Why `name` cannot be the folder of a class, in a few words that many rows may share; None if it can."""
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
    return "label is too long" if size > _LONGEST_NAME else None
