"""Cookies, proxy, source address and rate: used for everything that is asked, and told to nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import RATE
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.reader import Reader
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.http_range import Pace
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import run_command

CLIP = Clip("-demo_video", 10, 20)
PATH = "validation/surfing water/-demo_video_000010_000020.mp4"
SECRET = "hunter2secret"


class Asked(NamedTuple):
    path: str
    client: str
    cookie: str


class Host(NamedTuple):
    template: str
    asked: list[Asked]


@pytest.fixture(autouse=True)
def as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back afterwards: a source goes elsewhere
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def host(dataset: Dataset) -> Iterator[Host]:
    """Serves the videos as plain files, also as a proxy for any host."""
    asked: list[Asked] = []

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self):  # type: ignore[no-untyped-def]  # of the base class
            asked.append(Asked(self.path, self.client_address[0], self.headers.get("Cookie", "")))
            self.path = "/" + self.path.rpartition("/")[2]
            return super().send_head()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(dataset.videos))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Host(f"http://127.0.0.1:{server.server_address[1]}/{{id}}.mp4", asked)
        server.shutdown()


def fetch(settings: SourceSettings, folder: Path) -> list[int]:
    target = folder / "clip.mp4"
    with Reader(settings, folder) as reader:
        reader.fetch_video(CLIP, target)
    return frame_numbers(target)


def test_cookies_are_sent_and_their_file_is_left_alone(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "cookies.txt"
    file.write_text(
        f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t{time.time() + 9999:.0f}\tSID\t{SECRET}\n"
    )
    file.chmod(0o400)
    before = file.read_bytes(), file.stat()

    numbers = fetch(SourceSettings(video_url=host.template, cookies=str(file)), tmp_path)

    assert numbers == list(range(10 * RATE, 20 * RATE))
    assert {asked.cookie for asked in host.asked} == {f"SID={SECRET}"}
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before[0], before[1].st_mtime_ns)


def test_cookies_that_change_are_read_again(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "cookies.txt"
    contents = {"SID=one": "SID\tone", "SID=two": "SID\ttwo", "no": None, "SID=three": "SID\tthree"}
    with Reader(SourceSettings(video_url=host.template, cookies=str(file)), tmp_path) as reader:
        for sent, cookie in contents.items():
            line = f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\t{cookie}\n"
            file.write_text("[]" if cookie is None else line)
            host.asked.clear()
            if cookie is None:
                with pytest.raises(FetchError, match="it is JSON") as caught:
                    reader.fetch_video(CLIP, tmp_path / "clip.mp4")
                assert (caught.value.kind, host.asked) == (FailureKind.CONFIG, [])
            else:
                reader.fetch_video(CLIP, tmp_path / "clip.mp4")
                assert {asked.cookie for asked in host.asked} == {sent}


@pytest.mark.parametrize("content", [None, b'[{"name": "SID"}]', b"\xff\xfe\x00", b"no cookies\n"])
def test_bad_cookies_are_a_fault_of_the_configuration(host: Host, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "cookies.txt"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(FetchError) as caught:
        fetch(SourceSettings(video_url=host.template, cookies=str(file)), tmp_path)

    assert caught.value.kind is FailureKind.CONFIG
    assert "ookie" in caught.value.reason


def test_proxy_is_asked_for_everything(host: Host, tmp_path: Path) -> None:
    proxy = host.template.rpartition("/")[0]

    fetch(SourceSettings(video_url="http://videos.invalid/{id}.mp4", proxy=proxy), tmp_path)

    assert {asked.path for asked in host.asked} == {f"http://videos.invalid/{CLIP.youtube_id}.mp4"}


def test_source_address(host: Host, tmp_path: Path) -> None:
    fetch(SourceSettings(video_url=host.template, source_address="127.0.0.3"), tmp_path)

    assert {asked.client for asked in host.asked} == {"127.0.0.3"}


def test_pace() -> None:
    pace = Pace(1e6)
    started = time.monotonic()
    for _ in range(5):
        pace.spend(100_000)

    assert time.monotonic() - started >= 0.5


def test_password_of_a_proxy_is_told_to_nobody(
    mount: MountFactory, site: VideoSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'proxy = "http://you:{SECRET}@127.0.0.1:9"\nworkers = 1\n')
    mounted = mount(config=config)

    with pytest.raises(OSError):
        (mounted.root / PATH).open("rb")

    seen = [mounted.log.read_text(), (mounted.root / ".kinetics/status.json").read_text()]
    seen += [(mounted.root / ".kinetics/failures.csv").read_text()]
    seen += [os.getxattr(mounted.root / PATH, "user.kinetics.error").decode()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen.append((process / "cmdline").read_text())
        except OSError:
            continue
    assert all(SECRET not in text for text in seen)


@pytest.mark.parametrize(
    "proxy", [f"http://you:{SECRET}/x@127.0.0.1:9", f"{SECRET}", f"ftp://{SECRET}:1", "http://a:b"]
)
def test_proxy_that_is_none_is_refused_unseen(proxy: str, dataset: Dataset, tmp_path: Path) -> None:
    where = ("--cache-dir", tmp_path / "cache", "--annotations", dataset.annotations)
    done = run_command("prefetch", *where, "--proxy", proxy)

    assert done.returncode == 2
    assert "--proxy" in done.stderr
    assert SECRET not in done.stderr
