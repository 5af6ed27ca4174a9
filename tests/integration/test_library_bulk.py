"""`Library`: many clips at once, from archives and folders, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs import Library
from kinetics_fs.errors import KineticsError
from kinetics_fs.fill.runner import ArchiveProgress
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.support.annotated_archives import HEADS, SURFING, TRAIN, AnnotatedArchives


class Recorder(ArchiveProgress):
    """Remembers the progress of a fill."""

    def __init__(self) -> None:
        self.total = 0
        self.done: dict[str, int] = {}
        self.finished: list[str] = []

    def start(self, total: int) -> None:
        self.total = total

    def advance(self, archive: str, done: int, total: int) -> None:
        self.done[archive] = done

    def finish(self, archive: str) -> None:
        self.finished.append(archive)


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


@pytest.fixture
def library(annotated: AnnotatedArchives) -> Iterator[Library]:
    with Library(
        annotations=annotated.annotations, cache_dir=annotated.cache, min_free=0, archive_url=str(annotated.folder)
    ) as library:
        yield library


def test_fill_export_and_import_move_the_same_clips(
    annotated: AnnotatedArchives, library: Library, tmp_path: Path
) -> None:
    progress = Recorder()

    filled = library.fill(progress=progress)

    assert filled.complete
    assert sorted(filled.archives.read) == sorted(progress.finished) == sorted([HEADS, SURFING, TRAIN])
    assert sum(progress.done.values()) == progress.total > 0
    assert annotated.cached() == annotated.of(SURFING, HEADS, TRAIN)

    exported = library.export(tmp_path / "out")
    assert (exported.written, exported.done, exported.clips, exported.complete) == (8, 8, 8, True)

    with Library(annotations=annotated.annotations, cache_dir=tmp_path / "other", min_free=0, split="train") as other:
        seen: list[int] = []
        imported = other.import_(tmp_path / "out", on_progress=lambda result: seen.append(result.done))
        assert (imported.imported, imported.not_in_annotations, imported.complete) == (1, 7, True)
        assert seen[-1] == imported.to_import == 1
        assert list(other.clips()) == list(annotated.of(TRAIN))


def test_a_fill_or_import_that_does_not_fit_changes_nothing(
    annotated: AnnotatedArchives, library: Library, tmp_path: Path
) -> None:
    library.fill([TRAIN])
    library.export(tmp_path / "out")
    with Library(library.settings, cache_dir=tmp_path / "small", cache_size=1000, small_cache=True) as small:
        with pytest.raises(KineticsError, match="--cache-size"):
            small.fill()
        with pytest.raises(KineticsError, match="--cache-size"):
            small.import_(tmp_path / "out")
        assert small.store.usage().clips == 0


def test_indexes_are_built_verified_shared_and_removed(
    annotated: AnnotatedArchives, library: Library, tmp_path: Path
) -> None:
    assert library.indexes.list() == []
    assert sorted(library.indexes.build().read) == sorted([HEADS, SURFING, TRAIN])
    check = library.indexes.verify(sample=None)
    assert (check.archives, check.clips_read, check.wrong) == (3, 8, {})
    with (tmp_path / "indexes").open("w+b") as file:
        assert library.indexes.export(file, [HEADS]) == 1
        file.seek(0)
        with Library(cache_dir=tmp_path / "other", min_free=0) as other:
            assert other.indexes.import_(file).clips == 3
            assert [one.archive for one in other.indexes.list()] == [HEADS]
    assert library.indexes.remove([HEADS]) == 1
    assert library.indexes.remove() == 2


def test_verify_finds_a_damaged_clip_and_repair_removes_it(annotated: AnnotatedArchives, library: Library) -> None:
    library.fill([TRAIN])
    [path] = CacheLayout(annotated.cache).clips.glob("*/*.mp4")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)

    found = library.verify()

    assert (len(found.check.bad), found.check.removed, found.check.unrepaired, found.fetched) == (1, [], True, None)
    with Library(library.settings, source="archive") as mender:
        mended = mender.verify(repair=True)
    assert mended.check.removed == list(annotated.of(TRAIN))
    assert mended.fetched is not None and mended.fetched.fetched == 1
    assert annotated.cached() == annotated.of(TRAIN)
