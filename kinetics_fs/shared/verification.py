"""Verification of the clips in a shared store: sizes, digests and containers, and the deletion of damaged ones."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, KineticsError, SharedStoreError
from kinetics_fs.media.checker import Checker
from kinetics_fs.shared.backend import ObjectDamaged, StoreUnreachable
from kinetics_fs.shared.store import ListedClip, SharedStore
from kinetics_fs.store import one_line
from kinetics_fs.util.parallel import map_in_order

_THREADS = 8
"""Clips that are read at the same time. Each is in memory as a whole."""
_LARGE = 16 * 1024**2
"""Bytes from which on a clip is read alone, so that a store full of large objects does not fill the memory."""
_MAX_KEPT = 10_000
"""Damaged clips that are named; the others are counted."""
_MAX_UNREADABLE = 20
"""Clips in a row that a store may fail to deliver until the verification ends."""
_PROGRESS_STEP = 1000


class DamagedClip(NamedTuple):
    """A clip whose object is damaged."""

    clip: Clip
    profile: str
    reason: str


@dataclass
class SharedCheck:
    """The result of verifying clips of a shared store.

    Attributes:
        repair: damaged clips were deleted.
        listed: clips in the store, as far as it was listed.
        total: clips to verify; None until they are known.
        verified: clips that were verified so far.
        bytes: their bytes.
        unreadable: clips that the store did not deliver, which proves nothing about them.
        deleted_meanwhile: clips that were deleted before they could be read.
        damaged: number of damaged clips.
        first_damaged: the first of them.
        deleted: number of them that were deleted.
        forgotten_fills: completion records that were deleted with them, so that fills read these archives again.
        problem: the failure that ended the verification early.
        interrupted: Ctrl-C ended it early.
    """

    repair: bool
    listed: int = 0
    total: int | None = None
    verified: int = 0
    bytes: int = 0
    unreadable: int = 0
    deleted_meanwhile: int = 0
    damaged: int = 0
    first_damaged: list[DamagedClip] = field(default_factory=list)
    deleted: int = 0
    forgotten_fills: int = 0
    problem: KineticsError | None = None
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result as an object for `json.dumps`."""
        left_out = ("repair", "listed", "total", "first_damaged", "problem")
        result = {name: value for name, value in vars(self).items() if name not in left_out}
        return result | {
            "bad": [{"clip": one.clip.key, "profile": one.profile, "reason": one.reason} for one in self.first_damaged]
        }


OnProgress = Callable[[SharedCheck], object]
"""Receives the check so far."""


def verify_shared(
    store: SharedStore,
    *,
    sample: int | None,
    decode: bool,
    repair: bool,
    on_progress: OnProgress = lambda check: None,
) -> SharedCheck:
    """Compare clips of all profiles with the size and the SHA-256 of their metadata, and read their containers.

    Args:
        store: the store.
        sample: number of clips to verify, at random; None for all.
        decode: also decode each clip.
        repair: delete damaged clips. They are fetched and uploaded again when a machine needs them.
        on_progress: receives the check so far.
    """
    check = SharedCheck(repair)

    def listing() -> Iterator[ListedClip]:
        for listed in store.listing():
            check.listed += 1
            if check.listed % _PROGRESS_STEP == 0:
                on_progress(check)
            yield listed

    try:
        chosen: Iterable[ListedClip] = listing()
        if sample is not None:
            chosen = _sample(chosen, sample)
            check.total = len(chosen)
        with Checker() as checker:
            inspect, large = checker.decode if decode else checker.measure, threading.Lock()

            def verify(listed: ListedClip) -> tuple[ListedClip, str | StoreUnreachable | None]:
                try:
                    with large if listed.size > _LARGE else nullcontext():
                        return listed, _find_fault(store, listed, inspect)
                except StoreUnreachable as error:
                    return listed, error

            in_a_row = 0
            for listed, fault in map_in_order(verify, chosen, _THREADS, queued=2 * _THREADS):
                if isinstance(fault, StoreUnreachable):
                    check.unreadable += 1
                    in_a_row += 1
                    if in_a_row == _MAX_UNREADABLE:
                        raise fault
                else:
                    in_a_row = 0
                    _add(check, store, listed, fault)
                on_progress(check)
    except KeyboardInterrupt:
        check.interrupted = True
    except (SharedStoreError, FetchError) as error:  # or the process that reads containers cannot be started
        check.problem = error
    return check


def _sample(clips: Iterable[ListedClip], size: int) -> list[ListedClip]:
    """Return clips at random, each with the same chance (reservoir sampling)."""
    chosen: list[ListedClip] = []
    for number, listed in enumerate(clips):
        if len(chosen) < size:
            chosen.append(listed)
        elif (place := random.randrange(number + 1)) < size:
            chosen[place] = listed
    return chosen


def _find_fault(store: SharedStore, listed: ListedClip, inspect: Callable[[int], float]) -> str | None:
    """Return the fault of a clip; empty if it is sound, None if it was deleted meanwhile."""
    try:
        found = store.get_clip(listed.clip, listed.profile)
    except ObjectDamaged as error:
        return str(error)
    if found is None:
        return None
    return find_container_fault(found.body, inspect)


def find_container_fault(body: bytes, inspect: Callable[[int], float]) -> str:
    """Return why a clip is no valid video; empty if it is one.

    Args:
        body: its bytes.
        inspect: a method of `Checker`.

    Raises:
        FetchError: the process that reads it cannot be started (LOCAL).
    """
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.seek(0)
        try:
            inspect(file.fileno())
        except FetchError as error:
            if error.kind is not FailureKind.CORRUPT:
                raise
            return one_line(error.reason)
    return ""


def _add(check: SharedCheck, store: SharedStore, listed: ListedClip, fault: str | None) -> None:
    if fault is None:
        check.deleted_meanwhile += 1
        return
    check.verified += 1
    check.bytes += listed.size
    if not fault:
        return
    check.damaged += 1
    if len(check.first_damaged) < _MAX_KEPT:
        check.first_damaged.append(DamagedClip(listed.clip, listed.profile, fault))
    if check.repair:
        store.delete_clips([(listed.clip, listed.profile)])
        check.deleted += 1
