"""Text from outside: no message, log line or status line can control a terminal or pass for another line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kinetics_fs.control.describe import describe_mount
from kinetics_fs.control.status import UnreachableMount
from kinetics_fs.errors import ArchiveError, CatalogError, FailureKind, FetchError, StoreError, masked, printable
from kinetics_fs.util import logs
from tests.support.command_line import run_command
from tests.support.status import STATUS

HOSTILE = "server says \x1b]0;owned\x07\x1b[2J\r\nkinetics-fs: all is well\u202e\x9b31m\udc80"
HARMLESS = r"server says \x1b]0;owned\x07\x1b[2J kinetics-fs: all is well\u202e\x9b31m\udc80"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOSTILE, HARMLESS),
        ("two  blanks stay", "two  blanks stay"),
        ("日本の踊り 💃 é", "日本の踊り 💃 é"),
        (" a \n\n b ", "a b"),
        ("", ""),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected


def test_messages_of_errors_are_printable() -> None:
    for error in (ArchiveError(HOSTILE), CatalogError(HOSTILE), StoreError(HOSTILE, errno=28)):
        assert str(error) == HARMLESS
    failure = FetchError(FailureKind.GONE, HOSTILE)
    assert str(failure) == failure.reason == HARMLESS


@pytest.fixture
def logging_set_up() -> Iterator[None]:
    """Log as the program does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.set_up(logging.INFO)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logging_set_up")
def test_log_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("kinetics_fs.test")
    hostile, harmless = HOSTILE[:-1], HARMLESS.removesuffix(r"\udc80")  # pytest cannot report lone surrogates
    logger.warning("page: %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        logger.exception("unexpected")
    first, second, *traceback = capsys.readouterr().err.split("\n")
    assert first.endswith(f"WARNING page: {harmless}")
    assert second.endswith("ERROR unexpected")
    assert traceback[0].startswith("Traceback")
    assert traceback[1].startswith("  File ")
    assert all(line.isprintable() for line in traceback)


def test_status_of_a_hostile_mount_is_printable() -> None:
    lines = describe_mount(replace(STATUS, mountpoint=HOSTILE, release=HOSTILE))
    assert all(line.isprintable() for line in lines)
    assert HARMLESS in lines[0]
    assert describe_mount(UnreachableMount("/mnt", HOSTILE, "unmount it")) == [f"/mnt: {HARMLESS}; unmount it"]


def test_path_with_an_escape_sequence_is_printed_harmlessly(tmp_path: Path) -> None:
    done = run_command("classes", "--cache-dir", tmp_path / "cache", "--annotations", f"{tmp_path}/\x1b[31mno.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"kinetics-fs: cannot read {tmp_path}/\\x1b[31mno.csv: No such file or directory\n"


@pytest.mark.parametrize("command", [("import",), ("umount",), ("fill", "--archive-url"), ("doctor", "--folder")])
def test_folder_with_an_escape_sequence_is_printed_harmlessly(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run_command(*command, f"{tmp_path}/\x1b[31m\nno")
    assert done.returncode in (1, 2)
    assert "\x1b" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("proxy http://me:pass@host:1/ gave up", "proxy http://…@host:1/ gave up"),
        ("https://me:p@ss/w@host/a", "https://…@host/a"),
        ("s3://key:secret@bucket/a", "s3://…@bucket/a"),
        (
            "https://host/a.csv?X-Amz-Signature=0f&X-Amz-Date=1, again",
            "https://host/a.csv?X-Amz-Signature=…&X-Amz-Date=…",
        ),
        ("cannot read https://host/?token=t0ken: it is gone", "cannot read https://host/?token=…: it is gone"),
        ("https://www.youtube.com/watch?v=0wR5jVB-WPk", "https://www.youtube.com/watch?v=0wR5jVB-WPk"),
        ("what? v=1 a@b", "what? v=1 a@b"),
        ("two https://a:b@c/ and https://d/?e=f", "two https://…@c/ and https://d/?e=…"),
    ],
)
def test_secrets_of_addresses_are_masked(text: str, expected: str) -> None:
    shown = masked(text)
    assert shown.startswith(expected)
    assert masked(shown) == shown
    assert str(CatalogError(text)) == shown
