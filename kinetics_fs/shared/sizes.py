"""The sizes of the clips in a bucket, from one listing in the background.

A listing of 650,000 clips takes 650 requests, and so a minute or two. What `stat` answers from it costs no request. The
sizes are kept as sorted records of 12 bytes: a dictionary would take ten times as much memory.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

from kinetics_fs.errors import SharedStoreError
from kinetics_fs.shared.store import SharedStore

_log = logging.getLogger(__name__)

_DIGEST, _RECORD = 8, 12
"""Bytes of the digest of a key, and of a record: the digest and the size."""
_MAX_SIZE = 2**32 - 1
_MAX_CLIPS = 2_000_000
"""Clips that are remembered: more than all releases have."""
_RETRY_INTERVAL = 60.0
"""Seconds until a listing that failed is tried again."""


class SharedSizes:
    """The sizes of the clips of some profiles. Safe for threads.

    Args:
        store: the shared store.
        profiles: the profiles, the preferred first.
    """

    def __init__(self, store: SharedStore, profiles: Sequence[str]) -> None:
        self._store = store
        self._profiles = profiles
        self._records = _Records(b"")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shared-sizes", daemon=True)

    @property
    def clips(self) -> int:
        """Number of clips whose sizes are known."""
        return len(self._records)

    def find(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Return the sizes in bytes that are known of these clips, by `Clip.key`. Sends no request."""
        records = self._records
        if not len(records):
            return {}
        found = ((key, records.find(key)) for key in keys)
        return {key: size for key, size in found if size is not None}

    def start(self) -> None:
        """List the store in a thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.load()
                return
            except SharedStoreError as error:
                _log.warning("cannot list the shared store, so sizes of its clips are estimates: %s", error)
            self._closing.wait(_RETRY_INTERVAL)

    def load(self) -> None:
        """List the store.

        Raises:
            SharedStoreError: it cannot be listed.
        """
        # The clips of the preferred profile come first, and stay first among equals when they are sorted.
        records: list[bytes] = []
        for key, size in self._list():
            if self._closing.is_set() or len(records) >= _MAX_CLIPS:
                break
            if 0 <= size <= _MAX_SIZE:
                records.append(_digest(key) + size.to_bytes(_RECORD - _DIGEST, "big"))
        records.sort(key=lambda record: record[:_DIGEST])
        self._records = _Records(b"".join(records))

    def _list(self) -> Iterator[tuple[str, int]]:
        for profile in self._profiles:
            for clip, size in self._store.clips(profile):
                yield clip.key, size


class _Records(Sequence[bytes]):
    """Records, sorted by their digests."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // _RECORD

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # bisect needs no slices
        """Return the digest of a record."""
        return self._packed[index * _RECORD : index * _RECORD + _DIGEST]

    def find(self, key: str) -> int | None:
        """Return the size of a clip by its key; None if it is unknown."""
        digest = _digest(key)
        index = bisect.bisect_left(self, digest)
        if index == len(self) or self[index] != digest:
            return None
        return int.from_bytes(self._packed[index * _RECORD + _DIGEST : (index + 1) * _RECORD], "big")


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_DIGEST).digest()
