"""Lines that name a clip without a header: paths, file names, keys and rows, as the lists of data loaders have them.

================================================  ======================================================================
`train/abseiling/0wR5jVB-WPk_000417_000427.mp4`   a path, absolute or not; a file name; a key; an address
`abseiling/0wR5jVB-WPk_000417_000427.mp4 12`      a path and numbers, which are ignored (SlowFast, mmaction2)
`0wR5jVB-WPk_000417_000427 abseiling`             a key and a label
`abseiling,0wR5jVB-WPk,417,427,val`               a row, in any order with the start before the end
================================================  ======================================================================

Tabs, `;`, `|`, `,` or blanks part the fields. A field with a word for a split is the split, any other text is the
label. Without such fields, the folders of the path give both: the one above the file is the label if it can be one.
"""

from __future__ import annotations

import re
from posixpath import normpath
from typing import NamedTuple

from kinetics_fs.catalog.clip import YOUTUBE_ID, Clip
from kinetics_fs.catalog.file_names import NO_VIDEO, parse_file_name
from kinetics_fs.catalog.naming import SPLITS, UNLABELED, split_name, split_of_folder
from kinetics_fs.catalog.rows import (
    Annotation,
    BadRow,
    annotation,
    decoded,
    fields,
    is_number,
    seconds,
    without_urls,
)

_SEPARATORS = ("\t", ";", "|", ",")
_CLIP_NAME = re.compile(
    r"(?<![^/\\,;|\t ])[A-Za-z0-9_-]{11}_[0-9]{1,6}_[0-9]{1,6}(?:\.[A-Za-z0-9]{1,5})*(?=$|[,;|\t ])"
)
_WORD_LIKE_ID = re.compile("[a-z]{11}")


class ClipPath(NamedTuple):
    """The meaning of the path of a clip.

    Attributes:
        youtube_id: id of the video; "" if the file has not the name of a clip or of a video.
        clip: the clip; None if the name has no times.
        split: the split of the nearest folder that has one; "" if none has.
        label: the name of the folder above the file; "" if that is no class.
    """

    youtube_id: str
    clip: Clip | None
    split: str
    label: str


def parse_clip_path(path: str) -> ClipPath:
    """Return the meaning of a path, a file name or a key."""
    name = parse_file_name(path)
    if name.fault not in ("", NO_VIDEO):
        return ClipPath("", None, "", "")
    folders = [folder for folder in normpath(path.replace("\\", "/")).split("/")[:-1] if folder not in ("", "..")]
    splits = [split_of_folder(folder) for folder in folders]
    label = folders[-1] if folders and splits[-1] is None else ""
    return ClipPath(name.youtube_id, name.clip, next(filter(None, reversed(splits)), ""), _text(label))


def parse_clip_line(line: bytes, split: str) -> Annotation:
    """Parse a line.

    Args:
        line: the line.
        split: the split of lines that name none; "" if it is unknown.

    Raises:
        BadRow: the line must be refused.
    """
    text = decoded(line)
    if '"' in text:
        separator = next((separator for separator in _SEPARATORS if separator in text), " ")
        text = "\t".join(fields(text, separator))
    text = without_urls(text)
    match = _CLIP_NAME.search(text)
    if match:
        before, folder = _before(text[: match.start()])
        path = parse_clip_path(folder + match[0])
        clip, values = path.clip, [*before, *_values(text[match.end() :])]
    else:
        path = parse_clip_path(text)
        clip, values = _row(text, is_video=bool(path.youtube_id))
    if clip is None:
        raise BadRow("no clip is named")
    split_word = label = ""
    for value in values:
        if split_name(value):
            split_word = split_word or value
        elif value and not is_number(value):
            label = label or value
    return annotation(split_word or path.split or split, _text(label) or path.label, *clip)


def _row(text: str, *, is_video: bool) -> tuple[Clip, list[str]]:
    """Return the clip and the other fields of a row that has an id and times."""
    separator = next((separator for separator in _SEPARATORS if separator in text), None)
    values = [value.strip() for value in text.split(separator)]
    ids = [position for position, value in enumerate(values) if YOUTUBE_ID.fullmatch(value)]
    # A label may look like an id ("bookbinding"), an id hardly ever like a word.
    video = next((one for one in ids if not _WORD_LIKE_ID.fullmatch(values[one])), next(iter(ids), None))
    numbers = [is_number(value) and position not in ids for position, value in enumerate(values)]
    pairs = [position for position in range(len(values) - 1) if numbers[position] and numbers[position + 1]]
    start = next((position for position in pairs if video is None or position > video), next(iter(pairs), None))
    if video is None or start is None:
        raise BadRow("video has no times" if is_video else "no clip is named")
    clip = Clip(values[video], seconds(values[start]), seconds(values[start + 1]))
    others = [value for position, value in enumerate(values) if position not in (video, start, start + 1)]
    return clip, others if separator else _values(" ".join(others))


def _before(text: str) -> tuple[list[str], str]:
    """Return the fields before a clip, and the path of its folder. A folder may have separators in its name."""
    for separator in _SEPARATORS:
        *values, folder = text.split(separator)
        if values and not any("/" in value or "\\" in value for value in values):
            return [value.strip() for value in values], folder.lstrip()
    return ([], text) if "/" in text or "\\" in text else (_values(text), "")


def _values(text: str) -> list[str]:
    """Return the fields of a text. If blanks part them, a label may have several words, with others on its sides."""
    text = text.strip("".join((*_SEPARATORS, " ")))
    for separator in _SEPARATORS:
        if separator in text:
            return [value.strip() for value in text.split(separator)]
    words = text.split()
    label = [position for position, word in enumerate(words) if not _is_no_label(word)] or [0, -1]
    return [*words[: label[0]], " ".join(words[label[0] : label[-1] + 1]), *words[label[-1] + 1 :]]


def _is_no_label(word: str) -> bool:
    """Return whether a word beside a label is a field. `training` is not: there is the class "battle rope training"."""
    return is_number(word) or word in (*SPLITS, "val", "validate")


def _text(label: str) -> str:
    return "" if label == UNLABELED else label
