from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import UNLABELED, Annotation, Clip, Refusal, parse_clip_name, read_annotations
from kinetics_fs.catalog.rows import MAX_ROW
from kinetics_fs.errors import CatalogError
from tests.support.annotations import HEADER, write_and_read

GOOD = b"abseiling,0wR5jVB-WPk,417,427,val"
ANNOTATION = Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 417, 427))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def refusals(rows: list[Annotation | Refusal]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, Refusal)]


# Dialects


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            'label,youtube_id,time_start,time_end,split,is_cc\n"shaking hands",-0wR5jVB-WP,1,11,val,0\n',
            Annotation("validation", "shaking hands", Clip("-0wR5jVB-WP", 1, 11)),
            id="six columns, quoted (ActivityNet 400)",
        ),
        pytest.param(
            "label,youtube_id,time_start,time_end,split\nmassaging person's head,0wR5jVB-WPk,84,94,validate\n",
            Annotation("validation", "massaging person's head", Clip("0wR5jVB-WPk", 84, 94)),
            id="five columns, bare (DeepMind)",
        ),
        pytest.param(
            "youtube_id,time_start,time_end,split\n0wR5jVB-WPk,0,10,holdout_test\n",
            Annotation("test", UNLABELED, Clip("0wR5jVB-WPk", 0, 10)),
            id="four columns (holdout)",
        ),
        pytest.param(
            'split,time_end,label,youtube_id,time_start\ntrain,27,"beer, drinking",0wR5jVB-WPk,17\n',
            Annotation("train", "beer, drinking", Clip("0wR5jVB-WPk", 17, 27)),
            id="another order, comma in quotes",
        ),
        pytest.param(
            '\ufeff"Label", YouTube_ID ,TIME_START,time_end,"split"\r\n\r\n x y , 0wR5jVB-WPk , 84.0,94.00 ,VAL\r\n',
            Annotation("validation", "x y", Clip("0wR5jVB-WPk", 84, 94)),
            id="BOM, CRLF, blank line, spaces, capitals, floats",
        ),
        pytest.param(
            f"{HEADER}\n,0wR5jVB-WPk,84,94,test",
            Annotation("test", UNLABELED, Clip("0wR5jVB-WPk", 84, 94)),
            id="empty label, no newline at the end",
        ),
        pytest.param(
            "sep=;\nlabel;id;start;end;subset\nabseiling;0wR5jVB-WPk;1,0;11,0;valid\n",
            Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 1, 11)),
            id="semicolons, decimal commas (spreadsheets)",
        ),
        pytest.param(
            "label\tytid\tstart_time\tend_time\tset\n\t0wR5jVB-WPk\t1\t11\tTraining\n",
            Annotation("train", UNLABELED, Clip("0wR5jVB-WPk", 1, 11)),
            id="tabs, the first field empty",
        ),
        pytest.param(
            "youtube-id|time-start|time-end|Split\n0wR5jVB-WPk|1|11|testing\n",
            Annotation("test", UNLABELED, Clip("0wR5jVB-WPk", 1, 11)),
            id="bars, names with hyphens",
        ),
        pytest.param(
            'action video_id start end split\n"air drumming" 0wR5jVB-WPk 1 11 val\n',
            Annotation("validation", "air drumming", Clip("0wR5jVB-WPk", 1, 11)),
            id="blanks",
        ),
        pytest.param(
            ",class_name,class,url,start (s),end_seconds,split\n"
            "0,air drumming,3,https://www.youtube.com/watch?v=-wR5jVB-WPk&t=4s,1,11,val\n",
            Annotation("validation", "air drumming", Clip("-wR5jVB-WPk", 1, 11)),
            id="address, index and number of the class (data frames)",
        ),
        pytest.param(
            "class,label_name,id,video_id,start,end,split\n3,air drumming,0,0wR5jVB-WPk,1,11,val\n",
            Annotation("validation", "air drumming", Clip("0wR5jVB-WPk", 1, 11)),
            id="several columns of a kind: the useful one",
        ),
        pytest.param(
            "path,label\ntrain/air drumming/0wR5jVB-WPk_000001_000011.mp4,3\n",
            Annotation("train", "air drumming", Clip("0wR5jVB-WPk", 1, 11)),
            id="path and number of the class",
        ),
        pytest.param(
            "file,start,end,label,split\n0wR5jVB-WPk.mp4,1,11,air drumming,val\n",
            Annotation("validation", "air drumming", Clip("0wR5jVB-WPk", 1, 11)),
            id="file of a video and times",
        ),
        pytest.param(
            f"{HEADER},\nabseiling,0wR5jVB-WPk,1,11,val\n,,,,,\n",
            Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 1, 11)),
            id="comma after the header, empty row",
        ),
        pytest.param(
            f"{HEADER}\nabseiling,0wR5jVB-WPk,1,11,val,,\n",
            Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 1, 11)),
            id="commas after each row",
        ),
        pytest.param(
            f"# made by hand\n# {HEADER}\nabseiling,0wR5jVB-WPk,1,11,val\n",
            Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 1, 11)),
            id="header in a comment",
        ),
        pytest.param(
            f"{HEADER}\rabseiling,0wR5jVB-WPk,1,11,val\r\r",
            Annotation("validation", "abseiling", Clip("0wR5jVB-WPk", 1, 11)),
            id="CR",
        ),
        pytest.param(
            f"{HEADER}\nnaïve ☃,0wR5jVB-WPk,000084,0999999,test\n",
            Annotation("test", "naïve ☃", Clip("0wR5jVB-WPk", 84, 999_999)),
            id="UTF-8, leading zeros, the last second",
        ),
    ],
)
def test_csv_dialects(file: Path, text: str, expected: Annotation) -> None:
    assert write_and_read(file, text) == [expected]


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "annotations": {"label": "testifying", "segment": [84.0, 94.0]},
        "duration": 10.0,
        "subset": "validate",
        "url": "https://www.youtube.com/watch?v=---QUuC4vJs",
        **changes,
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_deepmind_json(file: Path, indent: int | None) -> None:
    entries = {
        "---QUuC4vJs": entry(),
        "0wR5jVB-WPk": entry(subset="test", annotations={"segment": [0, 10]}),
        "1wR5jVB-WPk": entry(annotations={"label": "naïve ☃", "segment": [0, 10]}),
    }
    assert write_and_read(file, json.dumps(entries, indent=indent, ensure_ascii=False)) == [
        Annotation("validation", "testifying", Clip("---QUuC4vJs", 84, 94)),
        Annotation("test", UNLABELED, Clip("0wR5jVB-WPk", 0, 10)),
        Annotation("validation", "naïve ☃", Clip("1wR5jVB-WPk", 0, 10)),
    ]


def test_json_larger_than_the_window(file: Path) -> None:
    entries = {f"{number:011d}": entry(url="x" * 1000) for number in range(3000)}
    assert len(write_and_read(file, json.dumps(entries))) == 3000


@pytest.mark.parametrize("content", ["csv", "json"])
def test_gzip_is_known_by_its_content(file: Path, content: str) -> None:
    text = f"{HEADER}\n".encode() + GOOD if content == "csv" else json.dumps({"---QUuC4vJs": entry()}).encode()
    assert len(write_and_read(file, gzip.compress(text))) == 1


# Refused rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"abseiling,0wR5jVB-WP,417,427,val", "bad YouTube id"),
        (b"abseiling,0wR5jVB-WPkk,417,427,val", "bad YouTube id"),
        (b"abseiling,../R5jVB-WP,417,427,val", "bad YouTube id"),
        ("abseiling,0wR5jVB-WPé,417,427,val".encode(), "bad YouTube id"),
        (b"abseiling,0wR5jVB-WPk,427,417,val", "ends before it begins"),
        (b"abseiling,0wR5jVB-WPk,417,417,val", "ends before it begins"),
        (b"abseiling,0wR5jVB-WPk,417.5,427,val", "time is not a whole number of seconds"),
        (b"abseiling,0wR5jVB-WPk,-1,427,val", "time is not a whole number of seconds"),
        (b"abseiling,0wR5jVB-WPk,,427,val", "time is not a whole number of seconds"),
        (b"abseiling,0wR5jVB-WPk,1e2,427,val", "time is not a whole number of seconds"),
        (b"abseiling,0wR5jVB-WPk,1_0,427,val", "time is not a whole number of seconds"),
        ("abseiling,0wR5jVB-WPk,４１７,427,val".encode(), "time is not a whole number of seconds"),
        (b"abseiling,0wR5jVB-WPk,417,1000000,val", "time is too large"),
        (b"abseiling,0wR5jVB-WPk,417,427,vla", "unknown split"),
        (b"abseiling,0wR5jVB-WPk,417,427,", "no split"),
        (b"abseiling,0wR5jVB-WPk,417,427", "wrong number of fields"),
        (b"abseiling,0wR5jVB-WPk,417,427,val,0", "wrong number of fields"),
        (b"a/b,0wR5jVB-WPk,417,427,val", "label has a slash"),
        (b"/etc/passwd,0wR5jVB-WPk,417,427,val", "label has a slash"),
        (b"a\0b,0wR5jVB-WPk,417,427,val", "label has a control character"),
        (b"a\x1b[31mb,0wR5jVB-WPk,417,427,val", "label has a control character"),
        (b"a\rb,0wR5jVB-WPk,417,427,val", "label has a control character"),
        ("a\u2028b,0wR5jVB-WPk,417,427,val".encode(), "label has a control character"),
        (b".,0wR5jVB-WPk,417,427,val", "label is not a name"),
        (b" .. ,0wR5jVB-WPk,417,427,val", "label is not a name"),
        (b"_unlabeled,0wR5jVB-WPk,417,427,val", "label is reserved"),
        (b"x" * 256 + b",0wR5jVB-WPk,417,427,val", "label is too long"),
        ("é".encode() * 128 + b",0wR5jVB-WPk,417,427,val", "label is too long"),
        (b"a\xffb,0wR5jVB-WPk,417,427,val", "not UTF-8"),
        (b'"abseiling,0wR5jVB-WPk,417,427,val', "quotes do not match"),
        (b'"abs"eiling,0wR5jVB-WPk,417,427,val', "quotes do not match"),
        (b"x" * (MAX_ROW + 1), "row is too long"),
        (b"x" * (3 * MAX_ROW), "row is too long"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:40]),
)
def test_a_bad_row_is_refused_and_costs_nothing_else(file: Path, row: bytes, reason: str) -> None:
    rows = write_and_read(file, b"\n".join([HEADER.encode(), GOOD, b"", row, GOOD, b""]))
    assert [row for row in rows if isinstance(row, Annotation)] == [ANNOTATION, ANNOTATION]
    assert refusals(rows) == [(4, reason)]
    (refusal,) = (row for row in rows if isinstance(row, Refusal))
    assert refusal.file == "rows.csv"
    assert refusal.text.isprintable()
    assert len(refusal.text) <= 200 * len("\\x00")


def test_a_label_of_255_bytes_is_taken(file: Path) -> None:
    assert refusals(write_and_read(file, f"{HEADER}\n{'x' * 255},0wR5jVB-WPk,417,427,val\n")) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry(annotations={"label": "x"}), "entry lacks a field"),
        (entry(annotations={"label": "x", "segment": [1]}), "entry lacks a field"),
        (entry(annotations={"label": "x", "segment": "12"}), "entry lacks a field"),
        (entry(annotations=None), "entry lacks a field"),
        (entry(subset=None), "entry lacks a field"),
        ([], "entry lacks a field"),
        (entry(annotations={"label": ["x"], "segment": [1, 2]}), "label is not text"),
        (entry(annotations={"label": "\ud800", "segment": [1, 2]}), "not UTF-8"),
        (entry(annotations={"label": "../x", "segment": [1, 2]}), "label has a slash"),
        (entry(annotations={"label": "x", "segment": [1.5, 2]}), "time is not a whole number of seconds"),
        (entry(annotations={"label": "x", "segment": [True, 2]}), "time is not a whole number of seconds"),
        (entry(annotations={"label": "x", "segment": [float("nan"), 2]}), "time is not a whole number of seconds"),
        (entry(annotations={"label": "x", "segment": [[[]], 2]}), "time is not a whole number of seconds"),
    ],
)
def test_a_bad_json_entry_is_refused_and_costs_nothing_else(file: Path, bad: Any, reason: str) -> None:
    rows = write_and_read(file, json.dumps({"---QUuC4vJs": entry(), "0wR5jVB-WPk": bad, "1wR5jVB-WPk": entry()}))
    assert len(rows) == 3
    assert refusals(rows) == [(2, reason)]


def test_a_json_entry_that_is_not_utf8_is_refused(file: Path) -> None:
    text = json.dumps({"---QUuC4vJs": entry(), "0wR5jVB-WPk": entry()}).encode()
    assert refusals(write_and_read(file, text.replace(b"testifying", b"testi\xff", 1))) == [(1, "not UTF-8")]


def test_numbers_of_lines_count_every_kind_of_line_end(file: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        rows = write_and_read(file, end.join([HEADER, GOOD.decode(), "", "x"]))
        assert refusals(rows) == [(4, "wrong number of fields")]


# Columns


def test_a_list_without_labels_names_its_unknown_columns_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "tag,youtube_id,time_start,time_end,split,mood"
    rows = write_and_read(file, f"{header}\nx,0wR5jVB-WPk,1,11,val,y\nx,1wR5jVB-WPk,1,11,val,y\n")
    assert {row.label for row in rows if isinstance(row, Annotation)} == {UNLABELED}
    (warning,) = caplog.messages
    assert "rows.csv has no column of labels" in warning
    assert "(tag, mood)" in warning


def test_published_lists_without_labels_are_no_reason_to_warn(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_and_read(file, "youtube_id,time_start,time_end,split\n0wR5jVB-WPk,0,10,test\n")
    assert caplog.messages == []


# Files that are refused


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(file: Path, encoding: str) -> None:
    name = encoding[:6].upper()
    with pytest.raises(CatalogError, match=rf"^cannot read rows\.csv: it is {name}; save it as UTF-8$"):
        write_and_read(file, f"{HEADER}\n{GOOD.decode()}\n".encode(encoding))
    with pytest.raises(CatalogError, match=rf"^cannot read rows\.csv: it is {name}; save it as UTF-8$"):
        write_and_read(file, gzip.compress(json.dumps({"---QUuC4vJs": entry()}).encode(encoding)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no usable row; there are no rows"),
        (b"\n\n", "has no usable row; there are no rows"),
        (
            b"label,youtube_id,time_start,split\n",
            "its header has no time_end, only label, youtube_id, time_start, split;",
        ),
        (b"label,name\nx,y\n", "not a list of annotations; its first line: no clip is named"),
        (b"\xe9\n", "its first line: not UTF-8"),
        (b"youtube_id\n0wR5jVB-WPk\n", "its header has no time_start, time_end, only youtube_id; a list needs"),
        (b"0wR5jVB-WPk\n", "its first line: video has no times; a list has a header with"),
        (b"0wR5jVB-WPk_000001_000011\n", "its rows have no split; add a column split, name the file after .* --split"),
        (b"<!DOCTYPE html>\n<html>", "it is a web page or XML; download the list itself"),
        (b"PK\x03\x04...", "it is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
        (b"PAR1...", "it is Parquet; save it as CSV"),
        (b'"label\n', "its first line: quotes do not match"),
        (b"x" * (MAX_ROW + 1), "its first line: row is too long"),
        (HEADER.encode(), "has no usable row; there are no rows"),
        (HEADER.encode() + b"\nx,y,1,2,val\nx,y\n", "has no usable row; row 2: bad YouTube id"),
        (b"{}", "has no usable row"),
        (b'{"a": 1}', "has no usable row; row 1: entry lacks a field"),
        (b"{", "near its entry 1"),
        (b'{"---QUuC4vJs": ', "near its entry 1"),
        (b'{"---QUuC4vJs": {}', "cut short"),
        (b'{"---QUuC4vJs": {} "x": {}}', "not parted by commas"),
        (b'{"---QUuC4vJs" {}}', "an entry has no name"),
        (b"{1: {}}", "an entry has no name"),
        (b'{"a": ' + b"[" * 50_000, "near its entry 1"),
        (b'{"a": "' + b"x" * MAX_ROW + b'"}', "an entry is too long"),
        (b"\x1f\x8b", "damaged or incomplete"),
        (b"\x1f\x8b" + b"x" * 100, "cannot read"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:40]),
)
def test_a_useless_file_is_an_error_that_names_it(file: Path, content: bytes, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as caught:
        write_and_read(file, content)
    assert "rows.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_gzip_is_an_error(file: Path, damage: str) -> None:
    content = bytearray(gzip.compress(b"\n".join([HEADER.encode(), *[GOOD] * 1000])))
    if damage == "cut":
        del content[-12:]
    else:
        content[-6] ^= 1  # the checksum
    with pytest.raises(CatalogError, match=r"rows\.csv"):
        write_and_read(file, bytes(content))


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CatalogError, match=r"cannot read .*/missing\.csv: No such file"):
        list(read_annotations(tmp_path / "missing.csv"))
    for name in ("pipe", "."):
        with pytest.raises(CatalogError, match="is not a file"):
            list(read_annotations(tmp_path / name))


# No row, whatever is in it, makes an unsafe path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda *fields: b",".join(fields),
            st.sampled_from([b"a", b"..", b".", b"a/b", b"\0", b'"', b"_unlabeled", b" "]) | st.binary(max_size=300),
            st.sampled_from([b"0wR5jVB-WPk", b"-----------", b"../../../../"]) | st.binary(min_size=11, max_size=11),
            st.integers(-2, 1_100_000).map(lambda number: b"%d" % number) | st.binary(max_size=8),
            st.integers(-2, 1_100_000).map(lambda number: b"%d" % number) | st.binary(max_size=8),
            st.sampled_from([b"val", b"train", b"holdout_test", b"../x"]),
        )
    )
)
def test_no_row_makes_an_unsafe_path(file: Path, rows: list[bytes]) -> None:
    taken = [
        row for row in write_and_read(file, b"\n".join([HEADER.encode(), *rows, GOOD])) if isinstance(row, Annotation)
    ]
    assert ANNOTATION in taken
    for row in taken:
        assert row.split in ("train", "validation", "test")
        assert row.label not in ("", ".", "..")
        assert not set(row.label) & {"/", "\0", "\n", "\r"}
        assert len(os.fsencode(row.label)) <= 255
        assert parse_clip_name(row.clip.name) == row.clip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.binary())
def test_any_bytes_are_annotations_or_an_error(file: Path, content: bytes) -> None:
    with suppress(CatalogError):
        assert write_and_read(file, content)
