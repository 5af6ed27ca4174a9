"""Downloads of annotation files, with a local copy that is used as long as it is current or the server is down."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from kinetics_fs.catalog.progress import CatalogProgress
from kinetics_fs.errors import CatalogError, masked, root_cause
from kinetics_fs.util.deadline import Deadline
from kinetics_fs.util.files import atomic_write
from kinetics_fs.util.http import IDENTITY
from kinetics_fs.util.text import parse_json

if TYPE_CHECKING:
    import requests

MAX_BYTES = 1 << 29
"""Maximum size of a file. The largest real one has about 70 MB."""
DEADLINE = 900.0
"""Maximum seconds of a download, so that a slow server cannot delay a mount for ever."""

_CHUNK_SIZE = 1 << 14
"""Bytes that are read at once; few, so that the progress of a slow download is shown."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Copy:
    """The note beside a copy: its address without secrets, its validators (RFC 9110), and when it was last checked."""

    url: str
    size: int
    etag: str
    last_modified: str
    checked: float

    @classmethod
    def read(cls, path: Path, url: str) -> _Copy | None:
        """Return the note of the copy at `path`; None if there is no copy, or its note does not match it."""
        try:
            copy = cls(**parse_json(_note(path).read_bytes()))
            return copy if copy.url == masked(url) and path.stat().st_size == copy.size else None
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        with atomic_write(_note(path), durable=False) as file:
            file.write(json.dumps(asdict(self)).encode())

    def is_fresh(self, max_age: float) -> bool:
        return 0 <= time.time() - self.checked < max_age

    def conditions(self) -> dict[str, str]:
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}


def fetch_annotations(
    url: str, folder: Path, *, max_age: float = 86_400, progress: CatalogProgress | None = None
) -> Path:
    """Return a local copy of an annotation file.

    The server is asked at most once in `max_age` seconds, and sends the file only if it has changed (`ETag`,
    `Last-Modified`). If the server fails, an older copy is used and a warning logged.

    Args:
        url: http or https.
        folder: folder of all copies. Each is in a folder of its own, with a JSON note beside it.
        max_age: seconds during which a copy is used without asking the server.
        progress: receives the progress of a download.

    Raises:
        CatalogError: there is no copy, and the download failed.
    """
    path = _copy_path(url, folder)
    copy = _Copy.read(path, url)
    if copy and copy.is_fresh(max_age):
        return path
    try:
        _refresh(url, path, copy, progress or CatalogProgress())
    except CatalogError as error:
        if copy is None:
            raise
        _log.warning("%s; using the copy of %s", error, time.strftime("%Y-%m-%d", time.localtime(copy.checked)))
    return path


def _copy_path(url: str, folder: Path) -> Path:
    """Return the path of a copy. Each URL has a folder, so that the file keeps its name, which messages mention."""
    base = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)[:100]
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / (base.strip(".") or "annotations")


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.note.json")


def _refresh(url: str, path: Path, copy: _Copy | None, progress: CatalogProgress) -> None:
    from kinetics_fs.util.session import HTTP_ERRORS, Session  # takes 0.1 s to load

    headers = {**IDENTITY, **(copy.conditions() if copy else {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Session().request("GET", url, Deadline(DEADLINE), headers=headers) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED and copy:
                size = copy.size
            elif response.status_code == HTTPStatus.OK:
                with atomic_write(path) as file:
                    size = _copy_body(response, url, file, partial(progress.downloading, path.name))
            else:
                raise CatalogError(f"cannot download {url}: the server answers {response.status_code}")
            _Copy(
                url=masked(url),
                size=size,
                etag=response.headers.get("ETag", copy.etag if copy else ""),
                last_modified=response.headers.get("Last-Modified", copy.last_modified if copy else ""),
                checked=time.time(),
            ).write(path)
    except HTTP_ERRORS as error:
        remedy = "" if copy else "; without a network, name a local file with --annotations"
        raise CatalogError(f"cannot download {url}: {root_cause(error)}{remedy}") from error
    except OSError as error:
        raise CatalogError(f"cannot write annotations to {path.parent}: {error.strerror or error}") from error


def _copy_body(
    response: requests.Response, url: str, file: IO[bytes], report: Callable[[int, int | None], None]
) -> int:
    size = 0
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    # A content encoding that was not asked for is that of the file: its bytes show that it is compressed.
    for chunk in response.raw.stream(_CHUNK_SIZE, decode_content=False):
        if not size and chunk.removeprefix(BOM_UTF8).lstrip().startswith(b"<"):
            raise CatalogError(f"cannot download {url}: the server answers with a web page; give the address of a list")
        size += len(chunk)
        if size > MAX_BYTES:
            raise CatalogError(f"cannot download {url}: it is larger than {MAX_BYTES:,} bytes")
        file.write(chunk)
        report(size, total)
    return size
