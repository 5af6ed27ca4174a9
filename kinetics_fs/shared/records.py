"""Records that machines change together, by compare-and-swap, and the clock of the store.

Two rules make compare-and-swap safe on a bucket. Every record has a new nonce in each version, because ETags are
digests: without one, a record that changed back would seem unchanged. And a write that was refused, or whose answer was
lost, may have succeeded: the library repeats requests, and the repetition meets the object of the first. The record is
then read, and its nonce tells.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kinetics_fs.shared.backend import MAX_RECORD, Backend, Conflict, ObjectDamaged, StoreUnreachable, Version

_STEP = 2.0
"""Seconds by which the clock of the store must be behind its estimate to count as set back."""


class Record(NamedTuple):
    """A JSON object in the store.

    Attributes:
        values: untrusted, except for `nonce`, which is a string.
        version: its version.
        modified: when it was written, in seconds since the epoch by the clock of the store.
    """

    values: dict[str, Any]
    version: Version
    modified: float

    @property
    def nonce(self) -> str:
        """Tells this version of the record from all others."""
        nonce: str = self.values["nonce"]
        return nonce


class StoreClock:
    """The clock of the store, known from the times of objects that this process wrote. Safe for threads.

    The clocks of machines differ; all of them read the same time here. It is up to a second or two late and never
    ahead, as long as the store itself stamps the objects. Where the writing machine does (Lustre), it is as wrong as
    that machine's clock.

    Args:
        monotonic: a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset: float | None = None
        self._lock = threading.Lock()

    def observe(self, modified: float) -> None:
        """Learn from an object that was written just now.

        Args:
            modified: `ObjectInfo.modified`. The time of the call is the latest at which it can have been written.
        """
        offset = modified - self._monotonic()
        with self._lock:
            # Each observation is a lower limit; the highest is the best.
            if self._offset is None or offset > self._offset or offset < self._offset - _STEP:
                self._offset = offset

    def now(self) -> float | None:
        """Return the time in seconds since the epoch; None before the first observation."""
        offset = self._offset
        return None if offset is None else offset + self._monotonic()


class Records:
    """The records of a store. Safe for threads.

    Every method raises `StoreUnreachable` or `AccessRefused` if the store cannot serve it.

    Args:
        backend: has them.
        new_nonce: returns a text that no machine has used before.
    """

    def __init__(self, backend: Backend, new_nonce: Callable[[], str] = lambda: secrets.token_hex(12)) -> None:
        self._backend = backend
        self._new_nonce = new_nonce

    def read(self, key: str) -> Record | None:
        """Return a record; None if it does not exist.

        Raises:
            ObjectDamaged: it is no JSON object with a nonce.
        """
        found = self._backend.get(key, max_size=MAX_RECORD)
        if found is None:
            return None
        try:
            values: Any = json.loads(found.body)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("nonce"), str):
            raise ObjectDamaged(
                f"cannot read {self._backend.address}/{key}: it is no record of kinetics-fs", found.info.version
            )
        return Record(values, found.info.version, found.info.modified)

    def create(self, key: str, values: Mapping[str, Any]) -> Record | None:
        """Write a record that does not exist yet; return it, or None if another process has written it."""
        return self._write(key, values, lambda body: self._backend.create(key, body))

    def replace(self, key: str, version: Version, values: Mapping[str, Any]) -> Record | None:
        """Write a record if it still has this version; return it, or None if it has another or does not exist."""
        return self._write(key, values, lambda body: self._backend.replace(key, body, version))

    def _write(self, key: str, values: Mapping[str, Any], write: Callable[[bytes], Version]) -> Record | None:
        nonced = {**values, "nonce": self._new_nonce()}
        unknown: StoreUnreachable | None = None
        try:
            return Record(nonced, write(json.dumps(nonced).encode()), 0.0)
        except Conflict:
            pass
        except StoreUnreachable as error:
            unknown = error
        try:
            found = self.read(key)
        except ObjectDamaged:
            found = None
        if found is not None and found.nonce == nonced["nonce"]:
            return found
        if unknown is not None:
            raise unknown
        return None

    def delete(self, *keys: str) -> None:
        """Delete records, whatever their versions are."""
        self._backend.delete(*keys)
