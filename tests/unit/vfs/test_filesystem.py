"""The filesystem without a kernel: names, attributes, the futures of opens, and every error's errno."""

from __future__ import annotations

import csv
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import Catalog, ClassNames, Clip, Selection, compile_catalog, find_release, select
from kinetics_fs.control.status import OpenCounts
from kinetics_fs.errors import CatalogError, FailureKind, FetchError, KineticsError, MountError, StoreError
from kinetics_fs.media.cut import MAX_BITS_PER_SECOND
from kinetics_fs.store import Store, StoredClip
from kinetics_fs.vfs import ROOT, AttrCache, ClipHandle, Filesystem, FilesystemOptions, Handle, NodeType, errno_of
from tests.support.annotations import Labelled, write_annotations
from tests.support.example_filesystem import FakeFetcher, descriptors, put

LABELS = ["abseiling", "massaging person's head", "日本の踊り", "passing American football (in game)"]
CLIP = Clip("-demo_video", 10, 20)
SPLIT_WORDS = {"train": "train", "val": "validation", "test": "test"}


def make_rows() -> list[Labelled]:
    """Return clips in two splits, and a third split whose clips have no labels."""
    found = [
        Labelled(label, Clip(f"{number:011d}", number, number + 1 + number % 10), split)
        for index, label in enumerate(LABELS)
        for split in ("train", "val")
        for number in range(1 + 9 * index)
    ]
    found += [Labelled("", Clip(f"_{number:010d}", 0, 10), "test") for number in range(7)]
    found.append(Labelled("abseiling", CLIP, "val"))
    return found


ROWS = make_rows()


@dataclass
class Parts:
    """A filesystem and the parts that it is made of."""

    fs: Filesystem
    catalog: Catalog
    store: Store
    fetcher: FakeFetcher

    def find(self, path: str) -> int:
        """Return the inode number of a path."""
        ino = ROOT
        for name in path.split("/"):
            ino = self.fs.lookup(ino, name)
        return ino

    @property
    def clip(self) -> int:
        return self.find(f"validation/abseiling/{CLIP.name}")

    def keep(self, content: bytes, clip: Clip = CLIP) -> None:
        """Publish a clip in the store."""
        put(self.store, clip, content)

    def deliver(self, content: bytes, clip: Clip = CLIP) -> None:
        """Publish a clip in the store, and complete all requests for it."""
        self.fetcher.deliver(clip, content)


def make_filesystem(
    catalog: Catalog, store: Store, fetcher: FakeFetcher, class_names: ClassNames = ClassNames.RAW
) -> Filesystem:
    options = FilesystemOptions(
        class_names=class_names, status=lambda: f"{store.usage().clips} clips\n", metrics=lambda: "clips 0\n"
    )
    return Filesystem(catalog, store, fetcher, options)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("catalog")
    annotations = write_annotations(folder / "rows.csv", [*ROWS, Labelled("a/b", CLIP, "train")])
    with Catalog(compile_catalog([annotations], find_release("600"), folder)) as catalog:
        yield catalog


@pytest.fixture
def parts(catalog: Catalog, tmp_path: Path) -> Iterator[Parts]:
    with Store(tmp_path / "cache") as store:
        fetcher = FakeFetcher(store)
        yield Parts(make_filesystem(catalog, store, fetcher), catalog, store, fetcher)


@pytest.fixture(scope="module")
def fixed(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """A filesystem that no test changes, for the many examples of hypothesis."""
    with Store(tmp_path_factory.mktemp("fixed") / "cache") as store:
        fetcher = FakeFetcher(store)
        yield Parts(make_filesystem(catalog, store, fetcher), catalog, store, fetcher)


def number_of(function: Callable[[], object]) -> str:
    """Return the name of the errno that a call fails with."""
    with pytest.raises(OSError) as caught:
        function()
    return errno.errorcode[caught.value.errno or 0]


# Names ------------------------------------------------------------------------------------------------------------


def test_every_row_is_found_and_listed(fixed: Parts) -> None:
    for label, clip, split in ROWS:
        ino = fixed.find(f"{SPLIT_WORDS[split]}/{label or '_unlabeled'}/{clip.name}")
        assert fixed.fs.attributes(ino).ino == ino
    listed = {
        (split.name, label.name, clip.name)
        for split in fixed.fs.entries(ROOT)
        if split.type is NodeType.DIRECTORY and split.name != ".kinetics"
        for label in fixed.fs.entries(split.ino)
        for clip in fixed.fs.entries(label.ino)
    }
    assert listed == {(SPLIT_WORDS[split], label or "_unlabeled", clip.name) for label, clip, split in ROWS}


def test_listing_and_lookup_agree(fixed: Parts) -> None:
    def check(ino: int) -> int:
        entries = fixed.fs.entries(ino)
        names = [entry.name for entry in entries]
        assert len(set(names)) == len(names)
        for name, number, kind in entries:
            assert fixed.fs.lookup(ino, name) == number
            assert fixed.fs.attributes(number).type is kind
            if kind is NodeType.DIRECTORY:
                assert fixed.fs.parent(number) == ino
                check(number)
        folders = sum(entry.type is NodeType.DIRECTORY for entry in entries)
        assert fixed.fs.attributes(ino).links == 2 + folders
        return len(entries)

    assert check(ROOT) == 5
    assert fixed.fs.parent(ROOT) == ROOT


@given(offset=st.integers(0, 60), count=st.integers(0, 60), chosen=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_a_part_of_a_listing_is_that_part(fixed: Parts, offset: int, count: int, chosen: int) -> None:
    paths = ["validation", "validation/abseiling", f"validation/{LABELS[3]}", "test", "test/_unlabeled", ".kinetics"]
    ino = ROOT if chosen >= len(paths) else fixed.find(paths[chosen])
    whole = fixed.fs.entries(ino)
    with_attributes = [entry for entry in fixed.fs.entries_with_attributes(ino, offset, count) if entry is not None]
    assert [(name, attributes.ino) for name, attributes in with_attributes] == [
        (entry.name, entry.ino) for entry in whole[offset : offset + count]
    ]
    for _, attributes in with_attributes:
        assert attributes._replace(mtime=0) == fixed.fs.attributes(attributes.ino)._replace(mtime=0)


@given(name=st.text(max_size=300) | st.binary(max_size=300).map(os.fsdecode))
@settings(deadline=None, max_examples=200)
def test_lookup_of_any_other_name_fails(fixed: Parts, name: str) -> None:
    for path in (None, ".kinetics", "validation", "validation/abseiling"):
        ino = ROOT if path is None else fixed.find(path)
        if name not in [entry.name for entry in fixed.fs.entries(ino)]:
            with pytest.raises(OSError) as caught:
                fixed.fs.lookup(ino, name)
            assert caught.value.errno in (errno.ENOENT, errno.ENAMETOOLONG)


def test_operations_on_the_wrong_type_of_node_fail(fixed: Parts) -> None:
    filesystem, clip, control = fixed.fs, fixed.clip, fixed.find(".kinetics/status.json")
    assert number_of(lambda: filesystem.lookup(clip, CLIP.name)) == "ENOTDIR"
    assert number_of(lambda: filesystem.entries(clip)) == "ENOTDIR"
    assert number_of(lambda: filesystem.entries(control)) == "ENOTDIR"
    assert number_of(lambda: filesystem.lookup(control, CLIP.name)) == "ENOTDIR"
    assert number_of(lambda: filesystem.readlink(clip)) == "EINVAL"
    assert number_of(lambda: filesystem.readlink(ROOT)) == "EINVAL"
    for ino in (5, 15, 1000, 2**32, 2**61, 2**62, 2**63 - 1):
        assert number_of(partial(filesystem.attributes, ino)) == "ENOENT"
    assert filesystem.readlink(fixed.find("val")) == "validation"


@pytest.mark.parametrize("style", ClassNames)
def test_class_name_styles_keep_inode_numbers(fixed: Parts, style: ClassNames) -> None:
    styled = make_filesystem(fixed.catalog, fixed.store, fixed.fetcher, style)
    split = fixed.find("train")
    assert [entry.ino for entry in styled.entries(split)] == [entry.ino for entry in fixed.fs.entries(split)]
    expected = {
        ClassNames.RAW: "massaging person's head",
        ClassNames.UNDERSCORE: "massaging_person's_head",
        ClassNames.TORCHVISION: "massaging_persons_head",
    }
    assert [entry.name for entry in styled.entries(split)][1] == expected[style]
    assert number_of(lambda: styled.lookup(split, "massaging")) == "ENOENT"


def test_inode_numbers_of_virtual_files_do_not_depend_on_the_selection(fixed: Parts, tmp_path: Path) -> None:
    with select(fixed.catalog, Selection(splits=("validation",)), tmp_path) as part:
        filesystem = make_filesystem(part, fixed.store, fixed.fetcher)
        folder = filesystem.lookup(ROOT, ".kinetics")
        for entry in filesystem.entries(folder):
            assert entry.ino == fixed.find(f".kinetics/{entry.name}"), entry.name


def test_a_selection_without_validation_has_no_val(fixed: Parts, tmp_path: Path) -> None:
    with select(fixed.catalog, Selection(splits=("train",)), tmp_path) as part:
        filesystem = make_filesystem(part, fixed.store, fixed.fetcher)
        assert [entry.name for entry in filesystem.entries(ROOT)] == [".kinetics", "train"]
        assert number_of(lambda: filesystem.lookup(ROOT, "val")) == "ENOENT"


# Attributes -------------------------------------------------------------------------------------------------------


def test_estimated_size_exceeds_that_of_any_cut_clip(fixed: Parts) -> None:
    for label, clip, split in ROWS:
        attributes = fixed.fs.attributes(fixed.find(f"{SPLIT_WORDS[split]}/{label or '_unlabeled'}/{clip.name}"))
        # Picture, sound, and what the container adds; the rate of the picture is a mean over its buffer, which may be
        # full once more.
        picture = MAX_BITS_PER_SECOND * (clip.duration + 1) / 8
        sound = 2 * 128_000 / 8 * clip.duration
        if clip.duration >= 4:
            assert attributes.size >= picture + sound
        assert attributes.size >= clip.duration * 1_000_000
        assert attributes.attr_cache is AttrCache.UNTIL_OPEN
        assert attributes.blocks * 512 >= attributes.size


def test_size_is_exact_after_the_fetch_and_after_the_eviction(parts: Parts) -> None:
    before = parts.fs.attributes(parts.clip)
    parts.keep(b"x" * 1001)
    here = parts.fs.attributes(parts.clip)
    assert (here.size, here.blocks) == (1001, 2)
    parts.store.remove(CLIP)
    evicted = parts.fs.attributes(parts.clip)
    assert (evicted.size, evicted.blocks) == (1001, 2)
    # It may come back with another size.
    assert evicted.attr_cache is AttrCache.UNTIL_OPEN
    assert before[:2] == here[:2] == evicted[:2]
    assert before.mtime == here.mtime == evicted.mtime
    assert before.mode == here.mode == evicted.mode


def test_lookups_listings_and_stat_fetch_nothing(fixed: Parts) -> None:
    def look(ino: int) -> None:
        for name, attributes in filter(None, fixed.fs.entries_with_attributes(ino, 0, 1000)):
            assert fixed.fs.lookup(ino, name) == attributes.ino
            fixed.fs.list_xattrs(attributes.ino)
            if attributes.type is NodeType.DIRECTORY:
                look(attributes.ino)

    look(ROOT)
    fixed.fs.statistics()
    fixed.fs.opens()
    assert fixed.fetcher.fetches == []


def test_times_are_the_day_of_the_release(fixed: Parts) -> None:
    days = {fixed.fs.attributes(fixed.find(path)).mtime for path in ("train", "val", ".kinetics/classes.txt")}
    assert days == {
        fixed.fs.attributes(fixed.clip).mtime,
        fixed.fs.attributes(ROOT).mtime,
    }
    [day] = days
    assert day % 86400 == 0


def test_statistics(parts: Parts) -> None:
    parts.keep(b"x" * 5000)
    statistics = parts.fs.statistics()
    assert (statistics.space.used, statistics.files) == (5000, len(ROWS))
    total, free, available = statistics.blocks(4096)
    assert total - free == 2
    assert 0 < available <= total


# Control files ----------------------------------------------------------------------------------------------------


def content(handle: Handle) -> bytes:
    return handle.read(0, handle.size + 1)


def expected_list(split: str) -> bytes:
    indexes = {label: index for index, label in enumerate(sorted(LABELS))}
    chosen = sorted((label or "_unlabeled", clip.name) for label, clip, word in ROWS if SPLIT_WORDS[word] == split)
    return "".join(f"{split}/{label}/{name} {indexes.get(label, -1)}\n" for label, name in chosen).encode()


@pytest.mark.parametrize("split", SPLIT_WORDS.values())
def test_split_list_is_correct_from_any_byte(fixed: Parts, split: str) -> None:
    handle = fixed.fs.open(fixed.find(f".kinetics/{split}.csv")).result()
    expected = expected_list(split)
    assert handle.size == len(expected) == fixed.fs.attributes(fixed.find(f".kinetics/{split}.csv")).size
    assert all(handle.read(offset, 200) == expected[offset : offset + 200] for offset in range(len(expected) + 50))
    assert content(handle) == expected


@given(split=st.sampled_from([*SPLIT_WORDS.values()]), offset=st.integers(0, 10_000), size=st.integers(0, 10_000))
@settings(deadline=None, max_examples=300)
def test_split_list_is_correct_in_any_range(fixed: Parts, split: str, offset: int, size: int) -> None:
    handle = fixed.fs.open(fixed.find(f".kinetics/{split}.csv")).result()
    assert handle.read(offset, size) == expected_list(split)[offset : offset + size]


@given(split=st.sampled_from([*SPLIT_WORDS.values()]), size=st.integers(1, 5000))
@settings(deadline=None, max_examples=30)
def test_split_list_is_correct_in_pieces_of_any_size(fixed: Parts, split: str, size: int) -> None:
    handle = fixed.fs.open(fixed.find(f".kinetics/{split}.csv")).result()
    pieces = [handle.read(offset, size) for offset in range(0, handle.size + size, size)]
    assert b"".join(pieces) == expected_list(split)


def test_split_list_is_empty_beyond_its_end(fixed: Parts) -> None:
    handle = fixed.fs.open(fixed.find(".kinetics/train.csv")).result()
    assert handle.read(2**62, 2**20) == b""
    assert handle.read(handle.size, 1) == b""


def test_text_files(fixed: Parts) -> None:
    def text(name: str) -> str:
        return content(fixed.fs.open(fixed.find(f".kinetics/{name}")).result()).decode()

    assert text("classes.txt").splitlines() == sorted(LABELS)
    assert (text("status.json"), text("metrics")) == ("0 clips\n", "clips 0\n")
    refused = list(csv.DictReader(io.StringIO(text("refused.csv"))))
    assert [row["reason"] for row in refused] == ["label has a slash"]
    assert refused[0]["row"].startswith("a/b,-demo_video")
    assert text("failures.csv").count("\n") == 1


def test_failures_csv_has_the_path_of_each_clip(parts: Parts) -> None:
    error = FetchError(FailureKind.GONE, 'it said "no",\nor so', source="youtube")
    parts.store.failures.remember(CLIP, error)
    parts.store.failures.remember(Clip("not_in_this", 1, 2), error)
    handle = parts.fs.open(parts.find(".kinetics/failures.csv")).result()
    [row] = csv.DictReader(io.StringIO(content(handle).decode(), newline=""))
    assert row["path"] == f"validation/abseiling/{CLIP.name}"
    assert (row["kind"], row["reason"], row["source"]) == ("gone", 'it said "no", or so', "youtube")
    assert parts.store.status().failures == {"gone": 2}


def test_live_file_keeps_its_content_while_open(parts: Parts) -> None:
    handle = parts.fs.open(parts.find(".kinetics/status.json")).result()
    before = content(handle)
    parts.keep(b"x" * 1000)
    assert content(handle) == before
    assert handle.live
    assert content(parts.fs.open(parts.find(".kinetics/status.json")).result()) != before


# Opens ------------------------------------------------------------------------------------------------------------


def test_cached_clip_is_opened_at_once(parts: Parts) -> None:
    parts.keep(b"0123456789")
    opened = parts.fs.open(parts.clip)
    assert opened.done()
    handle = opened.result()
    assert (handle.size, handle.live) == (10, False)
    assert handle.read(3, 4) == b"3456"
    assert handle.read(8, 100) == b"89"
    assert handle.read(10, 1) == b""
    handle.close()
    assert parts.fetcher.fetches == []


def test_open_looks_into_the_cache_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Clip] = []
    open_nowait = parts.store.open_nowait

    def look(clip: Clip) -> StoredClip | None:
        looks.append(clip)
        return open_nowait(clip)

    monkeypatch.setattr(parts.store, "open_nowait", look)
    missing = parts.fs.begin_open(parts.clip)
    assert looks == [CLIP]
    assert isinstance(missing, Future)
    parts.deliver(b"content")
    missing.result().close()
    looks.clear()

    cached = parts.fs.begin_open(parts.clip)

    assert looks == [CLIP]
    assert not isinstance(cached, Future)
    cached.close()


def test_open_of_an_uncached_clip_completes_when_it_is_fetched(parts: Parts) -> None:
    first, second = parts.fs.open(parts.clip), parts.fs.open(parts.clip)
    assert not first.done()
    assert [clip for clip, _ in parts.fetcher.fetches] == [CLIP, CLIP]
    assert parts.fs.xattr(parts.clip, "user.kinetics.state") == b"fetching"
    parts.deliver(b"content")
    for opened in (first, second):
        assert opened.done()
        handle = opened.result()
        assert handle.read(0, 100) == b"content"
        handle.close()
    assert parts.fs.xattr(parts.clip, "user.kinetics.state") == b"cached"
    parts.fs.open(parts.clip).result().close()
    others = parts.fs.entries(parts.find(f"validation/{LABELS[3]}"))[:3]
    failing, given_up, waiting = (parts.fs.open(entry.ino) for entry in others)
    parts.fetcher.fetches[0][1].set_exception(FetchError(FailureKind.GONE, "gone"))
    assert failing.done()
    given_up.cancel()
    assert not waiting.done()
    assert parts.fs.opens() == OpenCounts(
        from_cache=1, not_in_cache=5, hit_rate=round(1 / 6, 4), fetched=2, failed=1, interrupted=1, waiting=1
    )


def test_descriptors_are_closed_with_the_last_handle(parts: Parts) -> None:
    parts.keep(b"content")
    parts.fs.open(parts.clip).result().close()
    before = len(descriptors())
    handles = [parts.fs.open(parts.clip).result() for _ in range(5)]
    assert len(descriptors()) > before
    for handle in handles:
        assert handle.read(0, 7) == b"content"
        handle.close()
    assert len(descriptors()) == before


def test_open_cancelled_while_it_waits_leaves_no_descriptor(parts: Parts) -> None:
    parts.keep(b"warm")
    parts.fs.open(parts.clip).result().close()
    parts.store.remove(CLIP)
    before = len(descriptors())
    cancelled, kept = parts.fs.open(parts.clip), parts.fs.open(parts.clip)
    assert cancelled.cancel()
    parts.deliver(b"content")
    with pytest.raises(CancelledError):
        cancelled.result()
    handle = kept.result(timeout=0)
    assert handle.read(0, 10) == b"content"
    handle.close()
    assert len(descriptors()) == before


def test_open_cancelled_while_its_clip_is_opened_leaves_no_descriptor(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.keep(b"warm")
    parts.fs.open(parts.clip).result().close()
    parts.store.remove(CLIP)
    before = len(descriptors())
    opened = parts.fs.open(parts.clip)
    real_open = parts.store.open_nowait

    def open_and_cancel(clip: Clip) -> object:
        stored = real_open(clip)
        assert opened.cancel()
        return stored

    with monkeypatch.context() as patched:
        patched.setattr(parts.store, "open_nowait", open_and_cancel)
        parts.deliver(b"content")
    assert opened.cancelled()
    assert len(descriptors()) == before
    handle = parts.fs.open(parts.clip).result(timeout=0)
    assert handle.read(0, 10) == b"content"
    handle.close()
    assert len(descriptors()) == before


def test_open_cancelled_after_an_eviction_leaves_its_second_fetch(parts: Parts) -> None:
    opened = parts.fs.open(parts.clip)
    [(_, first)] = parts.fetcher.fetches
    first.set_result(None)  # but the clip was evicted before it could be opened
    assert not opened.done()
    [_, (clip, second)] = parts.fetcher.fetches
    assert clip == CLIP
    assert opened.cancel()
    assert second.cancelled()
    assert parts.fs.opens().interrupted == 1


def test_completed_open_cannot_be_cancelled(parts: Parts) -> None:
    parts.keep(b"content")
    opened = parts.fs.open(parts.clip)
    assert not opened.cancel()
    opened.result().close()


@pytest.mark.parametrize("kind", FailureKind)
def test_open_raises_what_the_fetch_raised(parts: Parts, kind: FailureKind) -> None:
    opened = parts.fs.open(parts.clip)
    [(_, fetch)] = parts.fetcher.fetches
    error = FetchError(kind, "the reason")
    fetch.set_exception(error)
    assert opened.exception(timeout=0) is error


def test_failed_fetch_of_a_cancelled_open_is_ignored(parts: Parts) -> None:
    opened = parts.fs.open(parts.clip)
    assert opened.cancel()
    parts.fetcher.fail(CLIP, FetchError(FailureKind.GONE, "the reason"))
    assert opened.cancelled()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many"), RuntimeError("a defect"), MemoryError()])
def test_any_error_after_the_fetch_fails_the_open(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Otherwise the open would wait for ever."""
    for broken_step in ("store", "handle"):
        opened = parts.fs.open(parts.clip)

        def fail(*_: object, **__: object) -> object:
            raise error

        with monkeypatch.context() as broken:
            if broken_step == "store":
                broken.setattr(parts.store, "open_nowait", fail)
            else:
                broken.setattr("kinetics_fs.vfs.opens.ClipHandle", fail)
            parts.deliver(b"content")
        assert opened.exception(timeout=0) is error
        parts.store.remove(CLIP)


def test_clip_evicted_before_its_open_is_fetched_again_a_few_times(parts: Parts) -> None:
    opened = parts.fs.open(parts.clip)
    for _ in range(20):
        pending = [fetch for _, fetch in parts.fetcher.fetches if not fetch.done()]
        if not pending:
            break
        for fetch in pending:
            fetch.set_result(None)
    error = opened.exception(timeout=0)
    assert isinstance(error, FetchError)
    assert errno_of(error) == errno.ENOSPC
    assert 1 < len(parts.fetcher.fetches) < 10


def test_damaged_file_is_fetched_again(parts: Parts) -> None:
    parts.keep(b"content")
    [path] = parts.store.layout.clips.glob("*/*.mp4")
    path.chmod(0o600)
    path.write_bytes(b"cont")
    opened = parts.fs.open(parts.clip)
    assert not opened.done()
    parts.deliver(b"content")
    assert content(opened.result()) == b"content"
    opened.result().close()


def test_open_of_a_directory_returns_eisdir(fixed: Parts) -> None:
    for path in (".kinetics", "train", "train/abseiling"):
        assert number_of(fixed.fs.open(fixed.find(path)).result) == "EISDIR"
    assert number_of(fixed.fs.open(ROOT).result) == "EISDIR"
    assert number_of(lambda: fixed.fs.open(2**40).result()) == "ENOENT"


def test_all_open_handles_show_one_content(parts: Parts) -> None:
    """A kernel caches one set of pages for all of them."""
    parts.keep(b"old content")
    first = parts.fs.open(parts.clip).result()
    parts.store.remove(CLIP)
    parts.keep(b"new")
    second = parts.fs.open(parts.clip).result()
    assert isinstance(first, ClipHandle)
    assert content(first) == content(second) == b"old content"
    assert (first.size, second.size) == (11, 11)
    first.close()
    assert content(second) == b"old content"
    second.close()
    third = parts.fs.open(parts.clip).result()
    assert third.consume_invalidation()
    assert content(third) == b"new"
    third.close()


def test_size_shown_is_that_of_the_open_handles(parts: Parts) -> None:
    parts.keep(b"old content")
    first = parts.fs.open(parts.clip).result()
    parts.store.remove(CLIP)
    parts.keep(b"new")
    assert parts.fs.attributes(parts.clip).size == first.size
    first.close()
    assert parts.fs.attributes(parts.clip).size == 3


def test_only_content_that_the_kernel_has_not_seen_needs_invalidation(catalog: Catalog, tmp_path: Path) -> None:
    with Store(tmp_path / "cache") as store:
        parts = Parts(make_filesystem(catalog, store, FakeFetcher(store)), catalog, store, FakeFetcher(store))
        parts.keep(b"one")

        def is_fresh() -> bool:
            handle = parts.fs.open(parts.clip).result()
            fresh = handle.consume_invalidation()
            handle.close()
            return fresh

        assert [is_fresh() for _ in range(3)] == [True, False, False]
        store.remove(CLIP)
        parts.keep(b"two")
        assert [is_fresh() for _ in range(3)] == [True, False, False]
        parts.fs = make_filesystem(catalog, store, FakeFetcher(store))
        assert [is_fresh() for _ in range(3)] == [False] * 3


def test_many_threads_open_and_close(parts: Parts) -> None:
    parts.keep(b"content")
    parts.fs.open(parts.clip).result().close()
    ino = parts.clip
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(60):
                handle = parts.fs.open(ino).result(timeout=60)
                assert handle.read(0, 100) == b"content"
                handle.close()
        except BaseException as error:
            failures.append(error)

    before = len(descriptors())
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # SQLite keeps connections; clips are closed.
    files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # noqa: PTH115
    assert [file for file in files if file.startswith(f"{parts.store.folder}/") and file.endswith(".mp4")] == []
    assert len(descriptors()) < before + 40


# Extended attributes ----------------------------------------------------------------------------------------------


def test_xattrs_follow_the_state_of_the_clip(parts: Parts) -> None:
    def state() -> bytes:
        return parts.fs.xattr(parts.clip, "user.kinetics.state")

    assert state() == b"absent"
    opened = parts.fs.open(parts.clip)
    assert state() == b"fetching"
    parts.deliver(b"content")
    opened.result().close()
    assert state() == b"cached"
    parts.store.remove(CLIP)
    assert state() == b"absent"
    parts.store.failures.remember(CLIP, FetchError(FailureKind.CREDENTIALS, "members only"))
    assert state() == b"failed"
    assert parts.fs.xattr(parts.clip, "user.kinetics.error") == b"credentials: members only"
    for name in parts.fs.list_xattrs(parts.clip):
        assert parts.fs.xattr(parts.clip, name)
    assert number_of(lambda: parts.fs.xattr(parts.clip, "user.kinetics.sha256")) == "ENODATA"
    assert number_of(lambda: parts.fs.xattr(parts.clip, "security.capability")) == "ENODATA"
    assert number_of(lambda: parts.fs.xattr(ROOT, "user.kinetics.state")) == "ENODATA"


# errno ------------------------------------------------------------------------------------------------------------

READABLE = set(errno.errorcode)


@given(
    kind=st.sampled_from(FailureKind),
    number=st.none() | st.integers(-10, 5000) | st.sampled_from(sorted(errno.errorcode)),
)
@settings(deadline=None)
def test_every_failure_has_an_errno(kind: FailureKind, number: int | None) -> None:
    found = errno_of(FetchError(kind, "reason", cause_errno=number))
    assert found in READABLE
    assert found not in (errno.ENOENT, errno.EROFS, errno.EINVAL)


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [
        (FailureKind.GONE, None, "EIO"),
        (FailureKind.GONE, errno.ENOENT, "EIO"),
        (FailureKind.CREDENTIALS, None, "EACCES"),
        (FailureKind.BLOCKED, None, "EAGAIN"),
        (FailureKind.TRANSIENT, None, "EIO"),
        (FailureKind.TRANSIENT, errno.ETIMEDOUT, "ETIMEDOUT"),
        (FailureKind.TRANSIENT, errno.ECONNRESET, "EIO"),
        (FailureKind.TRANSIENT, errno.EINTR, "EINTR"),
        (FailureKind.CONFIG, None, "EIO"),
        (FailureKind.LOCAL, None, "EIO"),
        (FailureKind.LOCAL, errno.ENOSPC, "ENOSPC"),
        (FailureKind.LOCAL, errno.EDQUOT, "EDQUOT"),
        (FailureKind.LOCAL, errno.EMFILE, "EMFILE"),
        (FailureKind.LOCAL, errno.ENOENT, "EIO"),
        (FailureKind.CORRUPT, None, "EIO"),
    ],
)
def test_errno_of_each_kind(kind: FailureKind, number: int | None, expected: str) -> None:
    assert errno.errorcode[errno_of(FetchError(kind, "reason", cause_errno=number))] == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "too many"), "EMFILE"),
        (FileNotFoundError(errno.ENOENT, "none"), "ENOENT"),
        (OSError("without a number"), "EIO"),
        (OSError(), "EIO"),
        (TimeoutError(), "EIO"),
        (KineticsError("text"), "EIO"),
        (CatalogError("text"), "EIO"),
        (StoreError("text"), "EIO"),
        (MountError("text"), "EIO"),
        (RuntimeError(), "EIO"),
        (MemoryError(), "EIO"),
        (KeyboardInterrupt(), "EIO"),
        (CancelledError(), "EIO"),
    ],
)
def test_errno_of_anything(error: BaseException, expected: str) -> None:
    assert errno.errorcode[errno_of(error)] == expected


@given(number=st.integers(-(2**70), 2**70))
@settings(deadline=None)
def test_errno_is_one_that_a_kernel_takes(number: int) -> None:
    """A front end answers with it: zero would be success, and others are for the kernel alone."""
    found = errno_of(OSError(number, "odd"))
    assert 0 < found < 512


def test_indexed_sizes_are_shown(parts: Parts) -> None:
    asked: list[str] = []

    def sizes(keys: Sequence[str]) -> dict[str, int]:
        asked.extend(keys)
        return {CLIP.key: 12_345} if len(asked) < 100 else {}

    filesystem = Filesystem(parts.catalog, parts.store, parts.fetcher, FilesystemOptions(known_sizes=sizes))
    assert filesystem.attributes(parts.clip).size == 12_345
    listed = dict(filter(None, filesystem.entries_with_attributes(filesystem._entry(parts.clip).directory, 0, 1000)))
    assert listed[CLIP.name] == filesystem.attributes(parts.clip)
    assert listed[CLIP.name].attr_cache is AttrCache.UNTIL_OPEN, "it may come from somewhere else"

    parts.keep(b"content")
    assert filesystem.attributes(parts.clip).size == len(b"content")


def test_sizes_are_estimates_if_the_index_fails(parts: Parts) -> None:
    def sizes(keys: Sequence[str]) -> dict[str, int]:
        raise KineticsError("the indexes are damaged")

    filesystem = Filesystem(parts.catalog, parts.store, parts.fetcher, FilesystemOptions(known_sizes=sizes))
    before = parts.fs.attributes(parts.clip)
    assert filesystem.attributes(parts.clip) == before
    assert len(filesystem.entries_with_attributes(filesystem._entry(parts.clip).directory, 0, 1000)) > 0
