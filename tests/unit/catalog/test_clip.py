from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_fs.catalog import Clip, parse_clip_name

ids = st.text("ABCxyz019-_", min_size=11, max_size=11)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    start = draw(st.integers(0, 999_998))
    return Clip(draw(ids), start, draw(st.integers(start + 1, 999_999)))


def test_a_clip_says_what_it_is() -> None:
    clip = Clip("-0wR5jVB-WP", 417, 427)
    assert clip.key == "-0wR5jVB-WP_000417_000427"
    assert clip.name == "-0wR5jVB-WP_000417_000427.mp4"
    assert clip.duration == 10


@given(clips())
def test_names_and_clips_are_one_to_one(clip: Clip) -> None:
    assert len(clip.name.encode()) == 29
    assert parse_clip_name(clip.name) == clip


@given(clips(), clips())
def test_names_sort_as_clips_do(one: Clip, other: Clip) -> None:
    assert (one < other) == (one.name < other.name)


@given(st.text() | st.from_regex(r"[\w-]{11}_\d{6}_\d{6}\.mp4", fullmatch=True))
def test_no_second_name_for_a_clip(name: str) -> None:
    clip = parse_clip_name(name)
    assert clip is None or clip.name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0wR5jVB-WPk_000417_000427",
        "0wR5jVB-WPk_000417_000427.mp4\n",
        "0wR5jVB-WPk_000417_000427.MP4",
        "0wR5jVB-WPk_417_427.mp4",
        "0wR5jVB-WPk_000427_000417.mp4",
        "0wR5jVB-WPk_000417_000417.mp4",
        "0wR5jVB-WP_000417_000427.mp4",
        "../R5jVB-WPk_000417_000427.mp4",
        "0wR5jVB-WPk_00041７_000427.mp4",
        "._0wR5jVB-WPk_000417_000427.mp4",
    ],
)
def test_other_names_are_no_clips(name: str) -> None:
    assert parse_clip_name(name) is None
