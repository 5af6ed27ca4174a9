"""Names of the files of clips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_fs.catalog import Clip, FileName, parse_file_name
from kinetics_fs.catalog.file_names import BACKUP, COPY, HIDDEN, NO_VIDEO, OTHER_NAME, TRACK, UNFINISHED, VIDEO_SUFFIXES

ID = "-a_b-c_d-e_"
CLIP = Clip(ID, 10, 20)
KEY = CLIP.key


@pytest.mark.parametrize(
    "name",
    [
        f"{KEY}.mp4",
        f"{ID}_10_20.mp4",
        f"{KEY}.MP4",
        f"{KEY}.Mp4 ",
        f"./{KEY}.mp4",
        f"/data/k/{KEY}.mp4",
        f"a/../{ID}_10_20.mp4",
        f"../../{KEY}.mp4",
        f"train\\surfing water\\{KEY}.mp4",
        f"C:\\data\\{KEY}.mp4",
        f"{KEY}.mkv.mp4",
        f" {KEY}.mp4",
        f".hidden/{KEY}.mp4",
        f"{KEY}.mp4/{KEY}.mp4",
    ],
)
def test_name_of_a_clip(name: str) -> None:
    assert parse_file_name(name) == FileName(ID, CLIP, ".mp4", "")


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_suffixes_of_videos(suffix: str) -> None:
    assert parse_file_name(f"{KEY}{suffix}") == FileName(ID, CLIP, suffix, "")
    assert parse_file_name(f"{ID}{suffix.upper()}") == FileName(ID, None, suffix, "")
    assert parse_file_name(f"{KEY}.mp4{suffix}") == FileName(ID, CLIP, suffix, "")


@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        (" (1).mp4", COPY),
        ("(2).mp4", COPY),
        (".mp4 (1)", COPY),
        (" - Copy.mp4", COPY),
        (" - Copy (3).mp4", COPY),
        (" copy.mp4", COPY),
        (" copy 2.mp4", COPY),
        (" (copy).mp4", COPY),
        (" (another copy).mp4", COPY),
        (" (3rd copy).mp4", COPY),
        (" - Kopie.mp4", COPY),
        (" 2.mp4", COPY),
        (".mp4.1", COPY),
        (".part", UNFINISHED),
        (".mp4.part", UNFINISHED),
        (".mp4.part-Frag12", UNFINISHED),
        (".f137.mp4.part", UNFINISHED),
        (".mp4.ytdl", UNFINISHED),
        (".temp.mp4", UNFINISHED),
        (".MP4.CRDOWNLOAD", UNFINISHED),
        (".mp4.aria2", UNFINISHED),
        (".f137.mp4", TRACK),
        (".f251.webm", TRACK),
        (".f401-drc.mp4", TRACK),
        (".fhls-720.mp4", TRACK),
        (".m4a", TRACK),
        (".mp4~", BACKUP),
        (".mp4.bak", BACKUP),
        ("", NO_VIDEO),
        (".jpg", NO_VIDEO),
        (".info.json", NO_VIDEO),
        (".mp4:Zone.Identifier", OTHER_NAME),
        (".mp4x y", OTHER_NAME),
        (".mp4\n", OTHER_NAME),
    ],
)
def test_refused_name_says_why_and_which_clip(ending: str, fault: str) -> None:
    assert parse_file_name(f"{KEY}{ending}") == FileName(ID, CLIP, "", fault)
    assert parse_file_name(f"{ID}{ending}") == FileName(ID, None, "", fault)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (f"Copy of {KEY}.mp4", FileName(ID, CLIP, "", COPY)),
        (f"v_{KEY}.mp4", FileName(ID, CLIP, "", OTHER_NAME)),
        (f"{KEY}_1.mp4", FileName(ID, CLIP, "", OTHER_NAME)),
        (f"._{KEY}.mp4", FileName("", None, "", HIDDEN)),
        (f"{ID}_20_10.mp4", FileName(ID, None, "", OTHER_NAME)),
        (f"{ID}_010_20.mp4", FileName(ID, None, "", OTHER_NAME)),
        (f"{ID}_000010_20.mp4", FileName(ID, None, "", OTHER_NAME)),
        (f"{ID}_10_1000000.mp4", FileName("", None, "", OTHER_NAME)),
        (f"{ID}_000010.mp4", FileName("", None, "", OTHER_NAME)),
        (f"{ID}\udcff.mp4", FileName(ID, None, "", OTHER_NAME)),
        ("-a_b-c_d-\n__10_20.mp4", FileName("", None, "", OTHER_NAME)),
        (f"{KEY}{' ' * 100_000}copy", FileName("", None, "", OTHER_NAME)),
        ("README.md", FileName("", None, "", OTHER_NAME)),
        ("", FileName("", None, "", OTHER_NAME)),
    ],
)
def test_other_names(name: str, parsed: FileName) -> None:
    assert parse_file_name(name) == parsed


@given(st.text())
def test_any_name_is_parsed(name: str) -> None:
    parsed = parse_file_name(name)
    assert bool(parsed.suffix) != bool(parsed.fault)
