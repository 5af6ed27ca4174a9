"""Lists of clips, as data loaders have them."""

from __future__ import annotations

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.fetch.prefetch import parse_clip_list

CLIP = Clip("-a1B2c3D4e5", 10, 20)


@pytest.mark.parametrize(
    "line",
    [
        "-a1B2c3D4e5_000010_000020",
        "-a1B2c3D4e5_000010_000020.mp4",
        "validation/surfing water/-a1B2c3D4e5_000010_000020.mp4",
        "/mnt/kinetics/validation/surfing water/-a1B2c3D4e5_000010_000020.mp4 312",
        "surfing_water/-a1B2c3D4e5_000010_000020.mp4 -1  ",
    ],
)
def test_a_line_names_a_clip_by_path_file_name_or_key(line: str) -> None:
    assert parse_clip_list([line]) == ([CLIP], 0)


@pytest.mark.parametrize(
    "line", ["", "/etc/passwd", "-a1B2c3D4e5_10_20.mp4", "-a1B2c3D4e5_000010_000020.avi", "x" * 99]
)
def test_other_lines_are_counted(line: str) -> None:
    assert parse_clip_list([line, CLIP.name]) == ([CLIP], 1)


def test_the_order_and_repetitions_stay() -> None:
    other = Clip("zzzzzzzzzzz", 0, 10)
    assert parse_clip_list([other.name, CLIP.key, other.key]) == ([other, CLIP, other], 0)
