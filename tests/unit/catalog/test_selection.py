from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kinetics_fs.catalog import UNLABELED, Catalog, Directory, Selection, select
from kinetics_fs.errors import CatalogError
from tests.support.annotations import youtube_id

LABELS = ["abseiling", "backflip (human)", "massaging person's head", "surfing water"]


@pytest.fixture
def whole(catalog_of: Callable[..., Catalog]) -> Catalog:
    """20 training and 5 validation clips in each class (`surfing water`: 2), and 7 clips without a label."""
    rows = [
        f"{label},{youtube_id(number)},{at},{at + 10},train" for at, label in enumerate(LABELS) for number in range(20)
    ]
    rows += [
        f"{label},{youtube_id(90 + number)},{at},{at + 10},val"
        for at, label in enumerate(LABELS)
        for number in range(5)
    ]
    rows = [row for row in rows if not re.fullmatch("surfing water,.*9[234],.*,val", row)]
    rows += [f",{youtube_id(number)},50,60,test" for number in range(7)]
    return catalog_of(*rows, "refused", rows[0])


@pytest.fixture
def selected(whole: Catalog, tmp_path: Path) -> Callable[[Selection], Catalog]:
    return lambda selection: select(whole, selection, tmp_path / "selected")


def counts(catalog: Catalog) -> dict[str, int]:
    return {
        f"{split.split}/{directory.label}": directory.clips
        for split in catalog.splits()
        for directory in catalog.classes(split)
    }


def keys(catalog: Catalog) -> list[str]:
    return [entry.clip.key for entry in catalog.clips()]


def test_an_empty_selection_is_the_catalog_itself(whole: Catalog, tmp_path: Path) -> None:
    assert select(whole, Selection(), tmp_path / "none") is whole
    assert select(whole, Selection(shuffle=True, seed=3), tmp_path / "none") is whole
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("word", ["val", "validate", "validation"])
def test_splits(selected: Callable[[Selection], Catalog], word: str) -> None:
    catalog = selected(Selection(splits=(word,)))
    assert [(split.split, split.clips) for split in catalog.splits()] == [("validation", 17)]
    assert counts(catalog) == {f"validation/{label}": 2 if label == "surfing water" else 5 for label in LABELS}


@pytest.mark.parametrize("style", ["massaging person's head", "massaging_person's_head", "massaging_persons_head"])
def test_classes_in_every_style(selected: Callable[[Selection], Catalog], style: str) -> None:
    catalog = selected(Selection(classes=(style, "surfing water")))
    assert counts(catalog) == {
        "train/massaging person's head": 20,
        "train/surfing water": 20,
        "validation/massaging person's head": 5,
        "validation/surfing water": 2,
    }


def test_the_unlabelled_can_be_chosen(selected: Callable[[Selection], Catalog]) -> None:
    assert counts(selected(Selection(classes=(UNLABELED,)))) == {f"test/{UNLABELED}": 7}


def test_a_selection_looks_like_a_part_of_the_whole(whole: Catalog, selected: Callable[[Selection], Catalog]) -> None:
    part = selected(Selection(splits=("train", "test"), max_samples=9))
    assert part.labels() == whole.labels()
    assert (part.release, part.published) == (whole.release, whole.published)
    assert part.refusals() == whole.refusals()
    assert part.refusals().total == part.duplicates == 1
    assert part.digest != whole.digest
    for entry in part.clips():
        assert whole.entry(entry.ino) == part.entry(entry.ino) == entry
        assert part.locate(entry.clip)
        directory, original = part.directory(entry.directory), whole.directory(entry.directory)
        assert isinstance(directory, Directory) and isinstance(original, Directory)
        assert (directory.label, directory.parent) == (original.label, original.parent)
        assert part.find(directory, entry.clip) == entry.ino
    assert sum(1 for _ in part.clips()) == part.clip_count == 9 + 7


def test_samples_are_taken_evenly_and_per_split(whole: Catalog, selected: Callable[[Selection], Catalog]) -> None:
    assert counts(selected(Selection(max_samples=6))) == {
        "train/abseiling": 2,
        "train/backflip (human)": 2,
        "train/massaging person's head": 1,
        "train/surfing water": 1,
        "validation/abseiling": 2,
        "validation/backflip (human)": 2,
        "validation/massaging person's head": 1,
        "validation/surfing water": 1,
        f"test/{UNLABELED}": 6,
    }
    # One class has two only: the others fill up.
    assert set(counts(selected(Selection(splits=("val",), max_samples=14))).values()) == {4, 2}
    assert counts(selected(Selection(max_samples=1000))) == counts(whole)


def test_the_first_of_each_class_come_first(whole: Catalog, selected: Callable[[Selection], Catalog]) -> None:
    train = whole.splits()[0]
    first = [entry for directory in whole.classes(train) for entry in whole.entries(directory, 0, 2)]
    assert list(selected(Selection(splits=("train",), max_samples=8)).clips()) == first


def test_a_seed_is_a_sample(whole: Catalog, tmp_path: Path, selected: Callable[[Selection], Catalog]) -> None:
    def sample(seed: int, folder: str = "one") -> list[str]:
        selection = Selection(splits=("train",), max_samples=10, shuffle=True, seed=seed)
        return keys(select(whole, selection, tmp_path / folder))

    assert sample(1) == sample(1, "another folder")
    assert sample(1) != sample(2)
    assert sample(-(10**80)) != sample(10**80)
    assert len(sample(1)) == len(set(sample(1))) == 10
    # For ever, on any machine.
    assert sample(1)[:2] == ["a0000000012_000000_000010", "-0000000009_000001_000011"]


def test_a_shuffle_is_uniform_over_clips(selected: Callable[[Selection], Catalog]) -> None:
    taken: Counter[str] = Counter()
    for seed in range(60):
        taken.update(keys(selected(Selection(splits=("train",), max_samples=40, shuffle=True, seed=seed))))
    assert len(taken) == 80
    assert min(taken.values()) >= 12 and max(taken.values()) <= 48  # 30 expected, deviation 3.9


def test_smaller_samples_of_a_seed_are_part_of_larger(selected: Callable[[Selection], Catalog]) -> None:
    few, many = (keys(selected(Selection(max_samples=size, shuffle=True, seed=5))) for size in (3, 6))
    assert set(few) < set(many)


def test_a_shuffle_without_a_seed_says_which_it_drew(
    selected: Callable[[Selection], Catalog], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        drawn = keys(selected(Selection(max_samples=5, shuffle=True)))
        other = keys(selected(Selection(max_samples=5, shuffle=True)))
    seeds = [int(seed) for seed in re.findall(r"shuffled with seed (\d+)", caplog.text)]
    assert len(set(seeds)) == 2
    assert drawn != other
    assert keys(selected(Selection(max_samples=5, shuffle=True, seed=seeds[0]))) == drawn


def test_equal_selections_share_a_file(selected: Callable[[Selection], Catalog]) -> None:
    one = selected(Selection(splits=("val", "train"), classes=("surfing_water", "abseiling"), seed=7))
    inode = one.path.stat().st_ino
    other = selected(Selection(splits=("train", "validation"), classes=("abseiling", "surfing water", "abseiling")))
    assert other.path == one.path
    assert other.path.stat().st_ino == inode
    assert selected(Selection(splits=("train", "validation"))).path != one.path


def test_a_selection_of_a_selection(tmp_path: Path, selected: Callable[[Selection], Catalog]) -> None:
    validation = selected(Selection(splits=("val",)))
    assert counts(select(validation, Selection(classes=("abseiling",), max_samples=2), tmp_path)) == {
        "validation/abseiling": 2
    }


def test_a_damaged_selection_is_made_again(selected: Callable[[Selection], Catalog]) -> None:
    selection = Selection(splits=("val",))
    catalog = selected(selection)
    before = keys(catalog)
    catalog.close()
    catalog.path.write_bytes(b"")
    assert keys(selected(selection)) == before


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(classes=("surfng water",)),
            '"surfng water": Kinetics-600 has no class of that name; did you mean "surfing water"',
        ),
        (Selection(classes=("massaging_person_head",)), 'did you mean "massaging person\'s head"[^,]*?$'),
        (Selection(classes=("qqqqqq",)), 'class "qqqqqq": Kinetics-600 has no class of that name$'),
        (Selection(splits=("trian",)), 'cannot select the split "trian": there are train, validation, test'),
        (Selection(splits=("train",), classes=(UNLABELED,)), "clips of Kinetics-600: the selection matches no clip"),
        (Selection(max_samples=0), "at least one sample"),
        (Selection(max_samples=-1), "at least one sample"),
    ],
)
def test_a_wrong_selection_is_explained(
    tmp_path: Path, selected: Callable[[Selection], Catalog], selection: Selection, message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        selected(selection)
    assert list(tmp_path.glob("selected/*")) == []


@pytest.mark.parametrize("shuffle", [False, True])
def test_unavailable_clips_are_replaced_by_the_next(
    whole: Catalog, selected: Callable[[Selection], Catalog], shuffle: bool
) -> None:
    selection = Selection(splits=("train",), max_samples=8, shuffle=shuffle, seed=3)
    available = replace(selection, available=True)
    plain = selected(selection)
    folder = plain.path.parent
    more = set(keys(selected(replace(selection, max_samples=10))))
    assert select(whole, available, folder, ["no clip of this catalog"]).path == plain.path, "nothing is known"
    dead = sorted(keys(plain))[:2]

    with select(whole, available, folder, dead) as catalog:
        assert set(keys(catalog)) == more - set(dead), "the rest of the sample stays"
        assert catalog.annotations_digest != plain.annotations_digest
        path = catalog.path
    with select(whole, available, folder, [*reversed(dead), *dead]) as again:
        assert again.path == path
    assert keys(select(whole, selection, folder, dead)) == keys(plain), "only on request"
    with select(whole, available, folder, dead[:1]) as other:
        assert len(keys(other)) == 8
    assert plain.path.exists() and not path.exists(), "a cache keeps one catalog of what is available"


def test_a_selection_of_nothing_available_is_an_error(whole: Catalog, tmp_path: Path) -> None:
    every = [entry.clip.key for entry in whole.clips()]
    with pytest.raises(CatalogError, match="all clips that match are known to be unavailable"):
        select(whole, Selection(available=True), tmp_path, every)
