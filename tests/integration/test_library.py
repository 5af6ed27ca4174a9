"""`Library`: Kinetics from Python, without a mount."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import kinetics_fs
from kinetics_fs import Library
from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE, ROWS, expected_frames
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import CatalogError, FailureKind, FetchError, SettingError
from tests.conftest import Dataset

HEADS = "massaging person's head"


@pytest.fixture
def values(dataset: Dataset, site: VideoSite, tmp_path: Path) -> dict[str, Any]:
    return {
        "annotations": dataset.annotations,
        "cache_dir": tmp_path / "cache",
        "min_free": 0,
        "source": "youtube",
        "video_url": site.url_template,
    }


@pytest.fixture
def library(values: dict[str, Any]) -> Iterator[Library]:
    with Library(**values, split="validation", class_names="torchvision") as library:
        yield library


def test_open_fetches_a_clip_once(library: Library, site: VideoSite, tmp_path: Path) -> None:
    paths = list(library.paths())
    assert len(paths) == len(list(library.clips())) == sum(row.split == "validate" for row in ROWS)
    assert site.requests == [], "looking is free"
    [path] = [path for path in paths if path.startswith("validation/massaging_persons_head/demo-video2")]
    assert not library.is_cached(path)
    with library.open(path) as file:
        (tmp_path / "clip.mp4").write_bytes(file.read())
    [clip] = [row.clip for row in ROWS if row.clip.name == Path(path).name]
    assert frame_numbers(tmp_path / "clip.mp4") == expected_frames(clip)
    asked = len(site.requests)
    with library.open(clip) as file:
        assert file.read() == (tmp_path / "clip.mp4").read_bytes()
    assert library.is_cached(clip) and len(site.requests) == asked


def test_open_raises_for_clips_that_are_gone_unselected_or_misnamed(library: Library) -> None:
    [path] = [path for path in library.paths() if GONE in path]
    with pytest.raises(FetchError, match="404"):
        library.open(path)
    with pytest.raises(CatalogError, match="not in the selection"):
        library.open("-aaaaaaaaaa_000000_000010.mp4")
    with pytest.raises(CatalogError, match="cannot find the clip"):
        library.is_cached("../../etc/passwd")


def test_open_fails_with_enospc_if_the_cache_evicts_each_fetched_clip(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[Clip] = []

    class EvictingFetcher:
        def request(self, clip: Clip) -> Future[None]:
            assert len(fetches) < 3, "it does not fetch without end"
            fetches.append(clip)
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(Library, "fetcher", EvictingFetcher())
    clip = next(library.clips())
    with pytest.raises(FetchError, match="the cache is too small; raise --cache-size") as caught:
        library.open(clip)
    assert (caught.value.errno, fetches) == (errno.ENOSPC, [clip] * 3)


def test_failures_are_forgotten_by_clip_and_kind(library: Library) -> None:
    clips = list(library.clips())[:3]
    kinds = FailureKind.GONE, FailureKind.GONE, FailureKind.CORRUPT
    for clip, kind in zip(clips, kinds, strict=True):
        library.store.failures.remember(clip, FetchError(kind, "a reason"))
    assert library.forget_failures([], [FailureKind.GONE])[:2] == (0, 0)
    assert library.forget_failures(clips[1:], [FailureKind.GONE])[:2] == (1, 0)
    assert [failure.clip for failure in library.failures()] == [clips[2], clips[0]]
    assert library.forget_failures()[:2] == (2, 0)
    assert list(library.failures()) == []


def test_pins_outside_the_selection_are_counted_and_removed_with_the_whole_cache(values: dict[str, Any]) -> None:
    with Library(**values, classes=HEADS) as heads, Library(**values, split="train") as train:
        heads.pin()
        assert heads.pin_totals().clips == 2
        assert train.unpin().clips + heads.pin_totals().clips == 2
        heads.pin()
        train.unpin(whole_cache=True)
        assert heads.pin_totals().clips == 0


def test_prefetch_fetches_the_selection_and_reports_progress(values: dict[str, Any]) -> None:
    reports: list[Any] = []
    with Library(**values, classes=HEADS) as library:
        report = library.prefetch(on_progress=reports.append)
        assert (report.state, report.clips, report.fetched, report.failed) == ("done", 2, 2, 0)
        assert (reports[-1].state, reports[-1].finished) == ("done", 2)
        assert library.status().cache.clips == 2
        assert all(library.is_cached(clip) for clip in library.clips())
        assert library.prefetch().already_cached == 2
        assert sum(sample.fetched for sample in library.store.history.samples()) == 2


def test_invalid_settings_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Library(**values, splits="validation")
    with Library(**values, classes=["surfing watr"]) as library, pytest.raises(CatalogError, match="no class"):
        library.catalog  # noqa: B018
    with (
        Library(**{**values, "video_url": "http://127.0.0.1/"}) as library,
        pytest.raises(SettingError, match="has no"),
    ):
        library.prefetch()


def test_public_names_are_imported_when_they_are_used() -> None:
    code = "import sys, kinetics_fs; assert 'sqlite3' not in sys.modules; print(kinetics_fs.Library.__name__)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "Library\n"
    )
    for name in kinetics_fs.__all__:
        assert name == "__version__" or getattr(kinetics_fs, name).__name__ == name
    with pytest.raises(AttributeError):
        kinetics_fs.Librarian  # noqa: B018
