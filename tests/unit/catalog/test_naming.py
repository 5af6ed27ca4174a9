from __future__ import annotations

import pytest

from kinetics_fs.catalog import SPLITS, UNLABELED, ClassNames, class_name, name_table, split_name, split_of_file_name
from kinetics_fs.catalog.naming import split_of_folder
from kinetics_fs.errors import CatalogError


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (ClassNames.RAW, ["massaging person's head", "backflip (human)", UNLABELED]),
        (ClassNames.UNDERSCORE, ["massaging_person's_head", "backflip_(human)", UNLABELED]),
        (ClassNames.TORCHVISION, ["massaging_persons_head", "backflip_human", UNLABELED]),
    ],
)
def test_three_styles(style: ClassNames, expected: list[str]) -> None:
    labels = ["massaging person's head", "backflip (human)", UNLABELED]
    assert [class_name(label, style) for label in labels] == expected
    assert name_table(labels, style) == dict(zip(expected, labels, strict=True))


@pytest.mark.parametrize(
    ("labels", "style"),
    [
        (["a b", "a_b"], ClassNames.UNDERSCORE),
        (["curling (sport)", "curling sport"], ClassNames.TORCHVISION),
        (["(())"], ClassNames.TORCHVISION),
        (["(..)"], ClassNames.TORCHVISION),
        (["(.)"], ClassNames.TORCHVISION),
        (["(_unlabeled)", UNLABELED], ClassNames.TORCHVISION),
        (["(_unlabeled)"], ClassNames.TORCHVISION),
    ],
)
def test_labels_that_a_style_cannot_name(labels: list[str], style: ClassNames) -> None:
    assert len(name_table(labels, ClassNames.RAW)) == len(labels)
    with pytest.raises(CatalogError, match=f"in the {style} style"):
        name_table(labels, style)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", ["train", "Training", " TRAIN "]),
        ("validation", ["val", "valid", "validate", "validating", "Validation", "eval"]),
        ("test", ["test", "testing", "holdout_test", "holdout-test", "Holdout test"]),
    ],
)
def test_split_words(split: str, words: list[str]) -> None:
    assert [split_name(word) for word in words] == [split] * len(words)
    assert [split_name(split) for split in SPLITS] == list(SPLITS)
    assert split_name("tests") is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("TRAIN.CSV", "train"),
        ("k600_val.txt", "validation"),
        ("kinetics_700_test.csv", "test"),
        ("kinetics600_holdout_test.csv", "test"),
        ("k400train01.csv.gz", "train"),
        ("kinetics-trainlist-3.txt", "train"),
        ("mini_kinetics_200_val_ids.txt", "validation"),
        ("validate.json", "validation"),
        ("k400.csv", None),
        ("train_val.csv", None),
        ("contest.csv", None),
        ("", None),
    ],
)
def test_split_of_a_file_name(name: str, split: str | None) -> None:
    assert split_of_file_name(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Train", "train_256", "videos_train", "k400-train-resized")],
        *[(name, "test") for name in ("test", "holdout_test", "test (1)")],
        *[(name, "") for name in ("videos", "k400", "kinetics-600", "data", "12", "train_val")],
        *[(name, None) for name in ("abseiling", "training dog", "battle rope training", "high jump", "跑步")],
    ],
)
def test_split_of_a_folder(name: str, split: str | None) -> None:
    assert split_of_folder(name) == split
