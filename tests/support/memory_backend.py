"""An object store in memory with the contract of `kinetics_fs.shared.backend.Backend`, and faults for simulations."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping

from kinetics_fs.shared.backend import (
    Conflict,
    ListedObject,
    ObjectDamaged,
    ObjectInfo,
    StoredObject,
    StoreUnreachable,
    Version,
    check_key,
)


class MemoryBackend:
    """Objects in memory.

    Attributes:
        requests: number of requests by verb.
        is_down: whether every request fails.
        lose_answers: number of writes to come that succeed although they raise `StoreUnreachable`.
        repeat_writes: number of writes to come that are sent twice, as after a lost answer.

    Args:
        now: the clock of the store.
    """

    is_listed_cheaply = True

    def __init__(self, now: Callable[[], float]) -> None:
        self.address = "memory"
        self.objects: dict[str, StoredObject] = {}
        self.requests: dict[str, int] = {}
        self.is_down = False
        self.lose_answers = 0
        self.repeat_writes = 0
        self._now = now
        self._lock = threading.Lock()

    def _count(self, verb: str) -> None:
        self.requests[verb] = self.requests.get(verb, 0) + 1
        if self.is_down:
            raise StoreUnreachable("cannot use memory: it is down")

    def get(self, key: str, *, max_size: int) -> StoredObject | None:
        self._count("get")
        found = self.objects.get(check_key(key))
        if found is not None and found.info.size > max_size:
            raise ObjectDamaged("cannot read memory: too large", found.info.version)
        return found

    def stat(self, key: str) -> ObjectInfo | None:
        self._count("stat")
        found = self.objects.get(check_key(key))
        return found and found.info._replace(metadata={})

    def create(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> Version:
        return self._write(key, body, metadata, lambda found: found is None)

    def replace(self, key: str, body: bytes, version: Version, metadata: Mapping[str, str] | None = None) -> Version:
        return self._write(key, body, metadata, lambda found: found is not None and found.info.version == version)

    def _write(
        self,
        key: str,
        body: bytes,
        metadata: Mapping[str, str] | None,
        accepts: Callable[[StoredObject | None], bool],
    ) -> Version:
        self._count("write")
        repeat, self.repeat_writes = self.repeat_writes > 0, max(0, self.repeat_writes - 1)
        for _ in range(1 + repeat):
            with self._lock:
                if not accepts(self.objects.get(check_key(key))):
                    raise Conflict
                # As an ETag: a digest of the content, so that equal contents have equal versions.
                version = Version(hashlib.md5(body).hexdigest())
                info = ObjectInfo(len(body), float(int(self._now())), version, dict(metadata or {}))
                self.objects[key] = StoredObject(body, info)
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnreachable("cannot use memory: the answer is lost")
        return version

    def delete(self, *keys: str) -> None:
        self._count("delete")
        for key in keys:
            self.objects.pop(check_key(key), None)

    def top_names(self) -> set[str]:
        self._count("list")
        return {key.partition("/")[0] for key in self.objects}

    def scan(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        self._count("list")
        for key, found in sorted(self.objects.items()):
            if key.startswith(f"{prefix}/") and key > after:
                yield ListedObject(key, found.info.size, found.info.modified)
