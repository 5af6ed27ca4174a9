"""The values of one row of a list of annotations, whatever its format, and the checks that each must pass.

Labels become folders and ids become file names, so both are checked here, and nowhere after this.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from typing import NamedTuple

from kinetics_fs.catalog.clip import LAST_SECOND, Clip
from kinetics_fs.catalog.naming import UNLABELED, name_fault, split_name

MAX_ROW = 1 << 16
"""Maximum length of a row: bytes of a line, characters of a JSON entry. Real rows have about a hundred."""

NO_SPLIT = "no split"
"""The reason to refuse a row that names no split, in a list whose split is unknown."""

_SECONDS = re.compile(r"([0-9]{1,15})(?:[.,]0{0,9})?")
_URL = re.compile(
    r"https?://(?:[a-z]+\.)*(?:youtube\.com|youtu\.be|youtube-nocookie\.com)/"
    r"(?:[a-z]+/|watch\?(?:[^\s,;|]{0,100}&)?v=)?([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])[^\s,;|]*",
    re.IGNORECASE,
)


class Annotation(NamedTuple):
    """A valid row. `split` is one of `SPLITS`. `label` is a valid folder name; `UNLABELED` if the row has no label."""

    split: str
    label: str
    clip: Clip


class Refusal(NamedTuple):
    """A row that was refused.

    Attributes:
        file: base name of the file; `archive:member` in an archive.
        line: number of the physical line, or of the entry in a JSON file, from 1.
        reason: a short phrase that does not depend on the row.
        text: the row, shortened and escaped.
    """

    file: str
    line: int
    reason: str
    text: str


class BadRow(Exception):
    """The row must be refused. The message is the reason."""


def decoded(line: bytes) -> str:
    """Return the text of a line.

    Raises:
        BadRow: the line is too long, or is not UTF-8.
    """
    if len(line) > MAX_ROW:
        raise BadRow("row is too long")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None


def fields(text: str, separator: str) -> list[str]:
    """Return the fields of a line, which may be quoted.

    Raises:
        BadRow: the quotes do not match.
    """
    if '"' not in text:
        return text.split(separator)
    try:
        values = next(csv.reader([text], strict=True, delimiter=separator))
    except csv.Error:
        raise BadRow("quotes do not match") from None
    if '""' not in text and any('"' in value for value in values):
        raise BadRow("quotes do not match")  # the second half of a field with a line break in it
    return values


def without_urls(text: str) -> str:
    """Return `text` with the id of the video in place of each address of a video on YouTube."""
    return _URL.sub(r"\1", text) if "://" in text else text


def is_number(text: str) -> bool:
    """Return whether a field is a number: of a class, of a row or of frames."""
    return text.removeprefix("-").replace(".", "", 1).isdecimal()


def annotation(split_word: str, label: str, youtube_id: str, start: int, end: int) -> Annotation:
    """Return the row that has these values.

    Args:
        split_word: the word for the split; "" if there is none.
        label: the label; "" if there is none.
        youtube_id: a valid id of a video.
        start: seconds of the video.
        end: seconds of the video.

    Raises:
        BadRow: a value is invalid.
    """
    if end <= start:
        raise BadRow("ends before it begins")
    return Annotation(_split(split_word), _label(label), Clip(youtube_id, start, end))


# These columns have few different values, so each is checked once. Only valid ones, which are short, are cached.


@lru_cache(maxsize=64)
def _split(word: str) -> str:
    split = split_name(word)
    if split is None:
        raise BadRow("unknown split" if word else NO_SPLIT)
    return split


@lru_cache(maxsize=4096)
def _label(label: str) -> str:
    if not label:
        return UNLABELED
    if fault := name_fault(label):
        raise BadRow(fault)
    return label


@lru_cache(maxsize=4096)
def seconds(text: str) -> int:
    """Return a time in whole seconds.

    Raises:
        BadRow: the text is not a whole number, or is too large.
    """
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise BadRow("time is not a whole number of seconds")
    number = int(match[1])
    if number > LAST_SECOND:
        raise BadRow("time is too large")
    return number
