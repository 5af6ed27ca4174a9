"""Uploads of the clips of one archive to a shared store, while the archive is being read."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import NamedTuple, Self

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fill.shared_indexes import version_tag
from kinetics_fs.fill.waiting import until_reachable
from kinetics_fs.media.profile import SOURCE as SOURCE_PROFILE
from kinetics_fs.shared import AccessRefused, ClipFacts, ObjectDamaged, SharedStore, open_backend
from kinetics_fs.shared.backend import MAX_FILE
from kinetics_fs.sources.archive.base import Version

_log = logging.getLogger(__name__)

_THREADS = 8
_LARGE = 16 * 1024 * 1024
"""Bytes of a clip above which it is not in memory together with another such clip."""


class Uploaded(NamedTuple):
    """A clip that the shared store has.

    Attributes:
        size: bytes.
        is_new: this upload put it there.
    """

    size: int
    is_new: bool


class ClipUploads:
    """Uploads the clips of an archive, several at a time, and the checkpoints of the pass. Use it as a context.

    All methods wait while the store is unreachable, for some minutes, and then raise a `FetchError` (LOCAL).

    Args:
        address: address of the store, without secrets.
        archive: name of the archive.
        coverage: digest of what is stored from it.
    """

    def __init__(self, address: str, archive: str, coverage: str) -> None:
        self._store = SharedStore(open_backend(address))
        self._archive = archive
        self._coverage = coverage
        self._pool = ThreadPoolExecutor(_THREADS, "upload")
        self._large = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, clip: Clip, fd: int, source: str, duration: float | None) -> Future[Uploaded]:
        """Upload a verified clip unless the store has it. The future fails with CORRUPT if the clip is too large.

        Args:
            clip: the clip.
            fd: its file; this closes it.
            source: name of the source that delivered it.
            duration: seconds that its pictures cover; None if they were not measured.
        """
        return self._pool.submit(self._upload, clip, fd, source, duration)

    def _upload(self, clip: Clip, fd: int, source: str, duration: float | None) -> Uploaded:
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            if size > MAX_FILE:
                raise FetchError(
                    FailureKind.CORRUPT, f"larger than the {MAX_FILE // 1024**2} MiB that a shared store takes"
                )
            try:
                if until_reachable(lambda: self._store.has_clip(clip, SOURCE_PROFILE), otherwise=ObjectDamaged):
                    return Uploaded(size, is_new=False)
                with self._large if size > _LARGE else nullcontext():
                    is_new = self._put(clip, ClipFacts.of(body := file.read(MAX_FILE), source, duration), body)
            except ObjectDamaged as error:  # something in the way that is no object
                raise FetchError(FailureKind.CORRUPT, str(error)) from error
        return Uploaded(size, is_new)

    def _put(self, clip: Clip, facts: ClipFacts, body: bytes) -> bool:
        return until_reachable(lambda: self._store.put_clip(clip, SOURCE_PROFILE, body, facts), otherwise=ObjectDamaged)

    def read(self, clip: Clip) -> bytes | None:
        """Return the content of a clip that was uploaded; None if the store has it no longer."""
        try:
            found = until_reachable(lambda: self._store.get_clip(clip, SOURCE_PROFILE), otherwise=ObjectDamaged)
        except ObjectDamaged:
            return None
        return None if found is None else found.body

    def delete(self, clip: Clip) -> None:
        """Delete a clip that was uploaded."""
        until_reachable(lambda: self._store.delete_clips([(clip, SOURCE_PROFILE)]))

    # Checkpoints

    def read_progress(self, version: Version) -> bytes | None:
        """Return the checkpoint that another machine, or an earlier run, has left; None if there is none."""
        try:
            return until_reachable(
                lambda: self._store.get_progress(self._archive, version_tag(version), self._coverage),
                otherwise=ObjectDamaged,
            )
        except ObjectDamaged as error:
            _log.warning("%s; the archive is read from its beginning", error)
            return None

    def write_progress(self, version: Version, body: bytes) -> None:
        """Write a checkpoint."""
        if len(body) <= MAX_FILE:
            until_reachable(lambda: self._store.put_progress(self._archive, version_tag(version), self._coverage, body))

    def remove_progress(self, version: Version) -> None:
        """Delete the checkpoint, if this machine may delete. A checkpoint that stays does no harm."""
        with suppress(AccessRefused):
            until_reachable(
                lambda: self._store.delete_progress(self._archive, version_tag(version), self._coverage),
                otherwise=AccessRefused,
            )
