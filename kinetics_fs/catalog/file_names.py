"""Names that tools give to the files of clips, in folders and in archives."""

from __future__ import annotations

import re
from typing import NamedTuple

from kinetics_fs.catalog.clip import LAST_SECOND, Clip

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".mkv", ".webm"),
    *(".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".asf", ".ogv", ".ogg", ".nut"),
)
"""Suffixes of video files, the preferred ones first: those of mp4 files, which stay as they are."""

HIDDEN = "hidden"
UNFINISHED = "an unfinished download"
TRACK = "a part of a download, without sound or without pictures"
COPY = "a second copy of a clip"
BACKUP = "a backup copy of a clip"
NO_VIDEO = "not named as a video"
OTHER_NAME = "not the name of a clip"
NO_TIMES = "its name has no times, and the selection has several clips of the video"
"""Reasons why a file is not used, as phrases that follow the name of the file."""

_MAX_LENGTH = 255
"""Longest name on a usual disk. Names in archives may be longer."""

_USUAL_NAME = re.compile(
    r"(?P<before>)(?P<id>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,6})_(?P<end>[0-9]{1,6})(?P<video>)"
    r"(?P<after>\.[A-Za-z0-9]{2,4})"
)
"""The same as `_NAME` for most files, in a fifth of the time."""
_NAME = re.compile(
    r"""
    (?P<before>.*?)
    (?:
        (?P<id>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,6})_(?P<end>[0-9]{1,6})(?![0-9])
        | (?<![A-Za-z0-9_-])(?P<video>[A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])
    )
    (?P<after>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_VIDEO = re.compile(rf"(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))})+")
_ENDINGS = {
    UNFINISHED: re.compile(
        r"\.(part|ytdl|crdownload|download|partial|filepart|aria2|tmp|temp|incomplete|opdownload|!ut|!qb|bc!)(?![a-z0-9])"
    ),
    TRACK: re.compile(r"\.f[0-9]+[-\w]*\.\w+$|\.f(hls|dash)[-\w]*\.\w+$|\.(m4a|mp3|aac|opus|wav|flac|weba)$"),
    BACKUP: re.compile(r"(~|\.(bak|backup|old|orig))$"),
    COPY: re.compile(
        r"""
        ^\s*(
            [-\u2013_.]?\s*\(?\ ?(\w+\ )?(copy|kopie|copie|copia|c\u00f3pia)\b.*  # file managers
            | \([0-9]+\).* | \ [0-9]+ (\.\w+)*                               # browsers, macOS
            | (\.\w+)+ (\s*\([0-9]+\) | \.[0-9]+)                                  # the suffix first; wget
        )$
        """,
        re.VERBOSE,
    ),
}
"""Endings by which a name, in lower case, is refused."""
_COPY_OF = re.compile(r"(copy of|kopie von|copie de|copia de|c\u00f3pia de)\s+", re.IGNORECASE)


class FileName(NamedTuple):
    """The meaning of a file name.

    Attributes:
        youtube_id: id of the video; empty if the name has none. It may be another word that looks like one.
        clip: the clip that the times in the name give; None if it has none. Also set in names that are refused.
        suffix: suffix of the file in lower case, one of `VIDEO_SUFFIXES`; empty if the name is refused.
        fault: why files of this name are not used; empty if they are.
    """

    youtube_id: str
    clip: Clip | None
    suffix: str
    fault: str


def parse_file_name(path: str) -> FileName:
    r"""Return the meaning of the name of a file. Names are `ID_START_END.SUFFIX` or `ID.SUFFIX`.

    Start and end are seconds, both either padded to six digits or not padded. The suffix is that of a video, in any
    case.

    Args:
        path: name of the file, or its path. Only the part after the last `/` or `\` matters: archives that were made on
            Windows have the latter.
    """
    name = path[max(path.rfind("/"), path.rfind("\\")) + 1 :].strip(" ")
    if name.startswith("."):
        return FileName("", None, "", HIDDEN)
    match = _USUAL_NAME.fullmatch(name) or (_NAME.fullmatch(name) if len(name) <= _MAX_LENGTH else None)
    if match is None:
        return FileName("", None, "", OTHER_NAME)
    youtube_id, start, end, after = match["id"] or match["video"], match["start"], match["end"], match["after"].lower()
    clip = _clip(youtube_id, start, end) if start else None
    if start and clip is None:
        return FileName(youtube_id, None, "", OTHER_NAME)
    if match["before"]:
        fault = COPY if _COPY_OF.fullmatch(match["before"]) else OTHER_NAME
    elif after in VIDEO_SUFFIXES or _VIDEO.fullmatch(after):
        return FileName(youtube_id, clip, after[after.rindex(".") :], "")
    else:
        fault = next((fault for fault, ending in _ENDINGS.items() if ending.search(after)), "")
        fault = fault or (NO_VIDEO if re.fullmatch(r"(\.\w+)*", after) else OTHER_NAME)
    return FileName(youtube_id, clip, "", fault)


def _clip(youtube_id: str, start: str, end: str) -> Clip | None:
    clip = Clip(youtube_id, int(start), int(end))
    padded = len(start) == len(end) == 6
    plain = not padded and (start, end) == (str(clip.start), str(clip.end))
    return clip if clip.start < clip.end <= LAST_SECOND and (padded or plain) else None
