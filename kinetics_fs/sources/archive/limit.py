"""The limit on the bytes that one open may download from archives, and the note about it in the failures of clips.

The note is part of the remembered reason of a failure. It lets a later mount recognize that a higher limit may succeed.
"""

from __future__ import annotations

import re

from rich import filesize

_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}
NOTE = "exceeds --max-archive-download"
"""Text that every note contains."""
_NOTE_PATTERN = re.compile(rf"{NOTE} \(([0-9]{{1,15}})(GB|MB|kB|B)\)")


def limit_note(subject: str, size: int, limit: int) -> str:
    """Return the note that something was not downloaded.

    Args:
        subject: the archive or part that was not downloaded, for example `its class archive`.
        size: its size in bytes.
        limit: the limit in bytes; the note states it exactly.
    """
    unit = next(unit for unit, factor in _UNITS.items() if limit % factor == 0) if limit else "B"
    return f"{subject} ({filesize.decimal(size)}) {NOTE} ({limit // _UNITS[unit]}{unit})"


def failed_below(reason: str, limit: int | None) -> bool:
    """Return whether the reason of a failure has a note about a limit below `limit` bytes; None is no limit."""
    match = _NOTE_PATTERN.search(reason)
    return match is not None and (limit is None or int(match[1]) * _UNITS[match[2]] < limit)
