"""Functions for the tests of a store that run in a separate process each."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Thread

from kinetics_fs.errors import FetchError
from kinetics_fs.store import Claim, Store
from tests.support.store import UNIT, clip, keep, read_clip, write
from tests.support.subprocesses import Steps, die

LIMIT = 3 * UNIT
"""Limit of the stores in which processes die: so small that the next clip needs an eviction."""


def claim_of(store: Store, number: int) -> Claim:
    claim = store.claim(clip(number))
    assert claim is not None
    return claim


# Actions during which a process dies, in a store with LIMIT that has the clips 0, 1 and 2


def publish_beside(store: Store) -> None:
    """Publish a clip that fits."""
    store.remove(clip(0))
    keep(store, clip(3))


def publish_instead(store: Store) -> None:
    """Publish a clip for which another must be evicted."""
    keep(store, clip(3))


def publish_larger(store: Store) -> None:
    """Publish a clip larger than assumed: one is evicted at the claim, and another one at the publication."""
    keep(store, clip(3), 2 * UNIT)


def publish_again(store: Store) -> None:
    """Publish a clip that is cached already."""
    keep(store, clip(1))


def give_up(store: Store) -> None:
    """Give up a fetch."""
    with claim_of(store, 3) as claim:
        write(claim)


def remove(store: Store) -> None:
    store.remove(clip(1))


def open_damaged(store: Store) -> None:
    """Open a clip whose file is lost."""
    (path,) = store.layout.clips.glob(f"*/{clip(1).key}.*")
    path.unlink()
    read_clip(store, clip(1))


UNTOUCHED: dict[Callable[[Store], None], set[int]] = {
    publish_beside: {1, 2},
    publish_instead: {1, 2},
    publish_larger: {2},
    publish_again: {2},
    give_up: {1, 2},
    remove: {0, 2},
    open_damaged: {0, 2},
}
"""Each action, with the clips that it does not affect."""


def die_during(action: Callable[[Store], None], folder: Path, number: int, log: Path) -> None:
    """Run an action and die just before the `number`-th step; exit with 0 if there are fewer steps."""
    watch = Steps(log)
    with Store(folder, limit=LIMIT) as store:
        watch.die_before(number)
        action(store)


def die_recovering(folder: Path, number: int, log: Path) -> None:
    """Open the store and die just before the `number`-th step."""
    watch = Steps(log)
    watch.die_before(number)
    Store(folder, limit=LIMIT).close()


def claim_and_die(folder: Path, number: int) -> None:
    claim = claim_of(Store(folder), number)
    write(claim)
    die()


# Several processes


def hold_claim(folder: Path, number: int, pipe: Connection) -> None:
    """Keep a claim until the other end of the pipe is closed."""
    with Store(folder) as store, claim_of(store, number), suppress(EOFError):
        pipe.send("claimed")
        pipe.recv()


def claim_at_once(folder: Path, number: int, threads: int, barrier: Barrier, won: Path) -> None:
    """Let many threads claim a clip at once; each that gets the claim creates a file."""
    with Store(folder) as store:

        def try_it(thread: int) -> None:
            barrier.wait(60)
            if store.claim(clip(number)) is not None:
                (won / f"{os.getpid()}-{thread}").touch()
            barrier.wait(60)  # the claim ends with this process

        workers = [Thread(target=try_it, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def open_together(folder: Path, folders: int, barrier: Barrier) -> None:
    """Open new cache directories, each at the same moment as other processes."""
    try:
        for number in range(folders):
            barrier.wait(20)
            Store(folder / f"cache-{number}").close()
    except BaseException:
        barrier.abort()
        raise


def keep_many(folder: Path, limit: int, numbers: range, barrier: Barrier) -> None:
    """Put clips into a store that other processes fill at the same time."""
    barrier.wait(60)
    with Store(folder, limit=limit) as store:
        for number in numbers:
            keep(store, clip(number))
            read_clip(store, clip(numbers[0]))


def open_clip(folder: Path, number: int) -> None:
    with Store(folder) as store:
        assert read_clip(store, clip(number)) is not None


# Trouble on the machine


def open_without_descriptors(folder: Path, number: int) -> None:
    """Open a clip when the process has no file descriptor left."""
    with Store(folder) as store:
        assert read_clip(store, clip(number)) is not None
        taken = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            store.open(clip(number))
        except (FetchError, OSError):
            pass
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_cached_pipe(folder: Path, number: int) -> None:
    with Store(folder) as store:
        assert store.open(clip(number)) is None
