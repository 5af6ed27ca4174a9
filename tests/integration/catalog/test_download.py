from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from kinetics_fs.catalog import (
    UNLABELED,
    CatalogProgress,
    Release,
    Selection,
    download,
    fetch_annotations,
    open_catalog,
)
from kinetics_fs.errors import CatalogError
from tests.support.annotations import csv_text


@dataclass
class Site:
    """A server with one document. Tests set its content and its behaviour."""

    url: str = ""
    body: bytes = csv_text(["abseiling,0wR5jVB-WPk,417,427,val"]).encode()
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    status: int = 200
    cut: int = 0
    """Number of bytes of the body that are announced and not sent."""
    asked: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(dict(self.headers))
            matches = self.headers.get("If-None-Match", "") == site.headers.get("ETag", None) or (
                self.headers.get("If-Modified-Since", "") == site.headers.get("Last-Modified", None)
            )
            status = 304 if matches and site.status == 200 else site.status
            body = site.body if status == 200 else b""
            self.send_response(status)
            for name, value in {**site.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) - site.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/some%20where/val.csv?x=1"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield site
        server.shutdown()


def test_a_copy_is_kept_under_its_name(site: Site, tmp_path: Path) -> None:
    path = fetch_annotations(site.url, tmp_path)
    assert path.name == "val.csv"
    assert path.read_bytes() == site.body
    assert sorted(file.name for file in path.parent.iterdir()) == ["val.csv", "val.csv.note.json"]


def test_progress_of_a_download_and_of_compiling(site: Site, release: Release, tmp_path: Path) -> None:
    seen: list[tuple[object, ...]] = []

    class Seen(CatalogProgress):
        def downloading(self, name: str, done: int, total: int | None) -> None:
            seen.append((name, done, total))

        def compiling(self, rows: int) -> None:
            seen.append((rows,))

    site.body = csv_text([f"abseiling,0wR5jVB-WPk,{second},{second + 10},val" for second in range(3000)]).encode()
    selection = Selection()
    for _ in range(2):  # the second time, nothing is downloaded or compiled
        open_catalog(release, [site.url], selection, tmp_path, downloads=tmp_path / "files", progress=Seen()).close()
    *downloaded, compiled = seen
    assert len(downloaded) > 3 and compiled == (3000,)
    assert downloaded[-1] == ("val.csv", len(site.body), len(site.body))


def test_the_server_is_not_asked_again_within_max_age(site: Site, tmp_path: Path) -> None:
    path = fetch_annotations(site.url, tmp_path)
    site.body, site.headers = b"other", {"ETag": '"two"'}
    assert fetch_annotations(site.url, tmp_path) == path
    assert len(site.asked) == 1
    assert fetch_annotations(site.url, tmp_path, max_age=0).read_bytes() == b"other"
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": '"one"'}, "If-None-Match"),
        ({"Last-Modified": "Mon, 22 May 2017 10:00:00 GMT"}, "If-Modified-Since"),
    ],
)
def test_what_has_not_changed_is_not_sent_again(
    site: Site, tmp_path: Path, headers: dict[str, str], condition: str
) -> None:
    site.headers = headers
    path = fetch_annotations(site.url, tmp_path)
    before = path.stat()
    assert fetch_annotations(site.url, tmp_path, max_age=0) == path
    (value,) = headers.values()
    assert condition not in site.asked[0]
    assert site.asked[1][condition] == value
    assert path.stat().st_ino == before.st_ino
    # The answer counts as a check.
    assert fetch_annotations(site.url, tmp_path) == path
    assert len(site.asked) == 2
    assert fetch_annotations(site.url, tmp_path, max_age=0) == path
    assert site.asked[2][condition] == value


@pytest.mark.parametrize("failure", ["status", "cut", "large", "slow", "gone", "page"])
def test_a_failing_server_leaves_the_copy_in_use(
    site: Site,
    tmp_path: Path,
    failure: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = fetch_annotations(site.url, tmp_path)
    good = path.read_bytes()
    site.body, site.headers = b"y" * 1000, {"ETag": '"two"'}
    if failure == "status":
        site.status = 503
    elif failure == "cut":
        site.cut = 10
    elif failure == "page":
        site.body = b" \n<html>Log in"
    elif failure == "large":
        monkeypatch.setattr(download, "MAX_BYTES", 999)
    elif failure == "slow":
        monkeypatch.setattr(download, "DEADLINE", -1.0)
    elif failure == "gone":
        monkeypatch.setattr(socket.socket, "connect", refuse)
    with caplog.at_level(logging.WARNING):
        assert fetch_annotations(site.url, tmp_path, max_age=0) == path
    assert path.read_bytes() == good
    assert "using the copy" in caplog.text
    assert len(list(path.parent.iterdir())) == 2

    assert "give a file" not in caplog.text
    with pytest.raises(CatalogError, match="cannot download") as raised:
        fetch_annotations(site.url, tmp_path / "nothing here", max_age=0)
    assert ("name a local file with --annotations" in str(raised.value)) == (failure in ("gone", "cut", "slow"))


def refuse(*_: object) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("damage", ["note", "copy", "no copy", "other url", "future"])
def test_a_copy_that_cannot_be_vouched_for_is_fetched_again(site: Site, tmp_path: Path, damage: str) -> None:
    path = fetch_annotations(site.url, tmp_path)
    note = path.with_name("val.csv.note.json")
    if damage == "note":
        note.write_text("{")
    elif damage == "copy":
        path.write_bytes(b"short")
    elif damage == "no copy":
        path.unlink()
    elif damage == "other url":
        note.write_text(json.dumps(json.loads(note.read_text()) | {"url": "http://other"}))
    elif damage == "future":
        note.write_text(json.dumps(json.loads(note.read_text()) | {"checked": 1e12}))
    assert fetch_annotations(site.url, tmp_path).read_bytes() == site.body
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("path", "name"),
    [("/..", "annotations"), ("", "annotations"), ("/a/%2e%2e%2fx y.csv", "x_y.csv"), ("/" + "x" * 300, "x" * 100)],
)
def test_a_url_cannot_choose_the_folder(site: Site, tmp_path: Path, path: str, name: str) -> None:
    base = site.url.partition("/some")[0]
    copy = fetch_annotations(base + path, tmp_path)
    assert copy.name == name
    assert copy.resolve().parent.parent == tmp_path.resolve()


def test_open_catalog_does_it_all(site: Site, tmp_path: Path, release: Release) -> None:
    local = tmp_path / "test.csv"
    local.write_text(csv_text(["ddddddddddd,1,11,test"], header="youtube_id,time_start,time_end,split"))
    sources = [site.url, str(local)]
    folder, downloads = tmp_path / "catalogs", tmp_path / "annotations"
    with open_catalog(release, sources, Selection(), folder, downloads=downloads) as catalog:
        assert [split.split for split in catalog.splits()] == ["validation", "test"]
    with open_catalog(release, sources, Selection(splits=("test",)), folder, downloads=downloads) as catalog:
        (test,) = catalog.splits()
        assert [directory.label for directory in catalog.classes(test)] == [UNLABELED]
    own = Release("600", (site.url,), release.published)
    with open_catalog(own, [], Selection(), folder, downloads=downloads) as catalog:
        assert catalog.clip_count == 1
    assert len(site.asked) == 1


def test_split_completes_annotations_that_have_no_split(tmp_path: Path, release: Release) -> None:
    local = tmp_path / "mine.csv"
    local.write_text(csv_text(["x,ddddddddddd,1,11"], header="label,youtube_id,time_start,time_end"))
    with open_catalog(release, [str(local)], Selection(splits=("val",)), tmp_path, downloads=tmp_path) as catalog:
        assert [split.split for split in catalog.splits()] == ["validation"]
    with pytest.raises(CatalogError, match='cannot select the split "vall"'):
        open_catalog(release, [str(local)], Selection(splits=("vall",)), tmp_path, downloads=tmp_path)
    with pytest.raises(CatalogError, match="its rows have no split"):
        open_catalog(release, [str(local)], Selection(splits=("val", "test")), tmp_path, downloads=tmp_path)


def test_open_catalog_refuses_other_schemes_and_wrong_words(tmp_path: Path, release: Release) -> None:
    with pytest.raises(CatalogError, match="from a path, http or https"):
        open_catalog(release, ["ftp://example.org/train.csv"], Selection(), tmp_path, downloads=tmp_path)
    local = tmp_path / "rows.csv"
    local.write_text(csv_text(["x,ddddddddddd,1,11,test"]))
    with pytest.raises(CatalogError, match="no class"):
        open_catalog(release, [str(local)], Selection(classes=("y",)), tmp_path, downloads=tmp_path)


def test_importing_the_whole_catalog_is_cheap() -> None:
    """It imports no HTTP client, and nothing else that a listing does not need."""
    code = "import sys; from kinetics_fs.catalog import open_catalog; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"requests", "urllib3", "http.client", "asyncio", "multiprocessing", "av", "yt_dlp"} & set(loaded)
