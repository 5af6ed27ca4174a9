"""Warnings about labels: some that look like one class, and class indexes that have moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from unicodedata import normalize

from kinetics_fs.catalog.containers import escaped
from kinetics_fs.catalog.naming import ClassNames, class_name
from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)


def warn_of_similar_labels(labels: Sequence[str]) -> None:
    """Warn if labels differ only in case, blanks, punctuation or the form of Unicode.

    Args:
        labels: all labels of a catalog.
    """
    first_of: dict[str, str] = {}
    pairs = [(other, label) for label in labels if (other := first_of.setdefault(_folded(label), label)) != label]
    if pairs:
        more = f" and {count(len(pairs) - 1, 'more pair')}" if len(pairs) > 1 else ""
        first, second = map(_quoted, pairs[0])
        _log.warning(
            "the labels %s and %s%s differ only in case, blanks, punctuation or the form of Unicode, but are classes"
            " of their own; if they are the same class, make them equal in the annotations",
            first,
            second,
            more,
        )


def warn_of_moved_indexes(release: str, before: Sequence[str], now: Sequence[str]) -> None:
    """Warn if a class has another index than in the previous edition of the same annotations.

    Args:
        release: name of the release.
        before: all labels of the previous edition, sorted.
        now: all labels, sorted.
    """
    indexes = {label: index for index, label in enumerate(now)}
    moved = [(label, index) for index, label in enumerate(before) if indexes.get(label) != index]
    if moved:
        label, index = moved[0]
        _log.warning(
            "the annotations of Kinetics-%s have changed, and %d class indexes with them: the class %s was %d and is %s"
            " now; for models that use the earlier indexes, name the earlier annotations with --annotations",
            release,
            len(moved),
            _quoted(label),
            index,
            indexes.get(label, "missing"),
        )


def _folded(label: str) -> str:
    plain = class_name(normalize("NFKC", label).replace("\u2019", "'"), ClassNames.TORCHVISION)
    return " ".join(plain.replace("_", " ").replace("-", " ").casefold().split())


def _quoted(label: str) -> str:
    # Two labels that look equal on the screen must look different.
    return f'"{escaped(label)}"' if label.isascii() else f'"{escaped(label)}" ({label!a})'
