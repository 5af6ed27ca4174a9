"""What the processes of these tests do. Each function runs in a process of its own."""

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
from tests.support.store import UNIT, clip, keep, read, write
from tests.support.subprocesses import Steps, die

LIMIT = 3 * UNIT
"""Limit of the stores in which processes die: so tight that the next clip needs an eviction."""


def claim_of(store: Store, number: int) -> Claim:
    claim = store.claim(clip(number))
    assert claim is not None
    return claim


# Deaths, each from a store of LIMIT that holds the clips 0, 1 and 2


def publish_beside(store: Store) -> None:
    """One clip that fits; there is a failure to be forgotten, too."""
    store.remove(clip(0))
    keep(store, clip(3))


def publish_instead(store: Store) -> None:
    """One clip that another must go for."""
    keep(store, clip(3))


def publish_larger(store: Store) -> None:
    """A clip larger than was guessed: one goes for the guess, and one more for the truth."""
    keep(store, clip(3), 2 * UNIT)


def publish_again(store: Store) -> None:
    """A clip that is here already."""
    keep(store, clip(1))


def give_up(store: Store) -> None:
    """A fetch that came to nothing."""
    with claim_of(store, 3) as claim:
        write(claim)


def drop(store: Store) -> None:
    store.remove(clip(1))


def open_damaged(store: Store) -> None:
    """A clip whose file is not what it was."""
    (path,) = store.layout.clips.glob(f"*/{clip(1).key}.*")
    path.unlink()
    read(store, clip(1))


UNTOUCHED: dict[Callable[[Store], None], set[int]] = {
    publish_beside: {1, 2},
    publish_instead: {1, 2},
    publish_larger: {2},
    publish_again: {2},
    give_up: {1, 2},
    drop: {0, 2},
    open_damaged: {0, 2},
}
"""Every deed, with the clips that it has nothing to do with."""


def die_doing(deed: Callable[[Store], None], folder: Path, number: int, log: Path) -> None:
    """Does it, and dies just before the `number`-th step; ends with 0 if there are fewer steps."""
    watch = Steps(log)
    with Store(folder, limit=LIMIT) as store:
        watch.die_before(number)
        deed(store)


def die_recovering(folder: Path, number: int, log: Path) -> None:
    """Dies just before the `number`-th step of opening the store."""
    watch = Steps(log)
    watch.die_before(number)
    Store(folder, limit=LIMIT).close()


def claim_and_die(folder: Path, number: int) -> None:
    claim = claim_of(Store(folder), number)
    write(claim)
    die()


# Several at once


def hold_claim(folder: Path, number: int, pipe: Connection) -> None:
    """Keeps a claim until the other end of the pipe is closed."""
    with Store(folder) as store, claim_of(store, number), suppress(EOFError):
        pipe.send("claimed")
        pipe.recv()


def claim_at_once(folder: Path, number: int, threads: int, barrier: Barrier, won: Path) -> None:
    """Many threads try for one claim; each that gets it leaves a file."""
    with Store(folder) as store:

        def try_it(thread: int) -> None:
            barrier.wait(60)
            if store.claim(clip(number)) is not None:
                (won / f"{os.getpid()}-{thread}").touch()
            barrier.wait(60)  # a claim lasts no longer than its process

        workers = [Thread(target=try_it, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def open_together(place: Path, folders: int, barrier: Barrier) -> None:
    """Opens new folders, each at the same moment as others do."""
    try:
        for number in range(folders):
            barrier.wait(20)
            Store(place / f"cache-{number}").close()
    except BaseException:
        barrier.abort()
        raise


def keep_many(folder: Path, limit: int, numbers: range, barrier: Barrier) -> None:
    """Puts clips into a store that others fill at the same time."""
    barrier.wait(60)
    with Store(folder, limit=limit) as store:
        for number in numbers:
            keep(store, clip(number))
            read(store, clip(numbers[0]))


def open_clip(folder: Path, number: int) -> None:
    with Store(folder) as store:
        assert read(store, clip(number)) is not None


# A machine in distress


def open_without_descriptors(folder: Path, number: int) -> None:
    """Opens a clip when the process has no file descriptor left."""
    with Store(folder) as store:
        assert read(store, clip(number)) is not None
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
