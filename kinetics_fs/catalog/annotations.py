"""A reader for annotations in every published dialect. It refuses the rows that must not become a path.

CSV, as the crawler of ActivityNet, CVDF and DeepMind write it: a header names the columns, in any order, quoted or not.
`youtube_id`, `time_start` and `time_end` are required. `label` may be missing (unlabelled test lists), `split` may be
missing if the caller knows the split, and others (`is_cc`) are ignored. Or the JSON of DeepMind::

    {"---QUuC4vJs": {"annotations": {"label": "testifying", "segment": [84.0, 94.0]}, "subset": "validate", …}, …}

A file is read as a stream, one row at a time, and no row affects another: each physical line is parsed alone, so that a
quote without an end costs one row and not the rest of the file. (No field of this format contains a line break.) Labels
become folders and ids become file names, so both are checked here, and nowhere after this.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kinetics_fs.catalog.clip import LAST_SECOND, YOUTUBE_ID, Clip
from kinetics_fs.catalog.containers import annotation_lists, escaped, head_of_list, readable
from kinetics_fs.catalog.naming import UNLABELED, name_fault, split_name, split_of_file_name
from kinetics_fs.errors import CatalogError

MAX_ROW = 1 << 16
"""Maximum length of a row: bytes of a line, characters of a JSON entry. Real rows have about a hundred."""

_REQUIRED = ("youtube_id", "time_start", "time_end")
_SECONDS = re.compile(r"([0-9]{1,15})(?:\.0{0,9})?")
_BLANK = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


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


class _BadRow(Exception):
    """The row must be refused. The message is the reason."""


def read_annotations(path: Path, *, split: str | None = None) -> Iterator[Annotation | Refusal]:
    """Yield every row of a file, in file order: valid ones as `Annotation`, the others as `Refusal`.

    Args:
        path: a list, or a gzip, tar or tar.gz with lists; the content decides which.
        split: the split (one of `SPLITS`) of rows that name none. In an archive, the name of each list gives it.

    Raises:
        CatalogError: the file cannot be read, has no usable header, has no valid row, or names no split.
    """
    with readable(path):
        for name, member, stream in annotation_lists(path):
            yield from _read_list(name, stream, split_of_file_name(member) if member else split)


def needs_split(path: Path) -> bool:
    """Return whether `read_annotations` uses its argument `split` for this file. Only the first bytes are read.

    Raises:
        CatalogError: the file cannot be read, or has no usable header.
    """
    with readable(path):
        head = head_of_list(path)
    if not head:
        return False
    stream: io.BufferedReader = io.BufferedReader(io.BytesIO(head))
    if _is_json(stream):
        return b'"subset"' not in head
    return _header(escaped(path.name), _lines(stream)).split is None


def _read_list(name: str, stream: io.BufferedReader, split: str | None) -> Iterator[Annotation | Refusal]:
    rows = _read_json(name, stream, split) if _is_json(stream) else _read_csv(name, stream, split)
    first_refusal = None
    any_valid = False
    for row in rows:
        if isinstance(row, Annotation):
            any_valid = True
        elif first_refusal is None:
            first_refusal = row
        yield row
    if not any_valid:
        why = f"row {first_refusal.line}: {first_refusal.reason}" if first_refusal else "there are no rows"
        raise CatalogError(f"cannot read {name}: it has no usable row; {why}")


def _is_json(stream: io.BufferedReader) -> bool:
    return stream.peek(1)[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


# CSV --------------------------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """The number of fields in a row, and the position of each field that is used."""

    width: int
    youtube_id: int
    start: int
    end: int
    split: int | None
    label: int | None


def _read_csv(name: str, stream: io.BufferedReader, split: str | None) -> Iterator[Annotation | Refusal]:
    lines = _lines(stream)
    columns = _header(name, lines)
    if columns.split is None and split is None:
        raise CatalogError(
            f"cannot read {name}: its rows have no split; add a column split, name the file after its split"
            " (train.csv), or give one --split"
        )
    for number, line in lines:
        try:
            yield _parse_line(line, columns, split)
        except _BadRow as bad:
            yield Refusal(name, number, str(bad), escaped(line[:800].decode("utf-8", "backslashreplace")))


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, numbered and stripped. A line beyond `MAX_ROW` is cut to just beyond it."""
    readline = stream.readline
    number = 0
    while line := readline(MAX_ROW + 2):
        number += 1
        if not line.endswith(b"\n"):
            while (rest := readline(MAX_ROW)) and not rest.endswith(b"\n"):
                pass
        if line := line.strip():
            yield number, line


def _header(name: str, lines: Iterator[tuple[int, bytes]]) -> _Columns:
    _, line = next(lines, (0, b""))
    try:
        fields = _fields(line.removeprefix(b"\xef\xbb\xbf"))
    except _BadRow as bad:
        raise CatalogError(f"cannot read {name}: it is not a list of annotations; its first line: {bad}") from None
    names = [field.strip().lower() for field in fields]
    if missing := [column for column in _REQUIRED if column not in names]:
        raise CatalogError(
            f"cannot read {name}: it is not a list of annotations; its header has no {', '.join(missing)}"
        )
    youtube_id, start, end = (names.index(column) for column in _REQUIRED)
    split = names.index("split") if "split" in names else None
    label = names.index("label") if "label" in names else None
    return _Columns(len(names), youtube_id, start, end, split, label)


def _fields(line: bytes) -> list[str]:
    if len(line) > MAX_ROW:
        raise _BadRow("row is too long")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _BadRow("not UTF-8") from None
    if '"' not in text:
        return text.split(",")
    try:
        fields = next(csv.reader([text], strict=True))
    except csv.Error:
        raise _BadRow("quotes do not match") from None
    if '""' not in text and any('"' in field for field in fields):
        raise _BadRow("quotes do not match")  # the second half of a field with a line break in it
    return fields


def _parse_line(line: bytes, columns: _Columns, split: str | None) -> Annotation:
    fields = _fields(line)
    if len(fields) != columns.width:
        raise _BadRow("wrong number of fields")
    return _annotation(
        ("" if columns.split is None else fields[columns.split].strip()) or split or "",
        "" if columns.label is None else fields[columns.label].strip(),
        fields[columns.youtube_id].strip(),
        _seconds(fields[columns.start].strip()),
        _seconds(fields[columns.end].strip()),
    )


# JSON -------------------------------------------------------------------------------------------------------------


def _read_json(name: str, stream: io.BufferedReader, split: str | None) -> Iterator[Annotation | Refusal]:
    for number, (key, entry) in enumerate(_json_entries(name, stream), start=1):
        try:
            yield _parse_entry(key, entry, split)
        except _BadRow as bad:
            yield Refusal(name, number, str(bad), escaped(f"{key}: {entry!r}"))


def _json_entries(name: str, stream: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    """Yield the entries of one large JSON object, with only a window of it in memory.

    The window is always longer than the longest entry, or reaches the end of the file. An entry that fails to decode is
    therefore invalid or too long, and never just cut by the window.
    """
    # Bytes that are not UTF-8 must not cost the whole file: they become surrogates, which no valid row contains.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    window = ""
    at = 0

    def skip_blanks() -> str:
        nonlocal at
        at = _BLANK.match(window, at).end()  # type: ignore[union-attr]  # it matches the empty string
        return window[at : at + 1]

    def broken(error: object) -> NoReturn:
        raise CatalogError(f"cannot read {name}: it is not valid JSON near its entry {count + 1:,} ({error})")

    count = 0
    while True:
        if len(window) - at <= 2 * MAX_ROW:
            window = window[at:] + text.read(16 * MAX_ROW)
            at = 0
        opening = skip_blanks()
        if (opening == "}" and count) or window[at : at + 2] == "{}":
            return
        if opening != ("," if count else "{"):
            broken("entries are not parted by commas" if opening else "it is cut short")
        at += 1
        skip_blanks()
        start = at
        try:
            key, at = _DECODER.raw_decode(window, at)
            if skip_blanks() != ":" or not isinstance(key, str):
                broken("an entry has no name")
            at += 1
            skip_blanks()
            entry, at = _DECODER.raw_decode(window, at)
        except (ValueError, RecursionError) as error:
            broken(error)
        if at - start > MAX_ROW:
            broken("an entry is too long")
        count += 1
        yield key, entry


def _parse_entry(youtube_id: str, entry: Any, split: str | None) -> Annotation:
    match entry:
        case {"annotations": {"segment": [start, end], **others}}:
            label = others.get("label")
        case _:
            raise _BadRow("entry lacks a field")
    subset = entry.get("subset", split)
    if not isinstance(subset, str):
        raise _BadRow("entry lacks a field")
    if not isinstance(label, str | None):
        raise _BadRow("label is not text")
    return _annotation(subset.strip(), (label or "").strip(), youtube_id, _seconds(str(start)), _seconds(str(end)))


# Both formats --------------------------------------------------------------------------------------------


def _annotation(split_word: str, label: str, youtube_id: str, start: int, end: int) -> Annotation:
    if not YOUTUBE_ID.fullmatch(youtube_id):
        raise _BadRow("bad YouTube id")
    if end <= start:
        raise _BadRow("ends before it begins")
    return Annotation(_split(split_word), _label(label), Clip(youtube_id, start, end))


# These columns have few different values, so each is checked once. Only valid ones, which are short, are cached.


@lru_cache(maxsize=64)
def _split(word: str) -> str:
    split = split_name(word)
    if split is None:
        raise _BadRow("unknown split")
    return split


@lru_cache(maxsize=4096)
def _label(label: str) -> str:
    if not label:
        return UNLABELED
    if fault := name_fault(label):
        raise _BadRow(fault)
    return label


@lru_cache(maxsize=4096)
def _seconds(text: str) -> int:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise _BadRow("time is not a whole number of seconds")
    seconds = int(match[1])
    if seconds > LAST_SECOND:
        raise _BadRow("time is too large")
    return seconds
