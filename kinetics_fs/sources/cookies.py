"""The cookie file of an account: read and checked before anything is requested with it.

The format is that of Netscape, as curl and yt-dlp read it: https://curl.se/docs/http-cookies.html
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.errors import SettingError

_HEADER = "# Netscape HTTP Cookie File"
_HEADERS = re.compile(r"#( Netscape)? HTTP Cookie File")
"""The first line that Python's `http.cookiejar` requires of a cookie file."""
_HTTP_ONLY = "#HttpOnly_"
_FIELDS = 7
_EXPIRY = re.compile(r"([0-9]+(\.[0-9]+)?)?")
_MAX_SIZE = 10**7

_EXPORT = "export the cookies of the browser in Netscape format"


class CookieError(SettingError):
    """A cookie file that cannot be used.

    Attributes:
        cause: why.
        cure: what to do.
    """

    def __init__(self, path: Path, cause: str, cure: str = _EXPORT) -> None:
        super().__init__(f"cannot use --cookies {path}: {cause}; {cure}")
        self.cause = cause
        self.cure = cure


class Cookies(NamedTuple):
    """The content of a cookie file. No message shows any of it.

    Attributes:
        text: the content, without invalid lines.
        mode: permission bits of the file.
        valid: number of cookies that have not expired.
        expired: number of the others.
        for_youtube: number of the valid ones that YouTube receives.
    """

    text: str
    mode: int
    valid: int
    expired: int
    for_youtube: int

    def warnings(self, path: Path, *, on_youtube: bool) -> list[str]:
        """Return what is likely to be wrong with the file, each time as `<cause>; <what to do>`.

        Args:
            path: the file.
            on_youtube: the cookies are for YouTube, and not for another site.
        """
        found = []
        if self.mode & stat.S_IRWXO:
            found.append(
                f"every user can read the cookies in {path} (mode {self.mode:04o}) and act with your account;"
                f" run chmod 600 {path}"
            )
        if not self.valid:
            found.append(f"all cookies in {path} have expired; {_EXPORT} again")
        elif on_youtube and not self.for_youtube:
            found.append(f"{path} has no valid cookie for youtube.com; {_EXPORT} again")
        return found


class CookieFile:
    """A cookie file that may change while a mount uses it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] = ()
        self._cookies: Cookies | None = None

    def read(self) -> Cookies:
        """Return the current content.

        Raises:
            CookieError: the file cannot be read, or is no Netscape cookie file.
        """
        try:
            status = self._path.stat()
        except OSError:
            return read_cookies(self._path)  # which says why
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._cookies is None or version != self._version:
            self._cookies, self._version = read_cookies(self._path), version
        return self._cookies


def read_cookies(path: Path) -> Cookies:
    """Read a cookie file.

    Raises:
        CookieError: it cannot be read, or is no Netscape cookie file.
    """
    content, mode = _content(path)
    if content.startswith(b"SQLite format 3\0"):
        raise CookieError(path, "it is the database of a browser")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CookieError(path, "it is UTF-16", "save it as UTF-8")
    try:
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise CookieError(path, "it is not text") from None
    first = next((line.lstrip() for line in lines if line.strip()), "")
    if first.startswith(("[", "{")):
        raise CookieError(path, "it is JSON")
    if not _HEADERS.match(lines[0]):
        raise CookieError(path, f'its first line is not "{_HEADER}"' if first else "it is empty")
    entries = [line for line in lines[1:] if line.strip() and (not line.startswith("#") or line.startswith(_HTTP_ONLY))]
    cookies = [(line, fields) for line in entries if (fields := _fields(line))]
    if not cookies:
        cause = "none of its lines has seven fields with tabs between them" if entries else "it has no cookies"
        raise CookieError(path, cause)
    now = time.time()
    # An expiry of 0 or an empty one is a session cookie, which yt-dlp uses as well.
    valid = [fields for _, fields in cookies if not float(fields[4] or 0) or float(fields[4]) > now]
    return Cookies(
        text="\n".join([_HEADER, *(line for line, _ in cookies), ""]),
        mode=mode,
        valid=len(valid),
        expired=len(cookies) - len(valid),
        for_youtube=sum(_is_for_youtube(fields[0]) for fields in valid),
    )


def _content(path: Path) -> tuple[bytes, int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise CookieError(
            path, f"it cannot be read: {error.strerror}", "give a file that this user can read"
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CookieError(path, "it is not a regular file", "give a file: each worker process reads it")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise CookieError(path, f"it cannot be read: {error.strerror}", "check its disk") from error
    finally:
        os.close(fd)
    if len(content) > _MAX_SIZE:
        raise CookieError(path, f"it is larger than {_MAX_SIZE:,} bytes")
    return content, stat.S_IMODE(status.st_mode)


def _fields(line: str) -> list[str]:
    """Return the fields of a cookie; empty if the line is invalid."""
    fields = line.removeprefix(_HTTP_ONLY).split("\t")
    return fields if len(fields) == _FIELDS and _EXPIRY.fullmatch(fields[4]) else []


def _is_for_youtube(domain: str) -> bool:
    return f".{domain.lstrip('.')}".endswith(".youtube.com")
