"""Mounts and libraries get the archive indexes that other machines have built, and share their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs import Library
from kinetics_fs.app import exchange_shared_indexes, open_index_db
from kinetics_fs.config import Settings
from kinetics_fs.errors import SharedStoreError
from kinetics_fs.shared import SharedStore, open_backend
from tests.conftest import Dataset
from tests.support.annotated_archives import TRAIN, AnnotatedArchives


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


def settings(annotated: AnnotatedArchives, name: str, address: str, **others: str) -> Settings:
    return Settings(
        annotations=(str(annotated.annotations),),
        archive_clips=True,
        cache_dir=annotated.folder.parent / name,
        min_free=0,
        archive_url=str(annotated.folder),
        shared=address,
        **others,  # type: ignore[arg-type]
    )


@pytest.fixture(params=["folder", "bucket"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        address: str = request.getfixturevalue("bucket_url")
    else:
        (tmp_path / "shared").mkdir()
        address = str(tmp_path / "shared")
    SharedStore(open_backend(address)).open(create=True)
    return address


def test_an_index_that_one_machine_built_serves_all(annotated: AnnotatedArchives, address: str) -> None:
    first = settings(annotated, "first", address)
    with Library(first.with_values(shared=None)) as library:  # before it had a shared store
        library.fill([TRAIN])
    exchange_shared_indexes(first, apart=True)

    second = settings(annotated, "second", address)
    exchange_shared_indexes(second, apart=True)
    with open_index_db(second) as index_db:
        assert set(index_db.versions()) == {TRAIN}
    # No annotation names them here: the catalog has them because the index of another machine does.
    other = annotated.folder.parent / "other.csv"
    other.write_text("label,youtube_id,time_start,time_end,split\nsurfing water,-a1B2c3D4e5,0,10,train\n")
    with Library(second, annotations=(str(other),)) as library:
        assert set(annotated.of(TRAIN)) <= set(library.clips())


def test_a_machine_that_writes_nothing_shares_no_index(annotated: AnnotatedArchives, address: str) -> None:
    first = settings(annotated, "first", address, shared_write="none")
    with Library(first.with_values(shared=None)) as library:
        library.fill([TRAIN])
    exchange_shared_indexes(first)
    assert list(SharedStore(open_backend(address)).indexes()) == []


def test_a_store_that_does_not_exist_is_an_error(annotated: AnnotatedArchives, tmp_path: Path) -> None:
    with pytest.raises(SharedStoreError, match="does not exist"):
        exchange_shared_indexes(settings(annotated, "first", str(tmp_path / "nothing")), apart=True)


def test_a_store_that_cannot_be_reached_is_left_for_later(
    annotated: AnnotatedArchives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with caplog.at_level("INFO"):
        exchange_shared_indexes(settings(annotated, "first", "s3://kinetics/prefix"))
    assert "cannot exchange the indexes of archives" in caplog.text
