"""The requests that a mount answers on its control socket. docs/control.md describes them for users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kinetics_fs.catalog import Selection
from kinetics_fs.control.server import Request, RequestHandler
from kinetics_fs.control.status import MountStatus
from kinetics_fs.errors import KineticsError
from kinetics_fs.fetch.fetcher import Fetcher
from kinetics_fs.fetch.prefetch import parse_clip_list
from kinetics_fs.fetch.prefetch_manager import PrefetchManager
from kinetics_fs.mount.mountpoint import unmount
from kinetics_fs.store import Store
from kinetics_fs.store.coverage import Coverage

_SELECTION = ("splits", "classes", "max_samples", "shuffle", "seed", "available")
_DEFAULT_FAILURES, _MAX_FAILURES = 100, 10_000


def make_handlers(
    mountpoint: Path,
    *,
    status: Callable[[], MountStatus],
    store: Store,
    prefetches: PrefetchManager,
    coverage: Callable[[], Coverage],
    fetcher: Fetcher,
) -> Mapping[str, RequestHandler]:
    """Return the handlers of a mount, by the name of their request.

    Args:
        mountpoint: absolute path of the mount point.
        status: returns the status of the mount.
        store: the cache.
        prefetches: the prefetches of the mount.
        coverage: measures how much of the mount is cached.
        fetcher: the fetcher of the mount.
    """

    def prefetch(request: Request) -> dict[str, Any]:
        if request.get("lines", int) is not None:
            if any(request.has(name) for name in _SELECTION):
                raise KineticsError(
                    "cannot prefetch the clips: a list and a selection exclude each other; give one of them"
                )
            clips, invalid = parse_clip_list(request.lines())
            return {**prefetches.start_list(clips).to_json(), "invalid_lines": invalid}
        selection = Selection(
            splits=request.texts("splits"),
            classes=request.texts("classes"),
            max_samples=request.get("max_samples", int),
            shuffle=request.get("shuffle", bool, False),
            seed=request.get("seed", int),
            available=request.get("available", bool, False),
        )
        return prefetches.start(selection).to_json()

    def watch(request: Request) -> dict[str, Any]:
        return prefetches.watch(_job_id(request), lambda one: request.send_progress(one.to_json())).to_json()

    def failures(request: Request) -> list[dict[str, Any]]:
        count = request.get("count", int, _DEFAULT_FAILURES)
        return [
            {"clip": one.key, "kind": one.kind, "reason": one.reason, "source": one.source, "retry_at": one.retry_at}
            for one in islice(store.failures.all(), max(0, min(count, _MAX_FAILURES)))
        ]

    def drain(request: Request) -> None:
        fetcher.drain_uploads(lambda left: request.send_progress({"queued": left}))

    def umount(request: Request) -> None:
        unmount(mountpoint, lazy=request.get("lazy", bool, False))

    return {
        "status": RequestHandler(lambda request: status().to_json()),
        "coverage": RequestHandler(lambda request: coverage().to_json()),
        "prefetch": RequestHandler(prefetch, (*_SELECTION, "lines")),
        "prefetches": RequestHandler(lambda request: [one.to_json() for one in prefetches.statuses()]),
        "watch": RequestHandler(watch, ("id",), waits=True),
        "cancel": RequestHandler(lambda request: prefetches.cancel(_job_id(request)).to_json(), ("id",)),
        "drain": RequestHandler(drain, waits=True),
        "failures": RequestHandler(failures, ("count",)),
        "umount": RequestHandler(umount, ("lazy",)),
    }


def _job_id(request: Request) -> int:
    id = request.get("id", int)
    if id is None:
        raise KineticsError('cannot find the job: the parameter "id" is missing; the request prefetches lists ids')
    return int(id)
