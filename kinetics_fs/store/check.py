"""Checks of the clips that are here: whether their bytes are still those that were stored.

Nothing is changed, nobody is held up, and no check counts as a use. A file is read through one descriptor from its
beginning to its end, so that a clip that is evicted or replaced meanwhile is judged by the bytes that it had.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FetchError
from kinetics_fs.store.clip_files import OpenClipFile
from kinetics_fs.store.store import Store

_QUEUED_PER_THREAD = 4

Decode = Callable[[Path], None]
"""Raises FetchError if a file does not decode, OSError if that cannot be told now."""


class Condition(StrEnum):
    """How a clip is that should be here."""

    GOOD = "good"
    DAMAGED = "damaged"
    """Its bytes are not those that were stored."""
    LOST = "lost"
    """It has no file."""
    UNREADABLE = "unreadable"
    """Its file cannot be read now, which says nothing of its bytes."""
    EVICTED = "evicted"
    """It went while the others were checked, as clips do."""


class Verdict(NamedTuple):
    """What a check found. `reason` is empty of a good clip."""

    clip: Clip
    size: int
    condition: Condition
    reason: str = ""
    filename: str | None = None
    """The file that was looked at."""


def verify_clips(
    store: Store, clips: Iterable[tuple[Clip, int]], *, decode: Decode | None = None, threads: int | None = None
) -> Iterator[Verdict]:
    """Checks clips against the size and the SHA-256 with which they were stored, several at a time.

    Args:
        store: where they are.
        clips: with their sizes, as `Store.held` has them; drawn a few before they are checked.
        decode: to be tried with each file whose bytes are right; None for none.
        threads: to check with, which let each other compute at the same time; None for as many as there are cores.

    Yields:
        A verdict on each clip, in the order in which they came.
    """
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Verdict]] = deque()
    try:
        for clip, size in clips:
            waiting.append(pool.submit(_verify, store, clip, size, decode))
            if len(waiting) >= threads * _QUEUED_PER_THREAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def drop_bad(store: Store, verdict: Verdict) -> bool:
    """Removes a damaged or lost clip, so that it can be fetched again; not if it was replaced meanwhile.

    Returns:
        Whether it was removed. Who has it open keeps the bytes that it has.
    """
    return store.drop_file(verdict.clip, verdict.filename)


def _verify(store: Store, clip: Clip, size: int, decode: Decode | None) -> Verdict:
    try:
        found = store.peek(clip)
    except FileNotFoundError:
        return Verdict(clip, size, Condition.LOST, "it has no file")
    except FetchError as error:
        return Verdict(clip, size, Condition.UNREADABLE, error.reason)
    if found is None:
        return Verdict(clip, size, Condition.EVICTED, "it was evicted meanwhile")
    try:
        with os.fdopen(found.fd, "rb", buffering=0) as file:
            fault = _fault(file, found, decode)
    except OSError as error:
        return Verdict(clip, size, Condition.UNREADABLE, f"cannot read: {error.strerror}")
    return Verdict(clip, size, Condition.DAMAGED if fault else Condition.GOOD, fault, found.filename)


def _fault(file: FileIO, found: OpenClipFile, decode: Decode | None) -> str:
    """What is wrong with a clip's file; empty if nothing is.

    Raises:
        OSError: it cannot be read now.
    """
    if found.size != found.record.size:
        return f"it has {found.size:,} bytes instead of {found.record.size:,}"
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno == errno.EIO:
            return "the disk cannot read it"
        raise
    if digest != found.record.sha256:
        return "its bytes are not those that were stored (SHA-256)"
    if decode is not None:
        try:
            # The same file, whatever has become of its name.
            decode(Path(f"/dev/fd/{file.fileno()}"))
        except FetchError as error:
            return error.reason
    return ""
