from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from kinetics_fs.catalog import Catalog, Release, compile_catalog, find_release
from tests.support.annotations import csv_text, youtube_id

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def compile_labels(file: Path, release: Release, *labels: str) -> list[str]:
    """Compile a list with one clip of each label; return the labels of the catalog."""
    file.write_text(csv_text(f'"{label}",{youtube_id(number)},0,10,train' for number, label in enumerate(labels)))
    with Catalog(compile_catalog([file], release, file.parent / "catalogs")) as catalog:
        return catalog.labels()


@pytest.fixture
def file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.WARNING)
    return tmp_path / "rows.csv"


# Similar labels


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("Abseiling", "abseiling", '"Abseiling" and "abseiling"'),
        ("air  drumming", "air drumming", '"air  drumming" and "air drumming"'),
        ("air drumming", "air_drumming", '"air drumming" and "air_drumming"'),
        ("curling (sport)", "curling sport", '"curling (sport)" and "curling sport"'),
        ("person's head", "person\u2019s head", '"person\'s head" and "person\u2019s head" ('),
        (DECOMPOSED, COMPOSED, r"('cafe\u0301') and "),
    ],
)
def test_similar_labels_are_named(
    file: Path, release: Release, caplog: pytest.LogCaptureFixture, first: str, second: str, shown: str
) -> None:
    assert compile_labels(file, release, first, second) == sorted([first, second])
    (warning,) = caplog.messages
    assert shown in warning
    assert "make them equal in the annotations" in warning


def test_many_similar_labels_are_one_warning(file: Path, release: Release, caplog: pytest.LogCaptureFixture) -> None:
    compile_labels(file, release, "A", "a", "B", "b", "C", "c")
    (warning,) = caplog.messages
    assert '"A" and "a" and 2 more pairs' in warning
    compile_labels(file, release, "A", "a", "B", "b", "C", "c")
    assert len(caplog.messages) == 1, "it is not compiled again"
    compile_labels(file, release, "A", "a", "B", "b")
    assert '"A" and "a" and 1 more pair differ' in caplog.text


def test_different_labels_are_no_reason_to_warn(file: Path, release: Release, caplog: pytest.LogCaptureFixture) -> None:
    compile_labels(file, release, "running", "running on treadmill", "ironing", "ironing hair")
    assert caplog.messages == []


# Class indexes


def test_a_warning_names_the_first_class_that_moved(
    file: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    compile_labels(file, release, "a", "b", "c", "d")
    assert caplog.messages == []
    compile_labels(file, release, "a", "c", "d")
    (warning,) = caplog.messages
    assert "Kinetics-600 have changed, and 3 class indexes with them" in warning
    assert 'the class "b" was 1 and is missing now' in warning
    compile_labels(file, release, "a", "aa", "c", "d")
    assert '2 class indexes with them: the class "c" was 1 and is 2 now' in caplog.messages[1]
    compile_labels(file, release, "a", "aa", "c", "d")
    assert len(caplog.messages) == 2


def test_a_list_with_fewer_clips_or_later_classes_is_no_reason_to_warn(
    file: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    compile_labels(file, release, "a", "b", "b", "b")
    compile_labels(file, release, "a", "b")
    compile_labels(file, release, "a", "b", "c")
    assert caplog.messages == []


def test_other_lists_and_releases_have_class_indexes_of_their_own(
    file: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    compile_labels(file, release, "a", "b")
    compile_labels(file.with_name("other.csv"), release, "b")
    compile_labels(file, find_release("400"), "b")
    assert caplog.messages == []


def test_the_edition_that_was_used_last_counts(file: Path, release: Release, caplog: pytest.LogCaptureFixture) -> None:
    compile_labels(file, release, "a", "b")
    for catalog in (file.parent / "catalogs").iterdir():
        os.utime(catalog, (0, 0))
    compile_labels(file, release, "b")
    compile_labels(file, release, "b", "c")
    assert len(caplog.messages) == 1
