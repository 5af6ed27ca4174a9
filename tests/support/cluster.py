"""Machines with caches of their own and one shared store, as processes, and a source that counts their requests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared import SharedStore, open_backend
from kinetics_fs.store import Store


def content(name: str) -> bytes:
    """Return the content of a clip with this file name."""
    return name.encode() * 5000


class Origin:
    """A source that counts requests.

    Attributes:
        url: its address.
        requests: number of requests by clip name.
        holds_after: number of requests after which the others wait until `released` is set; None for none.
        released: see `holds_after`.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.holds_after: int | None = None
        self.released = threading.Event()
        self.changed = threading.Condition()
        origin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/")
                with origin.changed:
                    origin.requests[name] += 1
                    origin.changed.notify_all()
                    held = origin.holds_after is not None and origin.requests.total() > origin.holds_after
                if held:
                    origin.released.wait()
                time.sleep(0.05)
                body = content(name)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the machine was killed
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for(self, count: int) -> None:
        """Wait until this many requests have arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.requests.total() >= count, 60)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class Machines:
    """Processes of `tests.support.cluster_node`."""

    def __init__(self, folder: Path, store: str, origin: Origin, clips: Sequence[Clip]) -> None:
        self.folder = folder
        self.store = store
        self.origin = origin
        self.clips = clips
        self.running: list[subprocess.Popen[str]] = []

    def start(self, number: int) -> subprocess.Popen[str]:
        """Start a machine."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.cluster_node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdin is not None
        settings = {
            "name": f"machine-{number}",
            "cache": str(self.folder / str(number)),
            "store": self.store,
            "origin": self.origin.url,
            "seed": number,
            "clips": self.clips,
        }
        process.stdin.write(json.dumps(settings))
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for the end of a machine, and return what it reports."""
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0
        result: dict[str, Any] = json.loads(output)
        return result

    def check(self, *numbers: int) -> None:
        """Check that each machine has every clip in its cache, and so has the store."""
        for number in numbers:
            with Store(self.folder / str(number)) as store:
                for clip in self.clips:
                    opened = store.open(clip)
                    assert opened is not None
                    with open(opened.fd, "rb") as file:  # noqa: PTH123
                        assert file.read() == content(clip.name)
        shared = SharedStore(open_backend(self.store))
        assert {clip for clip, _ in shared.clips("source")} == set(self.clips)

    def close(self) -> None:
        """End all machines."""
        for process in self.running:
            process.kill()
            process.wait()
