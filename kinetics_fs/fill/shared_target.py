"""A shared store as the target of an import: no clip of it is cached on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from rich import filesize

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import ClipFacts, SharedStore
from kinetics_fs.shared.backend import MAX_FILE
from kinetics_fs.shared.listing import StoredClips


class SharedTarget:
    """A shared store as the target of an import. See `kinetics_fs.fill.importer.ImportTarget`.

    Args:
        store: the store.
        profile: profile of clips that are cut.
        scratch: folder for temporary files; created if it does not exist.
        on_listed: receives the number of clips of the store that were listed so far.

    Attributes:
        scratch: see `ImportTarget`.
        links_on: see `ImportTarget`.
    """

    def __init__(self, store: SharedStore, profile: str, scratch: Path, on_listed: Callable[[int], object]) -> None:
        self._store = store
        self._profile = profile
        self._on_listed = on_listed
        self.scratch = scratch
        self.links_on = None

    def __enter__(self) -> Self:
        self._stored = StoredClips(self._store, (SOURCE, self._profile), self._on_listed)
        try:
            self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            self._stored.close()
            raise KineticsError(
                f"cannot import: no temporary files can be written to {self.scratch} ({error.strerror}); give another"
                " --cache-dir"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stored.close()

    def stored(self, clips: Sequence[Clip]) -> set[Clip]:
        """See `ImportTarget.stored`."""
        return {clip for clip in clips if self._stored.has(clip, SOURCE) or self._stored.has(clip, self._profile)}

    def find_shortage(self, size: int, copied: int, min_free: int) -> str:
        """See `ImportTarget.find_shortage`. A shared store refuses the clip that does not fit."""
        return ""

    def claim(self, clip: Clip, size: int | None) -> _Claim:
        """See `ImportTarget.claim`. Two processes may add a clip at the same time: the first one wins."""
        return _Claim(self, clip)

    def _publish(self, clip: Clip, path: Path, source: str, *, cut: bool, duration: float | None) -> int:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise FetchError(
                FailureKind.CORRUPT, f"the file is larger than a shared store takes ({filesize.decimal(MAX_FILE)})"
            )
        body = path.read_bytes()
        profile = self._profile if cut else SOURCE
        self._store.put_clip(clip, profile, body, ClipFacts.of(body, source, duration))
        self._stored.add(clip, profile)
        return size


class _Claim:
    """See `kinetics_fs.fill.importer.ImportClaim`."""

    def __init__(self, target: SharedTarget, clip: Clip) -> None:
        self._target = target
        self._clip = clip
        self.folder = Path()

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(dir=self._target.scratch))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, path: Path, source: str, *, cut: bool, duration: float | None) -> int:
        """See `ImportClaim.publish`."""
        return self._target._publish(self._clip, path, source, cut=cut, duration=duration)
