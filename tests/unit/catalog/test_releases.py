from __future__ import annotations

import pytest

from kinetics_fs.catalog import RELEASES, find_release
from kinetics_fs.errors import CatalogError


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("400", "400"),
        ("600", "600"),
        ("kinetics-600", "600"),
        ("k600", "600"),
        ("Kinetics600", "600"),
        ("K700", "700"),
        ("kinetics-700-2020", "700-2020"),
        ("700_2020", "700-2020"),
        ("K700-2020", "700-2020"),
        (" kinetics 700 2020 ", "700-2020"),
    ],
)
def test_words_for_a_release(word: str, name: str) -> None:
    assert find_release(word).name == name


@pytest.mark.parametrize("word", ["", "500", "7002020", "6000", "kinetics", "kk600", "700-2021", "６００"])
def test_other_words_are_refused_with_those_there_are(word: str) -> None:
    with pytest.raises(CatalogError, match="there are 400, 600, 700, 700-2020"):
        find_release(word)


def test_every_release_is_whole() -> None:
    assert [release.published.year for release in RELEASES] == [2017, 2018, 2019, 2020]
    for release in RELEASES:
        assert release.annotations
        assert all(url.startswith("https://") for url in release.annotations)
