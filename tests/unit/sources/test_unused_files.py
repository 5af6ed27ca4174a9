"""The summary of files that are not used."""

from __future__ import annotations

import pytest

from kinetics_fs.catalog.file_names import COPY, OTHER_NAME
from kinetics_fs.sources.folder_files import UnusedFiles


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("-a_b-c_d-e__000010_000020.mkv.part", "ID_N_N.mkv.part"),
        ("-a_b-c_d-e__10_20 (12).MP4", "ID_N_N (N).MP4"),
        ("-a_b-c_d-e_.f137.mp4", "ID.fN.mp4"),
        ("-a_b-c_d-e__000010.mp4", "ID_N.mp4"),
        ("frame_000123.jpg", "*.jpg"),
        ("archive.part1.rar", "*.rar"),
        ("README", "*"),
        ("-a_b-c_d-e_ " + "the title of the video " * 3 + ".mp4", "*.mp4"),
    ],
)
def test_names_become_patterns(name: str, pattern: str) -> None:
    unused = UnusedFiles()
    unused.add(f"/data/{name}", COPY)
    [group] = unused.groups()
    assert group == (1, pattern, COPY, f"/data/{name}")
    assert group.notable == (pattern not in ("*.jpg", "*.rar", "*"))


def test_number_of_groups_is_bounded() -> None:
    unused = UnusedFiles()
    for number in range(10_000):
        unused.add(f"/data/x.{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chr(97 + number // 676)}", OTHER_NAME)
    groups = unused.groups()
    assert len(groups) <= 101
    assert sum(group.files for group in groups) == 10_000
    assert str(groups[0]).startswith(f"{groups[0].files:,} files named like * are not used (/data/x.")
