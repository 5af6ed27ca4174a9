"""Listing of folders of clips, and a summary of the files in them that are not used.

As a program (`python -m kinetics_fs.sources.folder_files FOLDER...`) this module logs the summary.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.file_names import HIDDEN, VIDEO_SUFFIXES, parse_file_name
from kinetics_fs.store import is_cache, one_line
from kinetics_fs.util import logs
from kinetics_fs.util.beneath import Found, find_beneath
from kinetics_fs.util.processes import end_with_parent
from kinetics_fs.util.text import count

_log = logging.getLogger("kinetics_fs.sources.folder_files")  # __name__ is __main__ in the program

LINK_TO_FOLDER = "a link to a folder, which is not followed"
LINK_AGAIN = "a link to a folder that is listed already"
DANGLING = "a link to nothing"
_LINKS = (LINK_TO_FOLDER, LINK_AGAIN, DANGLING)

_MAX_GROUPS = 100
_WORDS = 40
"""Length of a name after the id, above which it is a title and not part of a pattern."""
_NUMBER = re.compile(r"\.(?:mp[34]|m4[av]|m2ts|3gp)|[0-9]+", re.IGNORECASE)
_ID = re.compile(r"[A-Za-z0-9_-]{11}(?=_[0-9]|[^A-Za-z0-9_-]|$)")


class ListedFile(NamedTuple):
    """A file or folder in a folder.

    Attributes:
        name: its name.
        folder: it is a folder, or a link to one. Always False for links that have the names of clips.
        link: it is a symbolic link.
    """

    name: str
    folder: bool
    link: bool


class UnusedGroup(NamedTuple):
    """Files that are not used for the same reason and have similar names.

    Attributes:
        files: number of them.
        pattern: their names, with `ID` for a YouTube id, `N` for a number and `*` for anything.
        reason: why they are not used, as a phrase.
        example: path of one of them.
    """

    files: int
    pattern: str
    reason: str
    example: str

    @property
    def notable(self) -> bool:
        """Whether the files may be meant as clips: they have an id or are videos, or links hide others."""
        return self.pattern.startswith("ID") or self.pattern.endswith(VIDEO_SUFFIXES) or self.reason in _LINKS

    def __str__(self) -> str:
        """Return the group on one line that a terminal may show."""
        name = one_line(self.example)
        if self.files == 1:
            return f"1 file is not used: {name}: {self.reason}"
        return f"{count(self.files, 'file')} named like {one_line(self.pattern)} are not used ({name}): {self.reason}"


class UnusedFiles:
    """Counts files that are not used by the pattern of their names, in bounded memory."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], list[int]] = {}
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, path: str, reason: str) -> None:
        """Count a file.

        Args:
            path: the file.
            reason: why it is not used, as a phrase.
        """
        group = (_pattern(os.path.basename(path)), reason)  # noqa: PTH119  # a Path for each of 650,000 files is slow
        if group not in self._groups and len(self._groups) >= _MAX_GROUPS:
            group = ("*", reason)
        self._groups.setdefault(group, [0])[0] += 1
        self._examples.setdefault(group, path)

    def groups(self) -> list[UnusedGroup]:
        """Return the groups, the largest first."""
        groups = [UnusedGroup(files, *key, self._examples[key]) for key, [files] in self._groups.items()]
        return sorted(groups, key=lambda group: (-group.files, group.pattern))


def _pattern(name: str) -> str:
    name = name.strip(" ")
    suffix = os.path.splitext(name)[1]  # noqa: PTH122
    if (match := _ID.match(name)) is None or len(name) - match.end() > _WORDS:
        return f"*{_without_numbers(suffix)}" if len(suffix) <= _WORDS else "*"
    return f"ID{_without_numbers(name[match.end() :])}"


def _without_numbers(text: str) -> str:
    return _NUMBER.sub(lambda match: match[0] if match[0].startswith(".") else "N", text)


def list_folder(folder: Found) -> Iterator[ListedFile]:
    """Yield everything in a folder. Nothing of a cache of kinetics-fs: it has files with names of clips, too.

    Raises:
        OSError: the folder cannot be read.
    """
    with contextlib.suppress(OSError):  # the tag of another program, which only that one can read
        if is_cache(folder.path):
            return
    with os.scandir(folder.path) as entries:
        for entry in entries:
            link, is_folder = entry.is_symlink(), False
            # The type of a link's target costs a system call. Files that have the names of clips are tried anyway.
            with contextlib.suppress(OSError):
                is_folder = entry.is_dir(follow_symlinks=link and bool(parse_file_name(entry.name).fault))
            yield ListedFile(entry.name, is_folder, link)


@dataclass
class FolderSurvey:
    """The files in folders of clips.

    Attributes:
        usable: number of files that have the name of a clip or a video.
        unused: the others, by pattern.
        unreadable: folders that cannot be read, by reason.
        complete: False if the time limit ended the survey.
    """

    usable: int = 0
    unused: UnusedFiles = field(default_factory=UnusedFiles)
    unreadable: Counter[str] = field(default_factory=Counter)
    complete: bool = True


def survey(folders: Sequence[Path], *, seconds: float = float("inf")) -> FolderSurvey:
    """Look at the names of all files below folders. Links to folders are followed.

    Args:
        folders: the folders.
        seconds: time limit.
    """
    found, end = FolderSurvey(), time.monotonic() + seconds
    seen = set[tuple[int, int]]()
    pending = [(given, "", False) for given in reversed(folders)]
    while pending:
        given, name, link = pending.pop()
        folder = f"{given}/{name}" if name else str(given)
        try:
            with find_beneath(given, name) as opened:
                if (identity := (opened.status.st_dev, opened.status.st_ino)) in seen:
                    if link:
                        found.unused.add(folder, LINK_AGAIN)
                    continue
                seen.add(identity)
                for file in list_folder(opened):
                    if time.monotonic() > end:
                        found.complete = False
                        return found
                    path, fault = f"{folder}/{file.name}", parse_file_name(file.name).fault
                    if fault == HIDDEN:
                        continue
                    if file.folder:
                        pending.append((given, f"{name}/{file.name}" if name else file.name, file.link))
                    elif file.link and not os.path.exists(path):  # noqa: PTH110  # a Path for each file is slow
                        found.unused.add(path, DANGLING)
                    elif fault:
                        found.unused.add(path, fault)
                    else:
                        found.usable += 1
        except OSError as error:
            found.unreadable[f"cannot read {folder}: {error.strerror}"] += 1
    return found


def main() -> None:
    """Log a line for each group of files that may be meant as clips but are not used."""
    os.nice(19)
    end_with_parent(sys.stdin.fileno())
    found = survey([Path(folder) for folder in sys.argv[1:]])
    for line in [str(group) for group in found.unused.groups() if group.notable] + [*map(one_line, found.unreadable)]:
        _log.warning("folder: %s", line)


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    main()
