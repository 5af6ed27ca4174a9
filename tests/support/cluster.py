"""Nodes with caches of their own and one shared store, as processes, and an origin that counts their requests."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import SharedStore, open_backend
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, prepare_folder
from tests.support.annotations import Labelled, write_annotations
from tests.support.archive_site import ArchiveSite, index_of
from tests.support.command_line import ENVIRONMENT
from tests.support.mounts import CLASS, write_clips
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, in_class, make_tar

ARCHIVE = f"600/val/{CLASS}.tar.gz"
LARGE = 1_500_000  # bytes of `large_clips`
_DELAY = 0.05  # seconds that the origin takes for an answer


def cluster_clips(folder: Path, count: int) -> dict[Clip, bytes]:
    """Make clips, all with the same picture and no two with the same bytes."""
    clips = [Clip(f"-cluster{number:03d}", number, number + 2) for number in range(count)]
    write_clips(folder, clips)
    return {clip: (folder / clip.name).read_bytes() for clip in clips}


def large_clips(folder: Path, count: int) -> dict[Clip, bytes]:
    """Make clips of 10 seconds and 1.5 MB, the average of real ones; no two have the same bytes."""
    folder.mkdir()
    path = folder / "video.mp4"
    make_video(path, seconds=10, ffmpeg=find_ffmpeg())
    video = path.read_bytes()
    clips: dict[Clip, bytes] = {}
    for number in range(count):
        # A free box at the end, which every reader skips (ISO/IEC 14496-12, 8.1.2).
        filler = random.Random(number).randbytes(LARGE - len(video) - 8)
        box = struct.pack(">I4s", len(filler) + 8, b"free") + filler
        clips[Clip(f"-cluster{number:03d}", number, number + 10)] = video + box
    return clips


class Origin:
    """A server with an archive that counts requests. A clip is one of them, because every node has the index.

    Attributes:
        site: the server.
        index: of the archive.
        holds_after: number of requests after which the others wait until `released` is set; None for none.
        released: see `holds_after`.
    """

    def __init__(self, clips: Mapping[Clip, bytes]) -> None:
        self.site = ArchiveSite({ARCHIVE: by_zlib(make_tar(clips, in_class))})
        self.site.__enter__()
        self.index = index_of(self.site.url, ARCHIVE)
        self.site.requests.clear()
        self.site.before = self._before
        self.holds_after: int | None = None
        self.released = threading.Event()
        self._count = 0
        self._changed = threading.Condition()

    def _before(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()
            held = self.holds_after is not None and self._count > self.holds_after
        if held:
            self.released.wait()
        time.sleep(_DELAY)

    @property
    def requests(self) -> Counter[str]:
        """The number of requests by range, which is that of a clip."""
        return Counter(request.range or "" for request in self.site.requests)

    @property
    def bytes(self) -> int:
        """Number of bytes that were sent."""
        return sum(request.bytes for request in self.site.requests)

    def wait_for(self, count: int) -> None:
        """Wait until this many requests have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, 120)

    def close(self) -> None:
        """End the server."""
        self.released.set()
        self.site.__exit__()


class Nodes:
    """Nodes that share a store, or that have none.

    Args:
        folder: for their caches.
        store: address of the shared store, which exists; None for none.
        origin: has the clips.
        clips: the clips that each node opens, with their content.
        ttl: seconds after which the lease of a killed node is over; None for what the program has.
        environment: variables of the nodes.
    """

    def __init__(
        self,
        folder: Path,
        store: str | None,
        origin: Origin,
        clips: Mapping[Clip, bytes],
        *,
        ttl: float | None = 3.0,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.folder = folder
        self.store = store
        self.origin = origin
        self.clips = clips
        self.running: list[subprocess.Popen[str]] = []
        self._ttl = ttl
        self._environment = {**os.environ, **ENVIRONMENT, **environment}  # with the keys of the bucket
        self._annotations = write_annotations(
            folder / "annotations.csv", [Labelled(CLASS, clip, "validate") for clip in clips]
        )

    def cache(self, number: int) -> Path:
        """Return the cache of a node."""
        return self.folder / f"cache-{number}"

    def library(self, number: int) -> dict[str, Any]:
        """Return the settings of a node; its cache has the index of the archive."""
        layout = CacheLayout(self.cache(number))
        prepare_folder(layout.root)
        with ArchiveIndexDB(layout.archive_indexes) as indexes:
            indexes.add(self.origin.index)
        return {
            "cache_dir": str(layout.root),
            "min_free": 0,
            "annotations": [str(self._annotations)],
            "source": ["archive"],
            "archive_url": self.origin.site.url,
            "shared": self.store,
            "workers": 2,
        }

    def start(self, number: int, *, clock: float = 0.0, **values: Any) -> subprocess.Popen[str]:
        """Start a node.

        Args:
            number: of the node.
            clock: seconds by which its clock is ahead.
            values: further settings of its library.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.cluster_node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self.running.append(process)
        assert process.stdin is not None
        settings = {
            "library": {**self.library(number), **values},
            "clock": clock,
            "ttl": self._ttl,
            "seed": number,
            "readers": 2,
            "digests": {clip.name: hashlib.sha256(content).hexdigest() for clip, content in self.clips.items()},
        }
        process.stdin.write(json.dumps(settings))
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[str], *, within: float = 110) -> dict[str, Any]:
        """Wait for the end of a node, and return what it reports; check that it read no wrong clip."""
        output, _ = process.communicate(timeout=within)
        assert process.returncode == 0
        result: dict[str, Any] = json.loads(output)
        assert result["wrong"] == 0
        return result

    def check(self, *numbers: int) -> None:
        """Check that each node has every clip in its cache, and so has the store."""
        for number in numbers:
            assert cached_content(self.cache(number)) == self.clips
        if self.store is not None:
            shared = SharedStore(open_backend(self.store))
            for clip, content in self.clips.items():
                found = shared.get_clip(clip, SOURCE)
                assert found is not None and found.body == content

    def close(self) -> None:
        """End all nodes."""
        for process in self.running:
            process.kill()
            process.wait()
