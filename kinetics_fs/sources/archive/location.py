"""Where archives are below an address that a person has given: one level too deep or too high, or a single archive."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive.layout import FOLDERS, WORDS, archives_in, content_of, stem
from kinetics_fs.sources.settings import is_remote

_LIST = re.compile(r"k[0-9_]+_[a-z]+_path\.txt")
_MAX_DEPTH = 3
"""Levels below a folder at which archives are searched."""
_MAX_FOLDERS = 1000
"""Folders that are searched."""
_MAX_SHOWN = 3


class Location(NamedTuple):
    """The location of archives.

    Attributes:
        base: location of all archives: an http(s) or s3 address, or a folder.
        archive: name of the only archive that was given; None for all.
    """

    base: str
    archive: str | None = None


def locate(given: str) -> Location:
    """Find the location of all archives by one that was given. Nothing is asked of a server.

    The location may be that of a release (`.../600`), of a split (`.../600/val`), of one archive, or a folder above.

    Args:
        given: http(s) or s3 address, or a path.

    Raises:
        FetchError: several folders below the path have archives (CONFIG).
    """
    return _locate_address(given) if is_remote(given) else _locate_path(Path(given))


def _locate_address(given: str) -> Location:
    address, mark, query = given.partition("?")
    scheme, _, rest = address.partition("://")
    parts = [part for part in rest.split("/") if part]
    if len(parts) > 1 and _LIST.fullmatch(parts[-1]):
        del parts[-1]  # the list of the archives of a split
    last = unquote(parts[-1]) if parts else ""
    archive = last if len(parts) > 1 and stem(last) != last else None
    if archive is not None:
        del parts[-1]
    levels = _levels(parts[1:])  # the first is the host, or the bucket
    base = f"{scheme}://{'/'.join(parts[: len(parts) - len(levels)])}{mark}{query}"
    return Location(base, None if archive is None else "/".join([*levels, archive]))


def _locate_path(given: Path) -> Location:
    if given.is_file():
        levels = _levels(given.parts[1:-1])
        return Location(str(given.parents[len(levels)]), "/".join([*levels, given.name]))
    if _has_layout(given):
        return Location(str(given))
    if levels := _levels(given.parts[1:]):
        return Location(str(given.parents[len(levels) - 1]))
    if archives_in(given):
        return Location(str(given))
    found = _search(given)
    if len(found) > 1:
        more = ", …" if len(found) > _MAX_SHOWN else ""
        raise FetchError(
            FailureKind.CONFIG,
            f"cannot use --archive-url {given}: several folders below it have archives:"
            f" {', '.join(map(str, found[:_MAX_SHOWN]))}{more}; give one of them",
        )
    return Location(str(found[0] if found else given))


def missing_note(base: str) -> str:
    """Return why no archives can be read from a folder, as a phrase; empty if it has some, or is no folder.

    Args:
        base: location of all archives, as `locate` returns it.
    """
    folder = Path(base)
    if is_remote(base) or _has_layout(folder) or archives_in(folder):
        return ""
    return f"{base} has no archives: expected 600/val/*.tar.gz, val/*.tar.gz or *.tar.gz, found {content_of(folder)}"


def _levels(parts: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Return those last parts of a path that belong to the layout, as `("600", "val")`."""
    if len(parts) > 1 and parts[-2] in FOLDERS and parts[-1] in WORDS:
        return tuple(parts[-2:])
    return tuple(parts[-1:]) if parts and parts[-1] in FOLDERS else ()


def _has_layout(folder: Path) -> bool:
    """Return whether a folder has archives at the levels of the layout, with or without the level of the release."""
    levels = [f"{release}/{word}" for release in FOLDERS for word in WORDS]
    return any(archives_in(folder / level) for level in (*levels, *WORDS))


def _search(top: Path) -> list[Path]:
    """Return the folders below one that have archives, but not those below them."""
    found: list[Path] = []
    level, seen = [top], 0
    for _ in range(_MAX_DEPTH):
        following: list[Path] = []
        for folder in level:
            for path in _folders_in(folder):
                seen += 1
                if seen > _MAX_FOLDERS:
                    return found
                if _has_layout(path) or archives_in(path):
                    found.append(path)
                else:
                    following.append(path)
        level = following
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
