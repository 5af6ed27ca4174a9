"""Verification of a whole cache, or of a selection of it, with the removal of damaged clips."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.checker import Checker
from kinetics_fs.store.check import Condition, Verdict, remove_bad, verify_clips
from kinetics_fs.store.clip_files import MeasuredFile
from kinetics_fs.store.selection import selected_files
from kinetics_fs.store.store import Store

_MACHINE_ERRORS = {errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of this machine: a file that could not be decoded because of them may be good."""

_DURATIONS_PER_WRITE = 200
"""Measured clips whose durations are written in one transaction."""


@dataclass
class CacheCheck:
    """The result of verifying a cache.

    Attributes:
        repair: damaged clips were removed.
        total_bytes: size of the clips to verify.
        bytes: size of the clips that were verified so far.
        counts: number of clips by condition.
        bad: verdicts on the clips that are not good.
        removed: damaged or lost clips that were removed from the cache.
        unknown_files: files in the cache directory that belong to no clip. They are listed if the whole cache was
            verified.
        unknown_files_removed: number of those that were removed.
        interrupted: Ctrl-C ended the verification early.
    """

    repair: bool
    total_bytes: int = 0
    bytes: int = 0
    counts: Counter[Condition] = field(default_factory=Counter)
    bad: list[Verdict] = field(default_factory=list)
    removed: list[Clip] = field(default_factory=list)
    unknown_files: list[Path] = field(default_factory=list)
    unknown_files_removed: int = 0
    interrupted: bool = False

    @property
    def unrepaired(self) -> bool:
        """Whether a clip is bad and still in the cache."""
        return bool(self.bad) and (not self.repair or bool(self.counts[Condition.UNREADABLE]))

    def to_json(self) -> dict[str, Any]:
        """Return what was found, as an object for `json.dumps`."""
        return {
            "clips": self.counts.total(),
            "bytes": self.bytes,
            **{str(condition): self.counts[condition] for condition in Condition},
            "bad": [
                {
                    "clip": verdict.clip.key,
                    "profile": verdict.profile,
                    "condition": verdict.condition,
                    "reason": verdict.reason,
                }
                for verdict in self.bad
            ],
            "unknown_files": [str(path) for path in self.unknown_files],
        }


def verify_cache(
    store: Store,
    catalog: Catalog | None,
    *,
    decode: bool,
    repair: bool,
    on_progress: Callable[[CacheCheck], object] = lambda check: None,
) -> CacheCheck:
    """Compare cached clips, of all profiles, with the size and the SHA-256 with which they were stored.

    Clips whose duration is unknown, because they were stored without verification or by an early version, are measured.

    Args:
        store: the cache.
        catalog: the clips to verify; None for all cached clips, and for files of no clip.
        decode: also decode each clip, which is slow.
        repair: remove damaged and lost clips, and files of no clip.
        on_progress: receives the check so far after each clip.
    """
    check = CacheCheck(repair)
    measured: list[MeasuredFile] = []
    try:
        check.total_bytes = sum(file.size for file in selected_files(store, catalog))
        files = selected_files(store, catalog)
        with Checker() as checker:
            measure, full = partial(_measure, checker), partial(_decode, checker)
            for verdict in verify_clips(store, files, measure=measure, decode=full if decode else None):
                if verdict.duration is not None and verdict.filename is not None:
                    measured.append(MeasuredFile(verdict.clip.key, verdict.profile, verdict.filename, verdict.duration))
                if len(measured) == _DURATIONS_PER_WRITE:
                    store.add_durations(measured)
                    measured.clear()
                _add_verdict(check, verdict, store)
                on_progress(check)
        if catalog is None:
            for path in store.unknown_files():
                check.unknown_files.append(path)
                if repair and store.remove_unknown_file(path):
                    check.unknown_files_removed += 1
    except KeyboardInterrupt:
        check.interrupted = True
    if measured:
        store.add_durations(measured)
    return check


def _add_verdict(check: CacheCheck, verdict: Verdict, store: Store) -> None:
    check.counts[verdict.condition] += 1
    if verdict.condition is Condition.EVICTED:
        return
    check.bytes += verdict.size
    if verdict.condition is Condition.GOOD:
        return
    check.bad.append(verdict)
    if check.repair and verdict.condition is not Condition.UNREADABLE and remove_bad(store, verdict):
        check.removed.append(verdict.clip)


def _measure(checker: Checker, path: Path) -> float | None:
    """Return the seconds that the pictures of a clip cover; None if its container cannot be read."""
    try:
        with path.open("rb") as file:
            return checker.measure(file.fileno())
    except FetchError:  # stored as it was, with `--verify none`
        return None


def _decode(checker: Checker, path: Path) -> float:
    """Decode a clip and return the seconds that its pictures cover.

    Raises:
        FetchError: the clip is damaged.
        OSError: whether it is damaged is unknown, because this machine cannot decode it now.
    """
    try:
        with path.open("rb") as file:
            return checker.decode(file.fileno())
    except FetchError as error:
        if error.kind is not FailureKind.CORRUPT or error.cause_errno in _MACHINE_ERRORS:
            raise OSError(error.cause_errno, error.reason) from error
        raise
