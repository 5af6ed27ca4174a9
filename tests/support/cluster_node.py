"""A machine of a cluster, in a process of its own: `python -m tests.support.cluster_node < settings.json`.

It has a cache, a part in a shared store, and an HTTP server as its source. It gets each clip of a list into its cache,
in a random order, and prints a line of JSON at the end. Its clock runs ten times as fast, so that leases of dead
machines end within seconds.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

import requests

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.shared import Leases, Outage, SharedStore, StoreClock, UploadQueue, WriteBack, open_backend
from kinetics_fs.shared.node import Node, Wait
from kinetics_fs.shared.store import SharedClip
from kinetics_fs.shared.write_back import CachedClips
from kinetics_fs.store import Store

_SPEED = 10.0


def clock() -> float:
    """Return the time of a clock that is fast."""
    return time.monotonic() * _SPEED


def fetch(url: str, clip: Clip) -> bytes:
    """Return a clip from the source."""
    answer = requests.get(f"{url}/{clip.name}", timeout=30)
    if answer.status_code != 200:
        raise FetchError(FailureKind.TRANSIENT, f"HTTP {answer.status_code}")
    return answer.content


def main() -> None:
    """Get all clips."""
    logging.basicConfig(level=logging.WARNING)
    settings = json.load(sys.stdin)
    clips = [Clip(*clip) for clip in settings["clips"]]
    random.Random(settings["seed"]).shuffle(clips)
    cache = Path(settings["cache"])
    store = Store(cache)
    shared = SharedStore(open_backend(settings["store"]), StoreClock(clock))
    assert shared.open(create=True)
    assert shared.probe().has_conditional_writes
    leases = Leases(shared.records, shared.clock, settings["name"], clock)
    leases.start(0.5)
    write_back = WriteBack(shared, UploadQueue(cache / "uploads.sqlite"), CachedClips(store), monotonic=clock)
    write_back.start()
    node = Node(shared, leases, write_back, ["source"], Outage(clock), lambda report: None, monotonic=clock)

    todo = clips
    while todo:
        later = []
        for clip in todo:
            try:
                found = node.begin(clip)
            except FetchError:
                later.append(clip)
                continue
            if isinstance(found, Wait):
                later.append(clip)
                continue
            claim = store.claim(clip)
            assert claim is not None
            with claim:
                path = claim.folder / clip.name
                if isinstance(found, SharedClip):
                    path.write_bytes(found.body)
                    claim.publish(path, found.facts.source, duration=found.facts.duration)
                    continue
                try:
                    path.write_bytes(fetch(settings["origin"], clip))
                except FetchError as error:
                    found.fail(error)
                    later.append(clip)
                    continue
                claim.publish(path, "youtube", duration=10.0)
            found.finish("source")
        if later:
            time.sleep(0.05)
        todo = later
    left = write_back.flush(60 * _SPEED)
    write_back.close()
    leases.close()
    status = node.status()
    print(json.dumps({"hits": status.hits, "misses": status.misses, "waits": status.waits, "left": left}))


if __name__ == "__main__":
    main()
