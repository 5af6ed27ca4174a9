"""Where the clips of a catalog come from, as text for `classes` and `status --coverage`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from kinetics_fs.catalog import SPLITS, Origin, find_release


def origin_lines(release: str, origins: Sequence[Origin]) -> Iterator[str]:
    """Yield a table of the lists and archives that name the clips, and of the numbers that are published."""
    rows = [(origin.name, origin.clips) for origin in origins if origin.kind == "list"]
    archives = [origin for origin in origins if origin.kind == "archive"]
    if archives:
        clips = Counter[str]()
        for archive in archives:
            clips.update(archive.clips)
        rows.append((f"only in archives ({len(archives):,})", dict(clips)))
    rows += [(f"published: {count.source}", count.clips) for count in find_release(release).counts]
    width = max((len(name) for name, _ in rows), default=0)
    yield f"{'clips named by':<{width}}" + "".join(f"  {split:>10}" for split in SPLITS)
    for name, numbers in rows:
        yield f"{name:<{width}}" + "".join(f"  {numbers.get(split, 0):>10,}" for split in SPLITS)
