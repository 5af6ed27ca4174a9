"""Cookie files as browsers and people leave them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.sources.cookies import CookieError, CookieFile, read_cookies

SECRET = "s3cret-value"
HEADER = "# Netscape HTTP Cookie File\n"


def line(expires: str = "9999999999", domain: str = ".youtube.com") -> str:
    return f"{domain}\tTRUE\t/\tTRUE\t{expires}\tSID\t{SECRET}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cookies.txt"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (f'[{{"domain": ".youtube.com", "value": "{SECRET}"}}]'.encode(), "it is JSON"),
        (f'\n  {{"cookies": ["{SECRET}"]}}'.encode(), "it is JSON"),
        (line().encode(), 'its first line is not "# Netscape HTTP Cookie File"'),
        (f"\n{HEADER}{line()}".encode(), "its first line is not"),
        (f"SID={SECRET}; HSID=x".encode(), "its first line is not"),
        (HEADER.encode(), "it has no cookies"),
        (f"{HEADER}# comment\n\n".encode(), "it has no cookies"),
        ((HEADER + line().replace("\t", " ")).encode(), "none of its lines has seven fields"),
        ((HEADER + line("soon")).encode(), "none of its lines has seven fields"),
        ((HEADER + line()).encode("utf-16"), "it is UTF-16"),
        (HEADER.encode() + b"\xff\xfe\x00", "it is not text"),
        (os.urandom(2) + b"\x80" * 100, "it is not text"),
        (HEADER.encode() + b"#" * 10**7, "it is larger than 10,000,000 bytes"),
    ],
)
def test_bad_files_are_refused_with_the_cause(path: Path, content: bytes, cause: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CookieError) as caught:
        read_cookies(path)
    assert caught.value.cause.startswith(cause)
    assert str(caught.value).startswith(f"cannot use --cookies {path}: {cause}")
    assert SECRET not in str(caught.value)


def test_the_database_of_a_browser_is_named(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE cookies (host_key)")
    with pytest.raises(CookieError, match="it is the database of a browser; export the cookies"):
        read_cookies(path)


def test_what_cannot_be_read_is_refused_at_once(path: Path) -> None:
    with pytest.raises(CookieError, match="it cannot be read: No such file"):
        read_cookies(path)
    with pytest.raises(CookieError, match="it is not a regular file"):
        read_cookies(path.parent)
    os.mkfifo(path)
    with pytest.raises(CookieError, match="it is not a regular file"):
        read_cookies(path)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_good_lines_are_used_and_others_left_out(path: Path, start: str, end: str) -> None:
    lines = [
        *("# Netscape HTTP Cookie File", "# https://curl.se/docs/http-cookies.html", ""),
        line().rstrip(),
        "#HttpOnly_" + line("0").rstrip(),
        line("").rstrip(),
        line("99999999999.5", "accounts.google.com").rstrip(),
        line("1000", "www.youtube.com").rstrip(),
        f"a line that yt-dlp would print: {SECRET}",
    ]
    path.write_bytes((start + end.join([*lines, ""])).encode())
    path.chmod(0o600)
    cookies = read_cookies(path)
    assert (cookies.valid, cookies.expired, cookies.for_youtube) == (4, 1, 3)
    assert cookies.text.splitlines() == [lines[0], *lines[3:8]]
    assert cookies.warnings(path, on_youtube=True) == []


def test_warnings(path: Path) -> None:
    def warnings(content: str, mode: int = 0o600, *, on_youtube: bool = True) -> str:
        path.write_text(HEADER + content)
        path.chmod(mode)
        found = read_cookies(path).warnings(path, on_youtube=on_youtube)
        assert len(found) <= 1
        return "".join(found)

    assert warnings(line()) == warnings(line(), 0o640) == ""
    assert f"run chmod 600 {path}" in warnings(line(), 0o644)
    assert "all cookies" in warnings(line("1000"))
    assert "no valid cookie for youtube.com" in warnings(line(domain=".example.org"))
    assert "no valid cookie for youtube.com" in warnings(line(domain=".notyoutube.com"))
    assert "no valid cookie for youtube.com" in warnings(line("1000") + line(domain=".google.com"))
    assert warnings(line(domain=".example.org"), on_youtube=False) == ""


def test_a_file_is_read_again_when_it_has_changed(path: Path) -> None:
    file = CookieFile(path)
    with pytest.raises(CookieError):
        file.read()
    path.write_text(HEADER + line())
    first = file.read()
    assert file.read() is first
    path.write_text(HEADER + line("0"))
    assert file.read().text != first.text
    path.unlink()
    with pytest.raises(CookieError, match="No such file"):
        file.read()
