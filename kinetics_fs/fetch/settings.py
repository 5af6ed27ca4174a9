"""What fetching needs to know, as plain values: part of it crosses to the worker processes as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from kinetics_fs.sources import SourceSettings


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Settings of the fetcher.

    Args:
        workers: clips fetched at the same time, a process each.
        timeout: seconds that one clip may take, from the worker's start on it to the verified file.
        max_fetches_per_hour: clips to request from YouTube in any hour; None for no limit.
        sources: for the sources, in the workers.
    """

    workers: int = 4
    timeout: float = 300.0
    max_fetches_per_hour: int | None = None
    sources: SourceSettings = field(default_factory=SourceSettings)
