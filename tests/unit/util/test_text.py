"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from kinetics_fs.util.text import count, parse_json


@pytest.mark.parametrize(
    ("n", "noun", "words"),
    [(1, "clip", "1 clip"), (0, "row", "0 rows"), (1200, "fetch", "1,200 fetches"), (2, "index", "2 indexes")],
)
def test_a_number_comes_with_its_noun(n: int, noun: str, words: str) -> None:
    assert count(n, noun) == words


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800", b"\xff", '{"a":' * 100_000])
def test_text_that_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)
