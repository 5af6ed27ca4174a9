"""A reader for annotations in every usual form. It refuses the rows that must not become a path.

======  =============================================================================================================
CSV     a header names the columns, in any order and with any of usual names (see `columns`); ActivityNet's crawler,
        CVDF and DeepMind write it, spreadsheets and data frames too, with other separators
lines   one clip in each line, without a header: paths, keys or rows (see `clip_lines`)
JSON    DeepMind's: `{"---QUuC4vJs": {"annotations": {"label": "testifying", "segment": [84.0, 94.0]}, "subset":
        "validate", …}, …}`
======  =============================================================================================================

A file is read as a stream, one row at a time, and no row affects another: each physical line is parsed alone, so that a
quote without an end costs one row and not the rest of the file. (No field of these formats contains a line break.)
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from kinetics_fs.catalog.clip import YOUTUBE_ID
from kinetics_fs.catalog.clip_lines import parse_clip_line
from kinetics_fs.catalog.columns import Columns, Header, find_columns, find_header
from kinetics_fs.catalog.containers import annotation_lists, escaped, head_of_list, readable
from kinetics_fs.catalog.naming import UNLABELED, split_of_file_name
from kinetics_fs.catalog.rows import MAX_ROW, NO_SPLIT, Annotation, BadRow, Refusal, annotation, seconds
from kinetics_fs.errors import CatalogError

MAX_ROWS = 3_000_000
"""Lines or entries of one list. The largest real one has about 650,000."""
_UTF8_MARK = b"\xef\xbb\xbf"
_SEPARATOR_NOTE = re.compile(rb"sep=.?", re.IGNORECASE)  # the first line of some lists that spreadsheets write
_ONLY_SEPARATORS = b',;|\t "'
_OTHER_FORMATS = (
    (b"\xff\xfe\0\0", "UTF-32; save it as UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8"),
    (b"PK\3\4", "a zip archive or a spreadsheet; unpack it, or save it as CSV"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it"),
    (b"PAR1", "Parquet; save it as CSV"),
    (b"<", "a web page or XML; download the list itself"),
)
"""What files of other formats begin with, the name of each format, and a cure."""
_BLANK = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_log = logging.getLogger(__name__)


class _TooManyRows(Exception):
    """A list has more than `MAX_ROWS` lines or entries."""


def read_annotations(path: Path, *, split: str | None = None) -> Iterator[Annotation | Refusal]:
    """Yield every row of a file, in file order: valid ones as `Annotation`, the others as `Refusal`.

    Args:
        path: a list, or a gzip, tar or tar.gz with lists; the content decides which.
        split: the split (one of `SPLITS`) of rows that name none. In an archive, the name of each list gives it.

    Raises:
        CatalogError: the file cannot be read, has no usable header, has no valid row, or names no split.
    """
    with readable(path):
        for name, member, stream in annotation_lists(path, _begins_a_list):
            yield from _read_list(name, stream, (split_of_file_name(member) if member else split) or "")


def needs_split(path: Path) -> bool:
    """Return whether `read_annotations` uses its argument `split` for this file. Only the first bytes are read.

    Raises:
        CatalogError: the file cannot be read, or has no usable header.
    """
    with readable(path):
        head = head_of_list(path)
    if not head or _other_format(head):
        return False
    if _is_json(head):
        return b'"subset"' not in head
    header, _ = _start(_lines(io.BufferedReader(io.BytesIO(head))))
    return header is None or "split" not in header.kinds()


def _begins_a_list(head: bytes) -> bool:
    """Return whether a text is a list, by its first bytes; else it may be a description of lists."""
    if _is_json(head):
        return True
    header, lines = _start(_lines(io.BufferedReader(io.BytesIO(head))))
    try:
        return header is not None or bool([parse_clip_line(line, "train") for _, line in islice(lines, 1)])
    except BadRow:
        return False


def _read_list(name: str, stream: io.BufferedReader, split: str) -> Iterator[Annotation | Refusal]:
    head = stream.peek(1)[:1024]
    if other := _other_format(head):
        raise CatalogError(f"cannot read {name}: it is {other}")
    is_json = _is_json(head)
    rows = _read_json(name, stream, split) if is_json else _read_lines(name, stream, split)
    first_refusal = None
    any_valid = False
    try:
        for row in rows:
            if isinstance(row, Annotation):
                any_valid = True
            elif first_refusal is None:
                first_refusal = row
            yield row
    except _TooManyRows:
        raise CatalogError(f"cannot read {name}: it has more than {MAX_ROWS:,} rows, so it is no list") from None
    if any_valid:
        return
    if first_refusal is None:
        raise CatalogError(f"cannot read {name}: it has no usable row; there are no rows")
    if first_refusal.reason == NO_SPLIT:
        raise CatalogError(
            f"cannot read {name}: its rows have no split; add a column split, name the file after its split"
            " (train.csv), or give one --split"
        )
    if first_refusal.line == 1 and not is_json:
        raise CatalogError(
            f"cannot read {name}: it is not a list of annotations; its first line: {first_refusal.reason}; a list has a"
            " header with youtube_id, time_start and time_end, or a clip such as 0wR5jVB-WPk_000417_000427 in each line"
        )
    raise CatalogError(f"cannot read {name}: it has no usable row; row {first_refusal.line}: {first_refusal.reason}")


def _other_format(head: bytes) -> str:
    """Return the name of the format of a file that is no list, and a cure; "" if it may be a list."""
    for beginning, format_and_cure in _OTHER_FORMATS:
        if head.lstrip(b" \r\n\t").startswith(beginning):
            return format_and_cure
    zeros = [head[side::2].count(0) for side in (0, 1)]
    if max(zeros) > len(head) // 3 and min(zeros) < len(head) // 8:
        return "UTF-16; save it as UTF-8"
    return ""


def _is_json(head: bytes) -> bool:
    return head.removeprefix(_UTF8_MARK).lstrip().startswith(b"{")


# Lines ------------------------------------------------------------------------------------------------------------


def _read_lines(name: str, stream: io.BufferedReader, split: str) -> Iterator[Annotation | Refusal]:
    header, lines = _start(_lines(stream))
    parse: Callable[[bytes, str], Annotation] = parse_clip_line
    if header:
        first = next(lines, None)
        columns = find_columns(name, header, first[1] if first else b"")
        _warn_about_labels(name, header, columns)
        parse = columns.parse
        lines = chain([first] if first else [], lines)
    for number, line in lines:
        try:
            yield parse(line, split)
        except BadRow as bad:
            is_row = line.strip(_ONLY_SEPARATORS) and (header or not line.startswith(b"#"))
            if is_row:
                yield Refusal(name, number, str(bad), escaped(line[:800].decode("utf-8", "backslashreplace")))


def _start(lines: Iterator[tuple[int, bytes]]) -> tuple[Header | None, Iterator[tuple[int, bytes]]]:
    """Return the header of a list, if it has one, and the lines after it."""
    for number, line in lines:
        if header := find_header(line.lstrip(b"# ")):
            return header, lines
        if not line.startswith(b"#") and not _SEPARATOR_NOTE.fullmatch(line):
            return None, chain([(number, line)], lines)
    return None, lines


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, numbered and stripped. A line beyond `MAX_ROW` is cut to just beyond it."""
    head = stream.peek(1)
    readline: Callable[[int], bytes] = stream.readline
    if b"\r" in head and b"\n" not in head:  # as old programs for the Macintosh write
        text = io.TextIOWrapper(stream, "latin-1", newline=None)

        def readline(size: int) -> bytes:
            return text.readline(size).encode("latin-1")

    number = 0
    while line := readline(MAX_ROW + 2):
        number += 1
        if number > MAX_ROWS:
            raise _TooManyRows
        if not line.endswith(b"\n"):
            while (rest := readline(MAX_ROW)) and not rest.endswith(b"\n"):
                pass
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
        if line := line.strip(b" \r\n"):
            yield number, line


def _warn_about_labels(name: str, header: Header, columns: Columns) -> None:
    if columns.label is None and (unknown := header.unknown()):
        _log.warning(
            "%s has no column of labels, so its clips are in the class %s; if one of the unknown columns (%s) has the"
            " labels, rename it to label",
            name,
            UNLABELED,
            escaped(", ".join(unknown)),
        )


# JSON -------------------------------------------------------------------------------------------------------------


def _read_json(name: str, stream: io.BufferedReader, split: str) -> Iterator[Annotation | Refusal]:
    for number, (key, entry) in enumerate(_json_entries(name, stream), start=1):
        try:
            yield _parse_entry(key, entry, split)
        except BadRow as bad:
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
        if count > MAX_ROWS:
            raise _TooManyRows
        yield key, entry


def _parse_entry(youtube_id: str, entry: Any, split: str) -> Annotation:
    match entry:
        case {"annotations": {"segment": [start, end], **others}}:
            label = others.get("label")
        case _:
            raise BadRow("entry lacks a field")
    subset = entry.get("subset", split)
    if not isinstance(subset, str):
        raise BadRow("entry lacks a field")
    if not isinstance(label, str | None):
        raise BadRow("label is not text")
    if not YOUTUBE_ID.fullmatch(youtube_id):
        raise BadRow("bad YouTube id")
    return annotation(subset.strip(), (label or "").strip(), youtube_id, seconds(str(start)), seconds(str(end)))
