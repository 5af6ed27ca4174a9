"""The memory of workers: limited, whatever a site or a file sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.sources import SourceSettings
from tests.support.bombs import mp4_bomb
from tests.support.memory import BOUND, peak_of
from tests.support.youtube import FakeYouTube

CLIP = Clip("-a_Video-01", 0, 2)
MODEST = 500_000_000
"""Bytes that are more than a worker needs for the largest pages that it accepts."""


class _Endless(BaseHTTPRequestHandler):
    """Responds with a page that never ends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status = self.path.strip("/").partition("/")[0]
        self.send_response(int(status))
        self.send_header("Content-Type", "text/html")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"<p>a page without an end</p>\n" * 2000
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endless() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def failure_and_peak(settings: SourceSettings, source: str, folder: Path) -> tuple[FetchError, int]:
    worker = Worker(settings, lambda: folder)
    try:
        with pytest.raises(FetchError) as caught:
            worker.fetch(CLIP, source, folder, timeout=60)
        assert worker._process is not None, caught.value
        return caught.value, peak_of(worker._process.pid)
    finally:
        worker.stop()


@pytest.mark.parametrize("status", [200, 403])
def test_a_page_without_an_end(endless: str, tmp_path: Path, status: int) -> None:
    settings = SourceSettings(video_url=f"{endless}/{status}/{{id}}", ytdlp={"proxy": ""})

    failure, peak = failure_and_peak(settings, "youtube", tmp_path)

    assert failure.kind is FailureKind.TRANSIENT
    assert peak < MODEST


def test_a_playlist_of_300_000_segments(yt: FakeYouTube, tmp_path: Path) -> None:
    playlist = tmp_path / "index.m3u8"
    segments = "".join(f"#EXTINF:5,\n{number}.ts\n" for number in range(300_000))
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n{segments}#EXT-X-ENDLIST\n")
    yt.add_video(CLIP.youtube_id, duration=1_500_000, hls=playlist)
    folder = tmp_path / "fetch"
    folder.mkdir()

    failure, peak = failure_and_peak(SourceSettings(ytdlp=yt.ytdlp_options), "youtube", folder)

    assert failure.kind is FailureKind.TRANSIENT
    assert "the playlist is larger than" in failure.reason or "more than 50,000 segments" in failure.reason
    assert peak < MODEST


def test_a_file_that_needs_too_much_memory(tmp_path: Path) -> None:
    clips, folder = tmp_path / "clips", tmp_path / "fetch"
    clips.mkdir()
    folder.mkdir()
    (clips / CLIP.name).write_bytes(mp4_bomb())

    failure, peak = failure_and_peak(SourceSettings(folders=(str(clips),)), "folder", folder)

    assert failure.kind is FailureKind.CORRUPT
    assert peak < BOUND
