"""Minutes of crashes and faults of a cluster, in which no node may read a wrong clip.

Nodes whose clocks differ share a bucket and read all clips in random orders. At random, nodes are killed and started
again, some of them with the cache that they had; the bucket answers 503, 409 or late, loses answers, is away for up to
20 seconds, or hangs; and objects are truncated, swapped with others, replaced with pages or with records of nonsense,
or deleted. Afterwards all faults end, each cache is finished by a node, and the store must have every clip.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.cluster import bucket
from benchmarks.report import Row, Target
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import SharedStore, open_backend
from tests.support.cluster import Nodes, Origin, cluster_clips
from tests.support.s3_proxy import Fault, S3Proxy
from tests.support.servers import Moto
from tests.support.store import cached_content

_FULL, _QUICK = 600.0, 40.0  # seconds
_NODES, _CLIPS = 4, 60
_CLOCKS = (-90.0, 0.0, 90.0)  # seconds
_KILL_EVERY = (2.0, 8.0)  # seconds
_DAMAGE_EVERY = (0.3, 1.5)  # seconds
_AWAY_EVERY, _AWAY_FOR = (20.0, 60.0), (3.0, 20.0)  # seconds
_FAULTY = 0.05  # part of the requests
_END_WITHIN = 150.0  # seconds for each node, after the last fault
_NONE = Target("ours", "<=", 0)
_SOME = Target("ours", ">=", 1)  # a run without any proves nothing

_NONSENSE = (b"[" * 100_000, b"{}", b"", b"null", b'{"nonce": 5}', b'{"nonce": "x", "ttl": 1e999, "failure": {}}')
_PAGE = b"<!DOCTYPE html><title>Sorry</title>" * 100
_RECORDS = ("leases/", "gone/", "budget/")


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure, in 12 minutes; with `quick` in two."""
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-cluster-chaos-") as made, bucket() as (server, proxy):
        return _Chaos(Path(made), server, proxy).run(_QUICK if quick else _FULL)


class _Chaos:
    def __init__(self, folder: Path, server: Moto, proxy: S3Proxy) -> None:
        self._s3 = server.s3
        self._proxy = proxy
        self._draw = random.Random()
        self._clips = cluster_clips(folder / "clips", _CLIPS)
        self._origin = Origin(self._clips)
        self._store = SharedStore(open_backend("s3://kinetics/chaos"))
        self._store.open(create=True)
        self._nodes = Nodes(folder, "s3://kinetics/chaos", self._origin, self._clips)
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._caches = 0
        self._over = threading.Event()
        self._away_until = 0.0
        self._away = Fault()
        self._counts: Counter[str] = Counter()
        self._touched: set[str] = set()

    def run(self, seconds: float) -> Sequence[Row]:
        self._proxy.fault = self._fault
        vandal = threading.Thread(target=self._damage, daemon=True)
        try:
            vandal.start()
            self._live(seconds)
            self._over.set()
            vandal.join()
            self._proxy.fault = lambda method, path: None
            self._finish()
            return self._rows()
        finally:
            self._over.set()
            self._nodes.close()
            self._origin.close()

    # Nodes

    def _start(self, number: int) -> None:
        self._running[number] = self._nodes.start(number, clock=self._draw.choice(_CLOCKS))

    def _live(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(self._running) < _NODES:
            self._start_new()
        while time.monotonic() < end:
            time.sleep(self._draw.uniform(*_KILL_EVERY))
            for number, process in list(self._running.items()):
                if process.poll() is not None:
                    self._end(number)
                    self._start_new()
            victim = self._draw.choice(list(self._running))
            self._running.pop(victim).send_signal(signal.SIGKILL)
            self._counts["killed"] += 1
            if self._draw.random() < 0.5:
                self._start(victim)
            else:
                self._start_new()

    def _start_new(self) -> None:
        self._caches += 1
        self._start(self._caches)

    def _end(self, number: int) -> None:
        """Take the result of a node that has ended."""
        process = self._running.pop(number)
        try:
            output, _ = process.communicate(timeout=_END_WITHIN)
        except subprocess.TimeoutExpired:
            self._counts["stuck"] += 1
            return
        if process.returncode:
            self._counts["crashed"] += 1
            return
        result = json.loads(output)
        self._counts["finished"] += 1
        self._counts["read"] += len(self._clips)
        for name in ("wrong", "failures", "left"):
            self._counts[name] += result[name]

    def _finish(self) -> None:
        """Let all nodes end, and one more for each cache; then look at the caches and the store."""
        for number in list(self._running):
            self._end(number)
        for number in range(1, self._caches + 1, max(1, self._caches // 10)):
            self._start(number)
            self._end(number)
            self._counts["caches"] += 1
            self._counts["wrong in caches"] += cached_content(self._nodes.cache(number)) != self._clips
        for clip, content in self._clips.items():
            with suppress(Exception):
                found = self._store.get_clip(clip, SOURCE)
                self._counts["sound"] += found is not None and found.body == content

    # Faults

    def _fault(self, method: str, path: str) -> Fault | None:
        now = time.monotonic()
        if now < self._away_until:
            return self._away
        if self._draw.random() > _FAULTY:
            return None
        self._counts["faults"] += 1
        return self._draw.choice(
            [
                Fault(503, "SlowDown"),
                Fault(500, "InternalError"),
                Fault(409, "ConditionalRequestConflict") if method == "PUT" else Fault(503, "SlowDown"),
                Fault(loses_answer=True),
                Fault(keeps=self._draw.randrange(2000)),
                Fault(seconds=self._draw.uniform(0.5, 5)),
                Fault(refuses=True),
            ]
        )

    def _damage(self) -> None:
        next_away = time.monotonic() + self._draw.uniform(*_AWAY_EVERY)
        while not self._over.wait(self._draw.uniform(*_DAMAGE_EVERY)):
            if time.monotonic() > next_away:
                self._away = self._draw.choice([Fault(refuses=True), Fault(503, "SlowDown"), Fault(seconds=15)])
                self._away_until = time.monotonic() + self._draw.uniform(*_AWAY_FOR)
                next_away = self._away_until + self._draw.uniform(*_AWAY_EVERY)
                self._counts["away"] += 1
            with suppress(self._s3.exceptions.ClientError):
                self._damage_one()

    def _damage_one(self) -> None:
        keys = [entry["Key"] for entry in self._s3.list_objects_v2(Bucket="kinetics").get("Contents", [])]
        clips = [key for key in keys if key.endswith(".mp4")]
        records = [key for key in keys if key.removeprefix("chaos/").startswith(_RECORDS)]
        if records and self._draw.random() < 0.3:
            self._put(self._draw.choice(records), self._draw.choice(_NONSENSE), {})
            self._counts["damaged"] += 1
        if not clips:
            return
        key, other = self._draw.choice(clips), self._draw.choice(clips)
        found: dict[str, Any] = self._s3.get_object(Bucket="kinetics", Key=key)
        body, metadata = found["Body"].read(), found["Metadata"]
        match self._draw.choice(["truncate", "swap", "page", "metadata", "delete", "nothing"]):
            case "truncate":
                self._put(key, body[: self._draw.randrange(len(body) + 1)], metadata)
            case "swap":
                self._put(other, body, metadata)
                key = other
            case "page":
                self._put(key, _PAGE, metadata)
            case "metadata":
                self._put(key, body, dict.fromkeys(metadata, "x" * 200))
            case "delete":
                self._s3.delete_object(Bucket="kinetics", Key=key)
        self._touched.add(key)
        self._counts["damaged"] += 1

    def _put(self, key: str, body: bytes, metadata: dict[str, str]) -> None:
        self._s3.put_object(Bucket="kinetics", Key=key, Body=body, Metadata=metadata)

    # Verdict

    def _rows(self) -> Sequence[Row]:
        counts, clips = self._counts, len(self._clips)
        twice = sum(
            count > 1
            for path, count in self._proxy.written.items()
            if path.endswith(".mp4") and path.removeprefix("/kinetics/") not in self._touched
        )
        return [
            Row("nodes that read all clips", counts["finished"], target=_SOME),
            Row("nodes killed", counts["killed"], target=_SOME),
            Row("faults of requests to the store", counts["faults"], target=_SOME),
            Row("times that the store was away", counts["away"]),
            Row("objects damaged or deleted", counts["damaged"], target=_SOME),
            Row("opens that failed and were repeated", counts["failures"]),
            Row("requests to the origin per clip", self._origin.requests.total() / clips),
            Row("clips read that were wrong", counts["wrong"], target=_NONE),
            Row("nodes that crashed", counts["crashed"], target=_NONE),
            Row("nodes that did not end", counts["stuck"], target=_NONE),
            Row("caches with a wrong or missing clip in the end", counts["wrong in caches"], target=_NONE),
            Row("clips missing or damaged in the store in the end", clips - counts["sound"], target=_NONE),
            Row("objects written twice that were not damaged", twice, target=_NONE),
        ]
