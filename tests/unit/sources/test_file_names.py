"""File names of clips in folders."""

from __future__ import annotations

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.sources.folder import file_names, parse_file_name

CLIP = Clip("-a_b-c_d-e_", 10, 20)


@pytest.mark.parametrize("name", [*file_names(CLIP), "a" * 11 + "_0_999999.mp4"])
def test_file_name_of_a_clip_is_parsed(name: str) -> None:
    clip = parse_file_name(name)
    assert clip is not None
    assert name in file_names(clip)


@pytest.mark.parametrize(
    "name",
    [
        "-a_b-c_d-e__010_20.mp4",
        "-a_b-c_d-e__20_10.mp4",
        "-a_b-c_d-e__000010_20.mp4",
        "-a_b-c_d-e__10_20.mp4\n",
        "-a_b-c_d-e__10_1000000.mp4",
        "-a_b-c_d-e__10_20.MP4",
        "._a_b-c_d-e__10_20.mp4x",
        "-a_b-c_d-\n__10_20.mp4",
    ],
)
def test_other_file_name_is_refused(name: str) -> None:
    assert parse_file_name(name) is None
