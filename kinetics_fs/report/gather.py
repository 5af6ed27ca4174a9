"""All that the page says, but its pictures; ready to be JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from kinetics_fs._version import __version__
from kinetics_fs.store import Store

_COUNTS = ("clips", "cached", "evicted", "unavailable", "untried")


def gather(
    store: Store,
    *,
    selection: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    failures: Mapping[str, Any],
    mounts: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Collects what there is to say.

    Args:
        store: the cache.
        selection: what was selected, in the words of the settings.
        classes: how many clips of each class in each split are here, and how it is with the others.
        failures: why some of them could not be had: kind → how many `clips`, and `reasons` → how many.
        mounts: what the running mounts say of themselves.
    """
    splits: dict[str, dict[str, Any]] = {}
    for row in classes:
        sums = splits.setdefault(row["split"], {"split": row["split"], **dict.fromkeys(_COUNTS, 0)})
        for name in _COUNTS:
            sums[name] += row[name]
    shown = [_mount(status) for status in mounts]
    here = [mount for mount in shown if mount["dead"] or mount["cache"] == str(store.folder)]
    return {
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "selection": dict(selection),
        "total": {name: sum(sums[name] for sums in splits.values()) for name in _COUNTS},
        "splits": list(splits.values()),
        "classes": [dict(row) for row in sorted(classes, key=lambda row: row["label"].casefold())],
        **{name: value for name, value in store.report().items() if name in ("cache", "origins")},
        "failures": dict(failures),
        "history": [sample._asdict() for sample in store.history.samples()],
        "mounts": here,
        "mounts_of_other_caches": len(shown) - len(here),
    }


def _mount(status: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of a mount. It may be of another version or another user's, and say what it likes."""
    prefetches = status.get("prefetches")
    return {
        **{name: status.get(name) for name in ("mountpoint", "dead", "release", "clips", "pid", "since")},
        "cache": _inside(status, "cache", "folder"),
        "frontend": _inside(status, "frontend", "name"),
        "mode": _inside(status, "frontend", "mode"),
        "from_cache": _inside(status, "opens", "from_cache"),
        "not_in_cache": _inside(status, "opens", "not_in_cache"),
        **{name: _inside(status, "fetch", name) for name in ("under_way", "fetched", "failed")},
        "prefetches": [
            {
                name: one.get(name)
                for name in ("id", "what", "state", "reason", "clips", "fetched", "already_cached", "failed")
            }
            for one in (prefetches if isinstance(prefetches, list) else ())
            if isinstance(one, dict)
        ],
    }


def _inside(status: Mapping[str, Any], group: str, name: str) -> Any:
    inside = status.get(group)
    return inside.get(name) if isinstance(inside, dict) else None
