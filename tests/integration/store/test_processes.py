"""Many processes and threads with one cache: one fetch per clip, one limit for all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from kinetics_fs.store import CacheLayout, Store
from tests.support import store_subprocess
from tests.support.store import (
    UNIT,
    assert_in_step,
    cached_numbers,
    clip,
    clip_file,
    clip_files,
    contents,
    is_absent,
    is_whole,
    keep,
    keep_clips,
    lose,
    read_clip,
    write,
)
from tests.support.subprocesses import CONTEXT, KILLED, end, start


@contextmanager
def claimed_elsewhere(folder: Path, number: int) -> Iterator[BaseProcess]:
    """Run the block while another process has a claim."""
    ours, theirs = CONTEXT.Pipe()
    with ours:
        process = start(store_subprocess.hold_claim, folder, number, theirs)
        theirs.close()
        assert ours.recv() == "claimed"
        yield process
    end(process)


def bytes_at_one_moment(folder: Path) -> int:
    """Return the bytes of all clip files that existed at the same moment.

    File names are never reused: a file that is listed, and still exists after the listing ended, existed at the moment
    in between.
    """
    seen = clip_files(folder)
    total = 0
    for path in seen:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_claim_is_exclusive_over_processes(store: Store) -> None:
    with claimed_elsewhere(store.folder, 0):
        assert store.claim(clip(0)) is None
        keep(store, clip(1))
    keep(store, clip(0))
    assert_in_step(store.folder)


def test_a_claim_is_exclusive_over_two_stores_of_one_process(store: Store) -> None:
    with Store(store.folder) as other:
        claim = store.claim(clip(0))
        assert claim is not None
        with claim:
            assert other.claim(clip(0)) is None
            assert store.claim(clip(0)) is None
            claim.publish(write(claim), "test")
        assert is_whole(other, clip(0))
        keep(other, clip(1))
        assert is_whole(store, clip(1))
        store.remove(clip(1))
        assert is_absent(other, clip(1))
        assert_in_step(store.folder, processes=2)


def test_one_thread_of_all_processes_gets_the_claim(folder: Path, tmp_path: Path) -> None:
    processes, threads = 3, 4
    Store(folder).close()
    barrier = CONTEXT.Barrier(processes * threads)
    begun = [start(store_subprocess.claim_at_once, folder, 0, threads, barrier, tmp_path) for _ in range(processes)]
    assert [end(process) for process in begun] == [0] * processes
    assert len(list(tmp_path.iterdir())) == 1


def test_the_claim_of_a_dead_process_is_taken_over(store: Store) -> None:
    with claimed_elsewhere(store.folder, 0) as process:
        assert store.claim(clip(0)) is None
        process.kill()
        process.join()
        keep(store, clip(0))
        assert is_whole(store, clip(0))
        assert_in_step(store.folder)


def test_opening_a_store_removes_what_a_dead_process_left(store: Store) -> None:
    assert end(start(store_subprocess.claim_and_die, store.folder, 0)) == KILLED
    assert len(contents(store.folder).incoming) == 1
    with Store(store.folder):
        assert_in_step(store.folder, processes=2)


def test_a_lost_state_database_loses_the_claims_of_dead_processes(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
    assert end(start(store_subprocess.claim_and_die, folder, 3)) == KILLED
    lose(CacheLayout(folder).state_database)
    with Store(folder) as store:
        assert_in_step(folder)
        keep(store, clip(3))


def test_eviction_follows_the_access_times_of_all_processes(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        keep_clips(store, 3)
        assert read_clip(store, clip(1))
        assert end(start(store_subprocess.open_clip, folder, 0)) == 0
        keep(store, clip(3))
        assert cached_numbers(store, 4) == [0, 1, 3]


def test_a_pipe_in_place_of_a_clip_file_does_not_block_an_open(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
    path = clip_file(folder, clip(0))
    path.unlink()
    os.mkfifo(path)
    process = start(store_subprocess.open_cached_pipe, folder, 0)
    process.join(10)
    blocks = process.is_alive()
    process.kill()
    assert not blocks
    assert end(process) == 0


def test_opening_a_store_keeps_the_claims_of_living_processes(store: Store) -> None:
    with claimed_elsewhere(store.folder, 0):
        claim = store.claim(clip(1))
        assert claim is not None
        with claim, Store(store.folder) as other:
            assert other.claim(clip(0)) is None
            assert other.claim(clip(1)) is None
            assert len(contents(store.folder).incoming) == 2
            claim.publish(write(claim), "test")
        assert is_whole(store, clip(1))


def test_a_closed_store_gives_its_claims_up(folder: Path) -> None:
    first = Store(folder)
    assert first.claim(clip(0)) is not None
    first.close()
    with Store(folder) as store:
        keep(store, clip(0))
        assert_in_step(folder)


@pytest.mark.parametrize("fresh", [True, False], ids=["a new folder", "a folder in use"])
def test_the_limit_holds_at_every_moment_while_processes_publish(folder: Path, fresh: bool) -> None:
    processes, clips, limit = 4, 8, 5 * UNIT
    if not fresh:
        Store(folder).close()
    barrier = CONTEXT.Barrier(processes)
    ranges = [range(number * clips, (number + 1) * clips) for number in range(processes)]
    begun = [start(store_subprocess.keep_many, folder, limit, numbers, barrier) for numbers in ranges]
    most, looks = 0, 0
    while any(process.is_alive() for process in begun):
        most = max(most, bytes_at_one_moment(folder))
        looks += 1
        time.sleep(0.001)
    assert [end(process) for process in begun] == [0] * processes
    assert looks > 10
    assert 0 < most <= limit
    with Store(folder, limit=limit) as store:
        assert_in_step(folder)
        cached = cached_numbers(store, processes * clips)
        assert cached
        assert all(is_whole(store, clip(number)) for number in cached)
        assert len(store.sizes([clip(number).key for number in range(processes * clips)])) == processes * clips


def test_a_new_folder_can_be_opened_by_many_processes_at_once(fast_tmp_path: Path) -> None:
    barrier = CONTEXT.Barrier(3)
    begun = [start(store_subprocess.open_together, fast_tmp_path, 120, barrier) for _ in range(3)]
    assert [end(process) for process in begun] == [0] * 3


def test_threads_of_one_store_read_publish_and_remove_at_once(folder: Path) -> None:
    with Store(folder, limit=6 * UNIT) as store:

        def work(thread: int) -> None:
            for turn in range(6):
                own = clip(thread * 100 + turn)
                keep(store, own)
                is_whole(store, own)
                is_whole(store, clip((thread + 1) % 4 * 100 + turn))
                if turn % 3 == 0:
                    store.remove(own)
                assert store.usage().bytes <= 6 * UNIT

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        assert_in_step(folder)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_a_new_thread_for_every_call_does_not_use_up_the_file_descriptors(store: Store) -> None:
    """With libfuse, each call may come from another thread."""
    keep(store, clip(0))
    before = open_descriptors()
    most = 0
    for _ in range(300):
        with ThreadPoolExecutor(1) as thread:
            assert not thread.submit(is_absent, store, clip(0)).result()
        most = max(most, open_descriptors())
    assert most < before + 150
