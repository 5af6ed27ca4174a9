from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.catalog import UNLABELED, Annotation, Clip, Refusal, read_annotations

KEY = "-wR5jVB-WPk_000417_000427"
CLIP = Clip("-wR5jVB-WPk", 417, 427)


def read(path: Path, text: str, split: str | None = "test") -> list[Annotation | Refusal]:
    path.write_text(text)
    return list(read_annotations(path, split=split))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "list.txt"


@pytest.mark.parametrize(
    ("line", "split", "label"),
    [
        # paths
        (f"train/abseiling/{KEY}.mp4", "train", "abseiling"),
        (f"abseiling/{KEY}.mp4", "test", "abseiling"),
        (f"./abseiling/{KEY}", "test", "abseiling"),
        (f"/data/k400/val/air drumming/{KEY}.mp4", "validation", "air drumming"),
        (f"/data/test/val/air drumming/{KEY}.mp4", "validation", "air drumming"),
        (f"C:\\data\\train\\air drumming\\{KEY}.mp4", "train", "air drumming"),
        (f"https://s3.amazonaws.com/kinetics/600/train/air drumming/{KEY}.mp4", "train", "air drumming"),
        (f"train_256/battle rope training/{KEY}.mkv", "train", "battle rope training"),
        (f"train/beer, drinking/{KEY}.mp4", "train", "beer, drinking"),
        (f"train/\u8dd1\u6b65/{KEY}.mp4", "train", "\u8dd1\u6b65"),
        # folders that are no class
        (f"/data/k400/val/{KEY}.mp4", "validation", UNLABELED),
        (f"videos_train/{KEY}.mp4", "train", UNLABELED),
        (f"kinetics600/videos/{KEY}.mp4", "test", UNLABELED),
        (f"train/_unlabeled/{KEY}.mp4", "train", UNLABELED),
        (f"train/12/{KEY}.mp4", "train", UNLABELED),
        (f"x/../{KEY}.mp4", "test", UNLABELED),
        # keys
        (KEY, "test", UNLABELED),
        (f"{KEY}.mp4", "test", UNLABELED),
        ("-wR5jVB-WPk_417_427.MP4", "test", UNLABELED),
        # paths and keys with labels or numbers
        (f"train/air drumming/{KEY}.mp4 12", "train", "air drumming"),
        (f"train/air drumming/{KEY}.mp4,12", "train", "air drumming"),
        (f"train/air drumming/{KEY}.mp4\t12", "train", "air drumming"),
        (f'"train/air drumming/{KEY}.mp4" 12', "train", "air drumming"),
        (f"abseiling/{KEY} 300 12", "test", "abseiling"),
        (f"videos/{KEY}.mp4 -1", "test", UNLABELED),
        (f"videos/{KEY}.mp4 air drumming", "test", "air drumming"),
        (f"{KEY}.mp4 5 battle rope training", "test", "battle rope training"),
        (f"{KEY};air drumming;val", "validation", "air drumming"),
        (f"air drumming,{KEY}.mp4", "test", "air drumming"),
        (f"abseiling,train/x/{KEY}.mp4", "train", "abseiling"),
        # rows
        ("-wR5jVB-WPk 417 427", "test", UNLABELED),
        ("-wR5jVB-WPk,417,427", "test", UNLABELED),
        ("-wR5jVB-WPk,417.0,427.0,val", "validation", UNLABELED),
        ("air drumming,-wR5jVB-WPk,417,427,val", "validation", "air drumming"),
        ('"air drumming",-wR5jVB-WPk,417,427,val,0', "validation", "air drumming"),
        ('"beer, drinking",-wR5jVB-WPk,417,427,val,0', "validation", "beer, drinking"),
        ("air drumming\t-wR5jVB-WPk\t417\t427\ttraining", "train", "air drumming"),
        ("air drumming -wR5jVB-WPk 417 427 val", "validation", "air drumming"),
        ("-wR5jVB-WPk, 417, 427, validate, air drumming", "validation", "air drumming"),
        ("-wR5jVB-WPk,bookbinding,417,427", "test", "bookbinding"),
        ("bookbinding -wR5jVB-WPk 417 427", "test", "bookbinding"),
        ("-wR5jVB-WPk bookbinding 417 427 12", "test", "bookbinding"),
        ("5,val,417,427,air drumming,-wR5jVB-WPk", "validation", "air drumming"),
        ("5\t-wR5jVB-WPk\tair drumming\t417\t427\t1", "test", "air drumming"),
        ("https://www.youtube.com/watch?v=-wR5jVB-WPk,417,427,air drumming", "test", "air drumming"),
        ("https://youtu.be/-wR5jVB-WPk?t=417 417 427", "test", UNLABELED),
    ],
)
def test_a_line_names_a_clip(file: Path, line: str, split: str, label: str) -> None:
    assert read(file, f"\ufeff# a comment\n\n{line}\n") == [Annotation(split, label, CLIP)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-wR5jVB-WPk", "video has no times"),
        ("-wR5jVB-WPk.mp4", "video has no times"),
        ("abseiling", "no clip is named"),
        ("some words about the list", "no clip is named"),
        ("-wR5jVB-WPk_000427_000417.mp4", "no clip is named"),
        (f"train/abseiling/{KEY}.mp4.part", "no clip is named"),
        (f"train/abseiling/x{KEY}.mp4", "no clip is named"),
        ("-wR5jVB-WPk,417", "no clip is named"),
        ("-wR5jVB-WPk,427,417", "ends before it begins"),
        ("-wR5jVB-WPk,417.5,427", "time is not a whole number of seconds"),
        (f"{KEY},../x", "label has a slash"),
        (f"a\x1bb/{KEY}.mp4", "label has a control character"),
        (f"{'x' * 300}/{KEY}.mp4", "label is too long"),
    ],
)
def test_a_bad_line_is_refused_and_costs_nothing_else(file: Path, line: str, reason: str) -> None:
    good, bad, good_again = read(file, f"{KEY}\n{line}\n{KEY}\n")
    assert good == good_again == Annotation("test", UNLABELED, CLIP)
    assert isinstance(bad, Refusal)
    assert (bad.line, bad.reason) == (2, reason)


def test_lines_without_a_split_are_refused_beside_others(file: Path) -> None:
    _, bad = read(file, f"train/{KEY}\n{KEY}\n", split=None)
    assert isinstance(bad, Refusal)
    assert bad.reason == "no split"


@pytest.mark.parametrize(
    "line",
    [
        f"-wR5jVB-WPk{' ' * 60_000}x",
        f"-wR5jVB-WPk {'1' * 60_000}x",
        "-wR5jVB-WPk " * 5_000 + "x",
        "https://youtube.com/watch?" * 2_400,
        f"https://{'a.' * 30_000}",
        f"{KEY} {'1 ' * 30_000}x",
    ],
    ids=lambda line: repr(line[:30]),
)
def test_long_lines_are_parsed_at_once(file: Path, line: str) -> None:
    """Regular expressions that try every part of such lines again would take hours."""
    assert len(read(file, f"{KEY}\n{line}\n")) == 2
