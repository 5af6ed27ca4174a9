"""Names and addresses of archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.errors import ArchiveError, FetchError
from kinetics_fs.sources.archive.layout import archive_address, archive_of_class, list_archives
from kinetics_fs.sources.archive.location import locate

VAL = "600/val/pull ups (really).tar.gz"
PART = "400/train/part_120.tar.gz"


def test_archives_of_a_folder_are_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "400" / "train"
    folder.mkdir(parents=True)
    for name in ("part_1.tar.gz", "part_0.tar", "k400_train_path.txt", ".part_2.tar.gz"):
        (folder / name).touch()
    assert list_archives(str(tmp_path), "400", "train") == ["400/train/part_0.tar", "400/train/part_1.tar.gz"]
    with pytest.raises(FetchError, match=r"expected 400/test/\*\.tar\.gz, test/.*found 400; check --archive-url"):
        list_archives(str(tmp_path), "400", "test")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("data", "data"),
        ("data/600", "data/600"),  # its folders are those of splits
        ("data/600/val", "data"),
        ("data/400/val", "data"),  # does not exist, and says so later
        (".", "data"),
        ("flat", "flat"),
        ("k400_targz", "k400_targz"),
        ("nothing", "nothing"),
    ],
)
def test_the_level_of_a_folder_is_found(tmp_path: Path, given: str, base: str) -> None:
    top = tmp_path / "top"
    touch(top, "data/600/val/a.tar.gz", "data/600/train/a.tar.gz", ".hidden/600/val/a.tar.gz", "other/movie.mp4")
    touch(tmp_path, "flat/b.tgz", "k400_targz/train/part_0.tar.gz")
    folder = top if given.startswith((".", "data")) else tmp_path
    assert locate(str(folder / given)) == (str(folder / base), None)


def test_one_archive_can_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "600/val/a b.tar.gz", "mine", "400/replacement_for_corrupted_k400.tgz")
    assert locate(f"{tmp_path}/600/val/a b.tar.gz") == (str(tmp_path), "600/val/a b.tar.gz")
    assert locate(f"{tmp_path}/mine") == (str(tmp_path), "mine")
    replacement = "400/replacement_for_corrupted_k400.tgz"
    assert locate(f"{tmp_path}/{replacement}") == (str(tmp_path), replacement)


def test_several_folders_with_archives_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "k400_targz/val/part_0.tar.gz", "k600_targz/val/a.tar.gz")
    with pytest.raises(FetchError, match=r"k400_targz, .*k600_targz; give one of them"):
        locate(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "location"),
    [
        ("https://s3.amazonaws.com/kinetics", ("https://s3.amazonaws.com/kinetics", None)),
        ("https://a.org/k/600/", ("https://a.org/k", None)),
        ("https://a.org/k/600/val?sig=x/y", ("https://a.org/k?sig=x/y", None)),
        ("https://a.org/600/val/pull%20ups.tar.gz?sig=x", ("https://a.org?sig=x", "600/val/pull ups.tar.gz")),
        ("s3://600/val/a.tar.gz", ("s3://600/val", "a.tar.gz")),
        ("s3://bucket/k/700_2020/test", ("s3://bucket/k", None)),
        ("https://a.org/k/700_2020/val/k700_2020_val_path.txt", ("https://a.org/k", None)),
        ("http://a.tar", ("http://a.tar", None)),
    ],
)
def test_the_level_of_an_address_is_found(given: str, location: tuple[str, str | None]) -> None:
    assert locate(given) == location


def test_folders_of_the_download_scripts_have_the_names_of_the_layout(tmp_path: Path) -> None:
    touch(tmp_path, "train/part_0.tar.gz", "val/part_0.tar.gz", "replacement/replacement_for_corrupted_k400.tgz")
    names = list_archives(str(tmp_path), "400", "train")
    assert names == ["400/replacement_for_corrupted_k400.tgz", "400/train/part_0.tar.gz"]
    assert [archive_address(str(tmp_path), name) for name in names] == [
        f"{tmp_path}/replacement/replacement_for_corrupted_k400.tgz",
        f"{tmp_path}/train/part_0.tar.gz",
    ]


def test_a_flat_folder_has_archives_of_any_split_unless_their_names_say_more(tmp_path: Path) -> None:
    touch(tmp_path, "k700_train_001.tar.gz", "k700_val_001.tar.gz", "training dog.tar.gz", "mine.tar")
    assert list_archives(str(tmp_path), "700-2020", "validation") == [
        "k700_val_001.tar.gz",
        "mine.tar",
        "training dog.tar.gz",
    ]
    assert archive_address(str(tmp_path), "700_2020/val/k700_val_001.tar.gz") == f"{tmp_path}/k700_val_001.tar.gz"


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
