"""The header of a list of annotations: which separator the list has, and which column is which."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from kinetics_fs.catalog.clip import YOUTUBE_ID
from kinetics_fs.catalog.clip_lines import parse_clip_path
from kinetics_fs.catalog.containers import escaped
from kinetics_fs.catalog.rows import Annotation, BadRow, annotation, decoded, fields, is_number, seconds, without_urls
from kinetics_fs.errors import CatalogError

COLUMNS = {
    "youtube_id": (
        *("youtubeid", "ytid", "videoid", "vid", "youtube", "video", "videoname", "id"),
        *("clip", "clipid", "clipname", "key", "file", "filename", "path", "filepath", "videopath", "clippath"),
        *("url", "videourl", "youtubeurl", "link", "youtubelink"),
    ),
    "time_start": ("timestart", "starttime", "start", "tstart", "segmentstart", "begin", "begintime", "timebegin"),
    "time_end": ("timeend", "endtime", "end", "tend", "segmentend", "stop", "stoptime", "timestop"),
    "label": (
        *("label", "labelname", "labeltext", "class", "classname", "classlabel"),
        *("action", "actionname", "actionlabel", "category", "categoryname"),
    ),
    "split": ("split", "splitname", "subset", "set", "partition", "phase"),
}
"""The columns, and the names that lists give to them, without capitals, units, blanks, `_` and `-`.

If several columns of a list are of one kind, the first row decides which of them is used."""

_SEPARATORS = (",", ";", "\t", "|", " ")
_UNIT = re.compile(r"[ _([-]+(?:s|secs?|seconds?)[)\]]?$")
_KIND = {name: kind for kind, names in COLUMNS.items() for name in names}


class Header(NamedTuple):
    """The separator of a list, and the names of its columns as they are written."""

    separator: str
    names: list[str]

    def kinds(self) -> list[str]:
        """Return the key in `COLUMNS` of each column; "" for an unknown one."""
        plain = (re.sub("[^a-z0-9]", "", _UNIT.sub("", name.lower())) for name in self.names)
        return [_KIND.get(name, "") for name in plain]

    def unknown(self) -> list[str]:
        """Return the names of the columns that no list of annotations is known to have."""
        return [name for name, kind in zip(self.names, self.kinds(), strict=True) if name and not kind]


def find_header(line: bytes) -> Header | None:
    """Return the header in a line; None if the line is no header."""
    best, most = None, 0
    for separator in _SEPARATORS:
        try:
            names = [name.strip() for name in fields(decoded(line), separator)]
        except BadRow:
            continue
        while names and not names[-1]:
            names.pop()
        header = Header(separator, names)
        known = set(header.kinds()) - {""}
        # A sentence may have the words "video" and "end", too.
        is_header = ("youtube_id" in known or len(known) > 1) and (separator != " " or not header.unknown())
        if is_header and len(known) > most:
            best, most = header, len(known)
    return best


class Columns(NamedTuple):
    """The columns of a list: their separator, their number, and the position of each that is used.

    `video` has the id of the video, its address, or the name or path of the clip, which makes `start` and `end`
    superfluous. A position is None if the list lacks the column.
    """

    separator: str
    width: int
    video: int
    start: int | None
    end: int | None
    split: int | None
    label: int | None

    def parse(self, line: bytes, split: str) -> Annotation:
        """Parse a row.

        Args:
            line: the row.
            split: the split of rows that name none; "" if it is unknown.

        Raises:
            BadRow: the row must be refused.
        """
        separator, width, video_at, start_at, end_at, split_at, label_at = self
        values = fields(decoded(line), separator)
        if len(values) != width and not _is_padded(values, width):
            raise BadRow("wrong number of fields")
        video = values[video_at].strip()
        label = "" if label_at is None else values[label_at].strip()
        word = "" if split_at is None else values[split_at].strip()
        if not YOUTUBE_ID.fullmatch(video):
            path = parse_clip_path(without_urls(video))
            label = path.label if path.label and (not label or is_number(label)) else label
            word = word or path.split
            if path.clip:
                return annotation(word or split, label, *path.clip)
            video = path.youtube_id
            if not video:
                raise BadRow("bad YouTube id")
        if start_at is None or end_at is None:
            raise BadRow("video has no times")
        start, end = seconds(values[start_at].strip()), seconds(values[end_at].strip())
        return annotation(word or split, label, video, start, end)


def _is_padded(values: list[str], width: int) -> bool:
    """Return whether a row has too many fields, but only empty ones: programs write a separator after the last one."""
    return len(values) > width and not any(value.strip() for value in values[width:])


def find_columns(name: str, header: Header, row: bytes) -> Columns:
    """Return the columns of a list.

    Args:
        name: the name of the list in messages.
        header: the header.
        row: the first row, or b"".

    Raises:
        CatalogError: the list lacks a column that it needs.
    """
    try:
        values = [value.strip() for value in fields(decoded(row), header.separator)]
    except BadRow:
        values = []
    values += [""] * len(header.names)

    def find(kind: str, is_useful: Callable[[str], bool]) -> int | None:
        positions = [position for position, found in enumerate(header.kinds()) if found == kind]
        return next((position for position in positions if is_useful(values[position])), next(iter(positions), None))

    video = find("youtube_id", _names_video)
    start = find("time_start", bool)
    end = find("time_end", bool)
    needed = {"youtube_id": video}
    if video is None or parse_clip_path(values[video]).clip is None:
        needed |= {"time_start": start, "time_end": end}
    missing = [kind for kind, position in needed.items() if position is None]
    if video is None or missing:
        raise CatalogError(
            f"cannot read {name}: its header has no {', '.join(missing)}, only {escaped(', '.join(header.names))};"
            " a list needs youtube_id, time_start and time_end, or a column of clip names"
        )
    label = find("label", lambda value: bool(value) and not is_number(value))
    return Columns(header.separator, len(header.names), video, start, end, find("split", bool), label)


def _names_video(value: str) -> bool:
    video = without_urls(value)
    return bool(YOUTUBE_ID.fullmatch(video) or parse_clip_path(video).youtube_id)
