"""What a mount does when it is spoken to (see `kinetics_fs.control` and docs/control.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from kinetics_fs.catalog import Selection
from kinetics_fs.control.server import Handler, Request
from kinetics_fs.errors import KineticsError
from kinetics_fs.fetch.prefetch_manager import PrefetchManager, clip_in_line
from kinetics_fs.mount.mountpoint import unmount
from kinetics_fs.store import Store
from kinetics_fs.vfs import Filesystem

_MOST_FAILURES = 10_000


def make_handlers(
    place: Path, tree: Filesystem, store: Store, prefetcher: PrefetchManager, classes: Callable[[], object]
) -> Mapping[str, Handler]:
    """The handlers of a mount's requests, by what they do; `classes` says how much of each class is here."""

    def prefetch(request: Request) -> object:
        if request.get("lines", int, 0):
            found = [clip_in_line(line) for line in request.lines()]
            clips = [clip for clip in found if clip is not None]
            return {**prefetcher.take_list(clips), "not_understood": len(found) - len(clips)}
        return prefetcher.select(
            Selection(
                splits=request.texts("splits"),
                classes=request.texts("classes"),
                max_samples=request.get("max_samples", int),
                shuffle=request.get("shuffle", bool, False),
                seed=request.get("seed", int),
            )
        )

    def failures(request: Request) -> object:
        most = min(request.get("most", int, 100), _MOST_FAILURES)
        return [
            {"clip": one.key, "kind": one.kind, "reason": one.reason, "source": one.source, "retry_at": one.retry_at}
            for one in islice(store.failures(), most)
        ]

    def end(request: Request) -> object:
        unmount(place, lazy=request.get("lazy", bool, False))
        return None

    return {
        "status": lambda request: tree.status(),
        "classes": lambda request: classes(),
        "prefetch": prefetch,
        "prefetches": lambda request: prefetcher.reports(),
        "watch": lambda request: prefetcher.watch(_number(request), request.inform),
        "cancel": lambda request: prefetcher.cancel(_number(request)),
        "failures": failures,
        "umount": end,
    }


def _number(request: Request) -> int:
    number = request.get("id", int)
    if number is None:
        raise KineticsError('the number of a prefetch is missing: "id"')
    return int(number)
