"""Lists of segments from outside: understood exactly, or left alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from yt_dlp import YoutubeDL

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.http_range import Pace
from kinetics_fs.sources.youtube.segments import NoSegments, Segment, Segments

HEADER = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n"
END = "#EXT-X-ENDLIST\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """Serves `tmp_path`, and knows no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def read_playlist(host: str, folder: Path, text: str) -> Segments:
    (folder / "list.m3u8").write_text(text)
    with YoutubeDL({"quiet": True, "proxy": "", "cachedir": False}) as ytdlp:
        return Segments.of_playlist(ytdlp, f"{host}/list.m3u8", {}, Pace(None))


def test_lengths_and_places(host: str, tmp_path: Path) -> None:
    segments = read_playlist(
        host, tmp_path, f"{HEADER}#EXTINF:4.5,\na.ts\n#EXTINF:5,\n/b.ts\n#EXTINF:0.5,\nhttp://x/c.ts\n{END}"
    )

    assert segments.seconds == 10
    assert segments._segments == [
        Segment(f"{host}/a.ts", None, 4.5),
        Segment(f"{host}/b.ts", None, 5),
        Segment("http://x/c.ts", None, 0.5),
    ]


def test_too_many_segments(host: str, tmp_path: Path) -> None:
    one = "#EXTINF:5,\na\n"
    assert read_playlist(host, tmp_path, HEADER + 50_000 * one + END).seconds == 250_000
    for content in (50_001 * one, f"#EXTINF:5,{'x' * 17_000_000}\na\n"):
        with pytest.raises(FetchError) as caught:
            read_playlist(host, tmp_path, HEADER + content + END)
        assert caught.value.kind is FailureKind.TRANSIENT


def test_ranges_of_bytes(host: str, tmp_path: Path) -> None:
    segments = read_playlist(
        host,
        tmp_path,
        f'{HEADER}#EXT-X-MAP:URI="all.mp4",BYTERANGE="100@0"\n'
        "#EXTINF:5,\n#EXT-X-BYTERANGE:50@100\nall.mp4\n#EXTINF:5,\n#EXT-X-BYTERANGE:70\nall.mp4\n" + END,
    )

    assert [segment.window for segment in segments._segments] == [range(100, 150), range(150, 220)]
    assert segments._header == Segment(f"{host}/all.mp4", range(100), 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!DOCTYPE html>",
        "\0\0\0",
        HEADER + END,
        f"{HEADER}#EXTINF:5,\na.ts\n",  # growing
        f"{HEADER}#EXT-X-STREAM-INF:BANDWIDTH=1\nother.m3u8\n{END}",
        f'{HEADER}#EXT-X-KEY:METHOD=AES-128,URI="key"\n#EXTINF:5,\na.ts\n{END}',
        f"{HEADER}#EXTINF:5,\na.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:5,\nb.ts\n{END}",
        f'{HEADER}#EXT-X-MAP:URI="a"\n#EXTINF:5,\na.ts\n#EXT-X-MAP:URI="b"\n#EXTINF:5,\nb.ts\n{END}',
        f"{HEADER}#EXTINF:0,\na.ts\n{END}",
        f"{HEADER}#EXTINF:-5,\na.ts\n{END}",
        f"{HEADER}#EXTINF:nan,\na.ts\n{END}",
        f"{HEADER}#EXTINF:five,\na.ts\n{END}",
        f"{HEADER}#EXTINF:5,\n#EXT-X-BYTERANGE:50\na.ts\n{END}",  # behind what?
        f"{HEADER}#EXTINF:5,\n#EXT-X-BYTERANGE:x@y\na.ts\n{END}",
        f'{HEADER}#EXT-X-MAP:OTHER="b.mp4"\n#EXTINF:5,\na.ts\n{END}',
        f"{HEADER}#EXT-X-MAP:\n#EXTINF:5,\na.ts\n{END}",
    ],
)
def test_no_plain_list(host: str, tmp_path: Path, text: str) -> None:
    with pytest.raises((NoSegments, FetchError)) as caught:
        read_playlist(host, tmp_path, text)
    if isinstance(caught.value, FetchError):
        assert caught.value.kind is FailureKind.TRANSIENT


def test_endless_segment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text(f"{HEADER}#EXTINF:5,\na.ts\n{END}")
    with (tmp_path / "a.ts").open("wb") as file:
        file.truncate(10 * 1024**2)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with YoutubeDL({"quiet": True, "proxy": "", "cachedir": False}) as ytdlp:
            url = f"http://127.0.0.1:{server.server_address[1]}/list.m3u8"
            segments = Segments.of_playlist(ytdlp, url, {}, Pace(None))
            with pytest.raises(FetchError) as caught:
                segments.open(0, 5)
        server.shutdown()
    assert caught.value.kind is FailureKind.CORRUPT


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with YoutubeDL({"quiet": True, "proxy": "", "cachedir": False}) as ytdlp, pytest.raises(FetchError) as caught:
        Segments.of_playlist(ytdlp, f"http://127.0.0.1:{port}/list.m3u8", {}, Pace(None))
    assert caught.value.kind is FailureKind.TRANSIENT
