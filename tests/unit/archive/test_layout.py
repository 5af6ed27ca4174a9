"""Names and addresses of archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.errors import ArchiveError, FetchError
from kinetics_fs.sources.archive.layout import archive_address, archive_of_class, list_archives

VAL = "600/val/pull ups (really).tar.gz"
PART = "400/train/part_120.tar.gz"


def test_archives_of_a_folder_are_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "400" / "train"
    folder.mkdir(parents=True)
    for name in ("part_1.tar.gz", "part_0.tar", "k400_train_path.txt", ".part_2.tar.gz"):
        (folder / name).touch()
    assert list_archives(str(tmp_path), "400", "train") == ["400/train/part_0.tar", "400/train/part_1.tar.gz"]
    with pytest.raises(FetchError):
        list_archives(str(tmp_path), "400", "test")


def test_archive_of_a_class() -> None:
    labels = ["zumba", "abseiling", "driving car"]
    assert archive_of_class("600", "validation", "driving car", labels) == "600/val/driving car.tar.gz"
    # The archives of 700 are numbered by label, so the numbers need all labels.
    assert archive_of_class("700-2020", "train", "driving car", labels) is None
    all_labels = [*labels, *(f"label {number:03d}" for number in range(697))]
    assert archive_of_class("700-2020", "train", "driving car", all_labels) == "700_2020/train/k700_train_002.tar.gz"
    assert archive_of_class("400", "train", "zumba", labels) is None
    assert archive_of_class("600", "test", "zumba", labels) is None


def test_address_quotes_names_and_refuses_paths() -> None:
    assert archive_address("https://a.b/k/", VAL) == "https://a.b/k/600/val/pull%20ups%20%28really%29.tar.gz"
    assert archive_address("s3://k", PART) == f"s3://k/{PART}"
    assert archive_address("/data", VAL) == f"/data/{VAL}"
    with pytest.raises(ArchiveError):
        archive_address("/data", "../../etc/passwd")
