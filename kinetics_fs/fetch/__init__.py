"""How a clip gets here: once, in a worker process, verified, and the urgent ones first.

`Fetcher` is the door. Behind it: a queue of flights (`fetcher`), one `worker` process per thread of the pool
(`workers`), which asks the sources, cuts (`cut`) and proves the result (`verify`). Many clips at once are a `prefetch`;
those of a mount are kept by its `prefetcher`.
"""

from kinetics_fs.fetch.fetcher import Fetcher, Priority
from kinetics_fs.fetch.settings import FetchSettings

__all__ = ["FetchSettings", "Fetcher", "Priority"]
