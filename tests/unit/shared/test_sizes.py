"""The sizes of the clips in a shared store, from a listing."""

from __future__ import annotations

import time
import tracemalloc

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared.sizes import SharedSizes
from kinetics_fs.shared.store import ClipFacts, SharedStore
from tests.support.memory_backend import MemoryBackend

CLIPS = [Clip("-a1B2c3D4e5", number, number + 10) for number in range(50)]


def test_sizes_come_from_one_listing_of_each_profile() -> None:
    backend = MemoryBackend(time.time)
    store = SharedStore(backend)
    for number, clip in enumerate(CLIPS):
        body = bytes(number + 1)
        store.put_clip(clip, "source", body, ClipFacts.of(body, "archive", None))
    own = b"cut here"
    store.put_clip(CLIPS[7], "0123abcd", own, ClipFacts.of(own, "youtube", None))
    backend.requests.clear()

    sizes = SharedSizes(store, ["0123abcd", "source"])
    keys = [clip.key for clip in CLIPS]
    assert sizes.find(keys) == {} and sizes.clips == 0
    sizes.load()
    assert backend.requests == {"list": 2}
    expected = {clip.key: number + 1 for number, clip in enumerate(CLIPS)} | {CLIPS[7].key: len(own)}
    assert sizes.find([*keys, "unknown"]) == expected
    assert backend.requests == {"list": 2}


def test_the_sizes_of_a_release_take_little_memory() -> None:
    class Listing(SharedStore):
        def clips(self, profile: str, *, after: Clip | None = None):  # type: ignore[no-untyped-def]
            return ((Clip(f"{number:011}", 0, 10), number) for number in range(100_000))

    sizes = SharedSizes(Listing(MemoryBackend(time.time)), ["source"])
    tracemalloc.start()
    sizes.load()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes.find([f"{99_999:011}_000000_000010"]) == {f"{99_999:011}_000000_000010": 99_999}
    assert used < 14 * 100_000
