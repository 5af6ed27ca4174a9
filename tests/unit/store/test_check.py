"""Checks of the cache: they find every damaged clip, report no intact one, and change nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.store import CachedFile, CacheLayout, Condition, Store, Verdict, remove_bad, verify_clips
from tests.support.store import (
    UNIT,
    assert_in_step,
    cached_numbers,
    change_row,
    clip,
    clip_file,
    contents,
    head,
    is_whole,
    keep,
    query,
    read_clip,
    row_key,
)

Spoil = Callable[[Path], None]


def verify(store: Store) -> dict[int, Verdict]:
    """Return the verdicts on all cached clips, by number of the clip."""
    return {verdict.clip.start: verdict for verdict in verify_clips(store, store.cached_files())}


def conditions(store: Store) -> dict[int, Condition]:
    return {number: verdict.condition for number, verdict in verify(store).items()}


def flip(path: Path) -> None:
    """Change a bit in the middle, and neither the length nor the times."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(UNIT // 2)
        file.write(b"\x01")
    path.chmod(0o400)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def shorten(path: Path) -> None:
    os.truncate(path, UNIT - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, UNIT + 1)


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    """Replace the file by a link to a file with the same bytes."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_intact_clips_are_good(three: Path) -> None:
    before = contents(three).rows, query(CacheLayout(three).state_database, "SELECT * FROM clip ORDER BY key")
    with Store(three) as store:
        assert list(verify_clips(store, store.cached_files(), threads=2)) == [
            Verdict(clip(number), SOURCE, UNIT, Condition.GOOD, "", contents(three).rows[row_key(clip(number))][0])
            for number in sorted(range(3), key=lambda number: clip(number).key)
        ]
    # Not even the order of use.
    assert (contents(three).rows, query(CacheLayout(three).state_database, "SELECT * FROM clip ORDER BY key")) == before


@pytest.mark.parametrize(
    ("spoil", "condition"),
    [
        (flip, Condition.DAMAGED),
        (shorten, Condition.DAMAGED),
        (lengthen, Condition.DAMAGED),
        (remove, Condition.LOST),
        (link, Condition.LOST),
        (make_folder, Condition.LOST),
    ],
)
def test_a_damaged_clip_is_found_and_removed(three: Path, spoil: Spoil, condition: Condition) -> None:
    spoil(clip_file(three, clip(1)))
    elsewhere = [path.read_bytes() for path in three.glob("clips/*/elsewhere")]
    before = contents(three)
    with Store(three) as store:
        assert conditions(store) == {0: Condition.GOOD, 1: condition, 2: Condition.GOOD}
        assert (contents(three).rows, contents(three).cached) == (before.rows, before.cached)
        if spoil in (shorten, lengthen):  # it need not be read for that
            assert f"instead of {UNIT:,}" in verify(store)[1].reason

        assert remove_bad(store, verify(store)[1])

        assert conditions(store) == {0: Condition.GOOD, 2: Condition.GOOD}
        assert cached_numbers(store, 3) == [0, 2]
        keep(store, clip(1))
        assert all(is_whole(store, clip(number)) for number in range(3))
        # The target of a link belongs to somebody else.
        assert [path.read_bytes() for path in three.glob("clips/*/elsewhere")] == elsewhere
        for path in three.glob("clips/*/elsewhere"):
            path.unlink()
        assert_in_step(three)


def test_an_open_file_keeps_its_bytes_when_a_bad_clip_is_removed(three: Path) -> None:
    flip(clip_file(three, clip(1)))
    with Store(three) as store:
        opened = store.open(clip(1))
        assert opened is not None
        assert remove_bad(store, verify(store)[1])
        with os.fdopen(opened.fd, "rb") as file:
            assert file.read().startswith(head(clip(1)))


def test_a_clip_that_was_replaced_after_its_verdict_is_not_removed(three: Path) -> None:
    flip(clip_file(three, clip(1)))
    with Store(three) as store:
        verdict = verify(store)[1]
        keep(store, clip(1))

        assert not remove_bad(store, verdict)
        assert is_whole(store, clip(1))


@pytest.mark.parametrize("again", [False, True], ids=["evicted", "replaced"])
def test_a_clip_that_is_evicted_while_it_is_read_is_good(three: Path, again: bool) -> None:
    with Store(three) as store:

        def decode(path: Path) -> None:
            store.remove(clip(1))
            if again:
                keep(store, clip(1), UNIT // 2)
            assert path.read_bytes() == head(clip(1)).ljust(UNIT, b"\0")

        [verdict] = verify_clips(store, [CachedFile(clip(1), SOURCE, UNIT)], decode=decode)

        assert verdict.condition is Condition.GOOD
        assert (read_clip(store, clip(1)) is not None) == again


def test_a_clip_that_is_evicted_before_it_is_read_is_not_lost(three: Path) -> None:
    with Store(three) as store:
        chosen = list(store.cached_files())
        store.remove(clip(1))

        verdicts = {verdict.clip.start: verdict.condition for verdict in verify_clips(store, chosen)}

    assert verdicts == {0: Condition.GOOD, 1: Condition.EVICTED, 2: Condition.GOOD}


def test_an_eviction_in_progress_is_not_a_loss(three: Path) -> None:
    with Store(three) as store, Store(three) as other:
        found: list[Condition] = []
        with other._database.exclusive() as db:
            # Its file and its row are gone, but the state database still has it as cached.
            other._evictor.remove(db, clip(1).key, SOURCE)
            thread = threading.Thread(
                target=lambda: found.append(next(verify_clips(store, [CachedFile(clip(1), SOURCE, UNIT)])).condition)
            )
            thread.start()
            time.sleep(0.2)
        thread.join(60)

    assert found == [Condition.EVICTED]


@pytest.mark.parametrize(
    ("number", "condition"), [(errno.EIO, Condition.DAMAGED), (errno.ENOMEM, Condition.UNREADABLE)]
)
def test_read_errors_of_the_disk(
    three: Path, monkeypatch: pytest.MonkeyPatch, number: int, condition: Condition
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with Store(three) as store:
        assert conditions(store) == dict.fromkeys(range(3), condition)


def test_a_clip_that_does_not_decode_is_damaged(three: Path) -> None:
    def decode(path: Path) -> None:
        begin = path.read_bytes()[:100]
        if begin.startswith(head(clip(1))):
            raise FetchError(FailureKind.CORRUPT, "no media")
        if begin.startswith(head(clip(2))):
            raise OSError(errno.ENOMEM, "no memory")

    with Store(three) as store:
        verdicts = {v.clip.start: v for v in verify_clips(store, store.cached_files(), decode=decode)}

    assert {number: verdict.condition for number, verdict in verdicts.items()} == {
        0: Condition.GOOD,
        1: Condition.DAMAGED,
        2: Condition.UNREADABLE,
    }
    assert verdicts[1].reason == "no media"


# Files of no clip


def test_unknown_files_are_found_and_removed_if_their_names_are_those_of_clips(three: Path) -> None:
    known = clip_file(three, clip(1))
    ours, foreign, top = (
        known.with_name(f"{clip(1).key}.{'0' * 32}.mp4"),
        known.with_name("notes"),
        three / "clips/notes",
    )
    for path in (ours, foreign, top):
        path.write_text("x")
    with Store(three) as store:
        found = list(store.unknown_files())

        assert sorted(found) == sorted([ours, foreign, top])
        # A file with another kind of name may belong to the user.
        assert [path for path in found if store.remove_unknown_file(path)] == [ours]
        assert sorted(store.unknown_files()) == sorted([foreign, top])
        assert not store.remove_unknown_file(known)
        assert is_whole(store, clip(1))
        assert foreign.exists()
        assert top.exists()


def test_a_file_that_is_being_published_is_not_unknown(three: Path) -> None:
    with Store(three) as store, Store(three) as other:
        found: list[list[Path]] = []
        with other._database.exclusive():
            # It has its name, but no row yet.
            filename, _ = contents(three).rows[row_key(clip(1))]
            change_row(three, clip(1), filename="later")
            thread = threading.Thread(target=lambda: found.append(list(store.unknown_files())))
            thread.start()
            time.sleep(0.2)
            change_row(three, clip(1), filename=filename)
        thread.join(60)

    assert found == [[]]
