"""A node of a cluster, in a process of its own: `python -m tests.support.cluster_node < settings.json`.

It has a cache and the settings of any program that uses the library. It opens each clip of a list, in a random order,
until it has read all of them, and prints a line of JSON at the end. Two things differ from other programs on request:
the clock, and the time after which a lease ends that is not renewed, so that a test can wait for the leases of killed
nodes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_RETRY_INTERVAL = 0.2


def main() -> None:
    """Read all clips."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    settings: dict[str, Any] = json.load(sys.stdin)
    right = time.time
    time.time = lambda: right() + settings["clock"]
    # Later than the clock, because many functions have it as a default.
    from kinetics_fs import Library
    from kinetics_fs.errors import FetchError
    from kinetics_fs.shared import Leases, UploadQueue
    from kinetics_fs.store import CacheLayout

    if (ttl := settings["ttl"]) is not None:
        Leases.acquire.__defaults__ = (ttl,)
        Leases.start.__defaults__ = (ttl / 6,)
    digests: dict[str, str] = settings["digests"]
    names = sorted(digests)
    random.Random(settings["seed"]).shuffle(names)
    failures = 0
    lock = threading.Lock()

    with Library(**settings["library"]) as library:

        def read(name: str) -> bool:
            nonlocal failures
            while True:
                try:
                    with library.open(name) as file:
                        body = file.read()
                    return hashlib.sha256(body).hexdigest() == digests[name]
                except FetchError as error:
                    logging.warning("%s: %s", name, error)
                    with lock:
                        failures += 1
                    time.sleep(_RETRY_INTERVAL)

        with ThreadPoolExecutor(settings["readers"]) as readers:
            wrong = list(readers.map(read, names)).count(False)
        status = library.fetcher.shared_status()
    result = {"wrong": wrong, "failures": failures}
    if status is not None:
        left = UploadQueue(CacheLayout(Path(settings["library"]["cache_dir"])).uploads).status().clips
        result |= {"hits": status.hits, "misses": status.misses, "waits": status.waits, "left": left}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
