"""Tests of the local video site, over real connections and with yt-dlp."""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yt_dlp

from kinetics_fs.demo.site import VideoSite

DASHED = "-abcdefghij"
PLAIN = "ABCDEFGHIJK"
ABSENT = "___________"
MEDIA = random.Random(0).randbytes(200_000)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[VideoSite]:
    folder = tmp_path / "videos"
    folder.mkdir()
    for video_id in (DASHED, PLAIN):
        (folder / f"{video_id}.mp4").write_bytes(MEDIA)
    with VideoSite(folder) as site:
        yield site


@pytest.fixture
def http_session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment would get in between
        yield session


def page(site: VideoSite, video_id: str) -> str:
    return site.url_template.format(id=video_id)


def media(site: VideoSite, video_id: str) -> str:
    return page(site, video_id).replace("/watch/", "/media/") + ".mp4"


def connect(site: VideoSite) -> http.client.HTTPConnection:
    address = urlsplit(site.url_template)
    assert address.hostname == "127.0.0.1"
    return http.client.HTTPConnection(address.hostname, address.port, timeout=5)


def test_a_page_names_its_media(site: VideoSite, http_session: requests.Session) -> None:
    answer = http_session.get(page(site, DASHED), timeout=5)
    assert answer.status_code == 200
    assert f'<source src="/media/{DASHED}.mp4" type="video/mp4">' in answer.text


@pytest.mark.parametrize(
    "path",
    [
        f"/watch/{ABSENT}",
        f"/media/{ABSENT}.mp4",
        "/",
        f"/watch/{DASHED}x",
        f"/watch/{DASHED[:-1]}",
        f"/watch/{DASHED}/",
        f"/watch/{DASHED}%0a",
        f"/media/{DASHED}",
        "/media/../videos/" + DASHED + ".mp4",
        "/media/..%2fvideos.mp4",
    ],
)
def test_unknown_paths_return_404(site: VideoSite, path: str) -> None:
    connection = connect(site)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"404 Not Found" in answer.read()
    connection.close()


def test_site_notices_added_and_removed_videos(site: VideoSite, http_session: requests.Session) -> None:
    (site.directory / f"{ABSENT}.mp4").write_bytes(b"new")
    (site.directory / f"{DASHED}.mp4").unlink()
    assert http_session.get(page(site, ABSENT), timeout=5).status_code == 200
    assert http_session.get(media(site, ABSENT), timeout=5).content == b"new"
    assert http_session.get(page(site, DASHED), timeout=5).status_code == 404
    assert http_session.get(media(site, DASHED), timeout=5).status_code == 404


def test_media_without_range_returns_the_whole_file(site: VideoSite, http_session: requests.Session) -> None:
    answer = http_session.get(media(site, DASHED), timeout=5)
    assert (answer.status_code, answer.content) == (200, MEDIA)
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 200_000),
        ("bytes=10-19", 10, 20),
        ("bytes=65535-131072", 65_535, 131_073),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=199990-999999", 199_990, 200_000),
        ("bytes=-10", 199_990, 200_000),
        ("bytes=-999999", 0, 200_000),
    ],
)
def test_range_returns_those_bytes(
    site: VideoSite, http_session: requests.Session, asked: str, start: int, stop: int
) -> None:
    answer = http_session.get(media(site, DASHED), headers={"Range": asked}, timeout=5)
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/200000"
    assert answer.content == MEDIA[start:stop]


@pytest.mark.parametrize("asked", ["bytes=200000-", "bytes=999999-1000000", "bytes=-0"])
def test_range_beyond_the_end_returns_416(site: VideoSite, http_session: requests.Session, asked: str) -> None:
    answer = http_session.get(media(site, DASHED), headers={"Range": asked}, timeout=5)
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */200000"
    assert http_session.get(media(site, DASHED), timeout=5).content == MEDIA  # the connection is still in step


@pytest.mark.parametrize(
    "asked", ["bytes=5-4", "bytes=-", "bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=" + "9" * 5000 + "-"]
)
def test_invalid_and_multiple_ranges_are_ignored(site: VideoSite, http_session: requests.Session, asked: str) -> None:
    answer = http_session.get(media(site, DASHED), headers={"Range": asked}, timeout=5)
    assert (answer.status_code, answer.content) == (200, MEDIA)


def test_an_empty_file_has_no_ranges(site: VideoSite, http_session: requests.Session) -> None:
    (site.directory / f"{ABSENT}.mp4").touch()
    assert http_session.get(media(site, ABSENT), timeout=5).content == b""
    assert http_session.get(media(site, ABSENT), headers={"Range": "bytes=0-"}, timeout=5).status_code == 416


def test_head_returns_no_body(site: VideoSite, http_session: requests.Session) -> None:
    answer = http_session.head(media(site, DASHED), headers={"Range": "bytes=0-9"}, timeout=5)
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "200000", b"")
    assert http_session.get(page(site, DASHED), timeout=5).status_code == 200
    assert site.requests[0] == (f"/media/{DASHED}.mp4", 0)


def test_one_connection_serves_many_requests(site: VideoSite) -> None:
    connection = connect(site)
    connection.connect()
    kept = connection.sock
    for path, status in ((f"/watch/{DASHED}", 200), ("/nowhere", 404), (f"/media/{DASHED}.mp4", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert connection.sock is kept
    connection.close()


def test_other_methods_and_bodies_are_refused(site: VideoSite, http_session: requests.Session) -> None:
    assert http_session.post(page(site, DASHED), timeout=5).status_code == 501
    answer = http_session.get(page(site, DASHED), data=b"GET /smuggled HTTP/1.1\r\n\r\n", timeout=5)
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert "/smuggled" not in dict(site.requests)


def test_long_requests_are_refused(site: VideoSite, http_session: requests.Session) -> None:
    assert http_session.get(page(site, "x" * 2000), timeout=5).status_code == 414
    assert http_session.get(page(site, DASHED), headers={"X": "x" * 70_000}, timeout=5).status_code == 431
    assert max(len(path) for path, _ in site.requests) <= 1024


def test_requests_records_paths_and_bytes(site: VideoSite, http_session: requests.Session) -> None:
    http_session.get(page(site, DASHED), timeout=5)
    http_session.get(media(site, DASHED), timeout=5)
    http_session.get(media(site, DASHED), headers={"Range": "bytes=-10"}, timeout=5)
    (first, *others) = site.requests
    assert first[0] == f"/watch/{DASHED}"
    assert first[1] > 0
    assert others == [(f"/media/{DASHED}.mp4", 200_000), (f"/media/{DASHED}.mp4", 10)]


def test_video_fetches_counts_failed_requests(site: VideoSite, http_session: requests.Session) -> None:
    http_session.get(page(site, DASHED), timeout=5)
    http_session.get(page(site, DASHED) + "?t=1", timeout=5)
    site.fail[DASHED] = 500
    http_session.get(page(site, DASHED), timeout=5)
    http_session.get(media(site, DASHED), timeout=5)
    http_session.get(page(site, ABSENT), timeout=5)
    assert [site.video_fetches(video_id) for video_id in (DASHED, PLAIN, ABSENT)] == [3, 0, 1]


@pytest.mark.parametrize("status", [404, 403, 429, 500])
def test_fail_sets_the_status_of_a_page(site: VideoSite, http_session: requests.Session, status: int) -> None:
    site.fail[DASHED] = status
    assert http_session.get(page(site, DASHED), timeout=5).status_code == status
    assert http_session.get(page(site, PLAIN), timeout=5).status_code == 200
    del site.fail[DASHED]
    assert http_session.get(page(site, DASHED), timeout=5).status_code == 200


@pytest.mark.serial
def test_delays_apply_to_page_and_media(site: VideoSite, http_session: requests.Session) -> None:
    def seconds(url: str) -> float:
        start = time.monotonic()
        http_session.get(url, timeout=5)
        return time.monotonic() - start

    site.delay[DASHED] = site.media_delay[PLAIN] = 0.3
    assert seconds(page(site, DASHED)) >= 0.3
    assert seconds(media(site, DASHED)) < 0.3
    assert seconds(page(site, PLAIN)) < 0.3
    assert seconds(media(site, PLAIN)) >= 0.3


def test_site_serves_many_connections_at_once(site: VideoSite) -> None:
    def fetch(number: int) -> bytes:
        start = number * 1000
        connection = connect(site)
        connection.request("GET", f"/media/{DASHED}.mp4", headers={"Range": f"bytes={start}-{start + 999}"})
        body = connection.getresponse().read()
        connection.close()
        return body

    with ThreadPoolExecutor(50) as pool:
        assert b"".join(pool.map(fetch, range(200))) == MEDIA
    assert site.requests == [(f"/media/{DASHED}.mp4", 1000)] * 200


def test_a_client_that_disconnects_affects_no_other(
    site: VideoSite, http_session: requests.Session, capfd: pytest.CaptureFixture[str]
) -> None:
    with (site.directory / f"{ABSENT}.mp4").open("wb") as file:
        os.truncate(file.fileno(), 64 << 20)
    connection = connect(site)
    connection.request("GET", f"/media/{ABSENT}.mp4")
    connection.getresponse().read(10)
    connection.close()
    assert http_session.get(page(site, DASHED), timeout=5).status_code == 200
    assert dict(site.requests)[f"/media/{ABSENT}.mp4"] < 64 << 20
    assert capfd.readouterr() == ("", "")


def test_closing_ends_all_connections(tmp_path: Path) -> None:
    before = threading.active_count()
    (tmp_path / f"{DASHED}.mp4").write_bytes(MEDIA)
    with VideoSite(tmp_path) as site:
        address = urlsplit(site.url_template)
        site.delay[DASHED] = 60
        idle, waiting = connect(site), connect(site)
        idle.connect()
        waiting.request("GET", f"/watch/{DASHED}")
        while not site.requests:
            time.sleep(0.01)
        start = time.monotonic()
    assert time.monotonic() - start < 30
    idle.close()
    waiting.close()
    while threading.active_count() > before:
        assert time.monotonic() - start < 30
        time.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", address.port or 0), timeout=1)
    with pytest.raises(RuntimeError):
        _ = site.url_template
    assert site.video_fetches(DASHED) == 1  # what happened can still be looked at


@pytest.mark.parametrize("video_id", [DASHED, PLAIN])
def test_yt_dlp_finds_and_downloads_the_media(site: VideoSite, tmp_path: Path, video_id: str) -> None:
    options: dict[str, Any] = {
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "proxy": "",
        "cachedir": False,
        # The site's page is one that the generic extractor hands to the one for HTML 5.
        "allowed_extractors": ["generic", "html5"],
        "outtmpl": {"default": str(tmp_path / "got.%(ext)s")},
    }
    with yt_dlp.YoutubeDL(options) as downloader:
        info = downloader.extract_info(page(site, video_id))
    assert info["url"] == media(site, video_id)
    assert (info["ext"], info["protocol"]) == ("mp4", "http")
    assert (tmp_path / "got.mp4").read_bytes() == MEDIA
    assert site.video_fetches(video_id) == 1
    assert site.requests[1:] == [(f"/media/{video_id}.mp4", len(MEDIA))]
