"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from kinetics_fs.util.text import count


@pytest.mark.parametrize(
    ("n", "noun", "words"),
    [(1, "clip", "1 clip"), (0, "row", "0 rows"), (1200, "fetch", "1,200 fetches"), (2, "index", "2 indexes")],
)
def test_a_number_comes_with_its_noun(n: int, noun: str, words: str) -> None:
    assert count(n, noun) == words
