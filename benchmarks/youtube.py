"""Ten seconds out of a ten-minute video, over a link with 50 ms round trips and 4 MB/s per connection.

A fake YouTube (`tests.support.youtube`) has the video as a progressive mp4 (itag 18) and as an adaptive pair (134 and
140), with 360 lines and about a megabit a second. Its media, not its player API, are behind the link. Media come once
at full speed for every request, and once throttled as YouTube does it: a request without an end gets 256 KiB, and the
rest at 32 KiB/s. Every frame carries its number, so each frame of a clip can be checked.

The measurement is of the fetcher with its worker process, from the request to the published clip. The peers are worker
processes too, with one `YoutubeDL` each: yt-dlp's own sections (`--download-sections` with
`--force-keyframes-at-cuts`), and the whole video, cut afterwards. The first fetch starts the process; the next one
finds it running.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any, Protocol, Self, cast

import av

from benchmarks.report import Row, Target
from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.media import Media
from kinetics_fs.media.cut import cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources import SourceSettings
from kinetics_fs.store import Store
from tests.support.command_line import ENVIRONMENT
from tests.support.link import Link
from tests.support.videos import RATE, Videos, make_videos
from tests.support.youtube import FakeYouTube

ROUND_TRIP = 0.05  # seconds
BANDWIDTH = 4e6  # bytes a second
LENGTH = 10  # seconds of a clip

_PROGRESSIVE, _ADAPTIVE = "progressive", "adaptive"
_FORMATS = {_PROGRESSIVE: "18", _ADAPTIVE: "134+140"}

_MOST_BYTES = Target("ours", "<=", 1.2)
_WALL = Target("ours", "<=", 2.5)
_FRAMES = Target("ours", ">=", LENGTH * RATE)


@dataclass(frozen=True)
class _Scale:
    """How much is measured.

    Attributes:
        seconds: length of the video.
        rounds: of kinetics-fs and of yt-dlp's sections; the whole video is downloaded once.
        slow_peers: whether peers are measured when throttled, which takes minutes.
    """

    seconds: int
    rounds: int
    slow_peers: bool


_FULL = _Scale(600, 3, True)
_QUICK = _Scale(120, 1, False)


@dataclass(frozen=True)
class _Measured:
    wall: float
    bytes: int
    requests: int
    frames: int
    """Number of frames at the right time."""


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure everything, in ten minutes; with `quick` in about one."""
    scale = _QUICK if quick else _FULL
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-benchmark-") as made:
        folder = Path(made)
        shapes = folder / "videos"
        shapes.mkdir()
        videos = make_videos(shapes, seconds=scale.seconds)
        start = scale.seconds // 2 + 2  # two seconds after a keyframe
        own = {
            _PROGRESSIVE: _own_samples(videos.progressive, start),
            _ADAPTIVE: sum(_own_fragments(path, start) for path in (videos.picture, videos.sound)),
        }
        index = {
            _PROGRESSIVE: _before_media(videos.progressive),
            _ADAPTIVE: _before_media(videos.picture) + _before_media(videos.sound),
        }
        return [
            *(
                Row(f"{shape}: the video's index, in parts of the clip's own", index[shape] / own[shape])
                for shape in own
            ),
            *(
                row
                for throttled in (False, True)
                for shape in own
                for row in _compare(videos, shape, throttled, start, own[shape], scale)
            ),
        ]


# Measurements -----------------------------------------------------------------------------------------------------


class _Method(Protocol):
    """A way to get clips, as a context that keeps its process from one fetch to the next."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def fetch(self, clip: Clip, folder: Path) -> Callable[[], Path]:
        """Fetch a clip. Return a function for its path, to call after the time is taken."""
        ...


class _Ours:
    def __init__(self, options: dict[str, Any], cache: Path) -> None:
        self._cache = cache
        self._settings = FetchSettings(workers=1, sources=SourceSettings(ytdlp=options))

    def __enter__(self) -> Self:
        self._store = Store(self._cache)
        self._fetcher = Fetcher(self._store, self._settings)
        return self

    def __exit__(self, *_: object) -> None:
        self._fetcher.close()
        self._store.close()

    def fetch(self, clip: Clip, folder: Path) -> Callable[[], Path]:
        self._fetcher.request(clip).result()

        def copied() -> Path:
            stored = self._store.open(clip)
            assert stored is not None
            path = folder / clip.name
            with os.fdopen(stored.fd, "rb") as file, path.open("wb") as target:
                shutil.copyfileobj(file, target)
            return path

        return copied


class _Peer:
    """One of `_PEERS`, in a process."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._command = [sys.executable, "-m", "benchmarks.youtube", name, json.dumps(options)]

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()

    def fetch(self, clip: Clip, folder: Path) -> Callable[[], Path]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        job = {"id": clip.youtube_id, "start": clip.start, "end": clip.end, "folder": str(folder)}
        commands, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        commands.write(json.dumps(job) + "\n")
        commands.flush()
        path = json.loads(answers.readline())
        return lambda: Path(path)


@contextmanager
def _site(videos: Videos, shape: str, throttled: bool, clips: Sequence[Clip]) -> Iterator[tuple[FakeYouTube, Link]]:
    with (
        FakeYouTube() as youtube,
        Link(youtube.media_port, rtt=ROUND_TRIP, bandwidth=BANDWIDTH) as link,
    ):
        youtube.media_url_base = link.url
        for clip in clips:
            if shape == _PROGRESSIVE:
                youtube.add_video(clip.youtube_id, videos.progressive, duration=videos.seconds)
            else:
                pair = (videos.picture, videos.sound)
                youtube.add_video(clip.youtube_id, duration=videos.seconds, adaptive=pair)
            if throttled:
                youtube.media_fault[clip.youtube_id] = "throttle"
        yield youtube, link


def _fetch_two(
    make: Callable[[dict[str, Any], Path], _Method], videos: Videos, shape: str, throttled: bool, start: int
) -> list[_Measured]:
    """Measure the first fetch of a process and the next one, each of another video."""
    clips = [Clip(f"video-{number:05d}", start, start + LENGTH) for number in range(2)]
    measured = []
    with (
        _site(videos, shape, throttled, clips) as (youtube, link),
        tempfile.TemporaryDirectory() as made,
        make(youtube.ytdlp_options, Path(made) / "cache") as method,
    ):
        for number, clip in enumerate(clips):
            folder = Path(made) / str(number)
            folder.mkdir()
            before, began = link.to_client, time.monotonic()
            path = method.fetch(clip, folder)
            wall = time.monotonic() - began
            time.sleep(0.2)  # the link still counts bytes on their way to a client that has closed its connection
            requests = len(youtube.media_requests(clip.youtube_id))
            measured.append(_Measured(wall, link.to_client - before, requests, _right_frames(path(), start)))
    return measured


def _right_frames(path: Path, start: int) -> int:
    """Return the number of frames at their right position, less the number of surplus frames."""
    expected = range(start * RATE, (start + LENGTH) * RATE)
    found = frame_numbers(path)
    return sum(map(int.__eq__, found, expected)) - max(0, len(found) - len(expected))


def _own_samples(path: Path, start: int) -> int:
    """Return the bytes of a section's samples in an mp4: pictures from the keyframe before it, and sound."""
    total = 0
    with av.open(str(path)) as container:
        for stream in container.streams:
            container.seek(start * av.time_base)  # to the keyframe; sound before the section is not needed
            for packet in container.demux(stream):
                if packet.dts is None or packet.time_base is None:
                    break
                time_ = float(packet.dts * packet.time_base)
                if time_ < start + LENGTH and (stream.type == "video" or time_ >= start):
                    total += packet.size
    return total


def _own_fragments(path: Path, start: int) -> int:
    """Return the bytes of the fragments with parts of a section, by the `sidx` of the file."""
    data = path.read_bytes()[:65536]
    box = data.index(b"sidx") + 4
    [scale] = struct.unpack_from(">I", data, box + 8)
    entries = box + (28 if data[box] == 1 else 20)  # by its version: times of eight bytes, or of four
    [count] = struct.unpack_from(">H", data, entries + 2)
    total, begin = 0, 0.0
    for number in range(count):
        size, duration = struct.unpack_from(">II", data, entries + 4 + 12 * number)
        end = begin + duration / scale
        if begin < start + LENGTH and end > start:
            total += size
        begin = end
    return total


def _before_media(path: Path) -> int:
    """Return the bytes in front of the media: the index of the whole video."""
    with path.open("rb") as file:
        position = 0
        while (header := file.read(8))[4:] not in (b"moof", b"mdat"):
            position += struct.unpack_from(">I", header)[0]
            file.seek(position)
    return position


# The table --------------------------------------------------------------------------------------------------------


def _compare(videos: Videos, shape: str, throttled: bool, start: int, own: int, scale: _Scale) -> list[Row]:
    def measure(make: Callable[[dict[str, Any], Path], _Method], rounds: int) -> list[list[_Measured]]:
        return [_fetch_two(make, videos, shape, throttled, start) for _ in range(rounds)]

    def peer(name: str, rounds: int) -> list[list[_Measured]]:
        if throttled and not scale.slow_peers:
            return []
        options = {"format": _FORMATS[shape]}
        return measure(lambda site, _: _Peer(name, {**site, **options}), rounds)

    ours = measure(_Ours, 1 if throttled else scale.rounds)
    sections = peer("sections", 1 if throttled else scale.rounds)
    whole = peer("whole", 1)

    def value(runs: list[list[_Measured]], what: Callable[[_Measured], float], fetch: int) -> float | None:
        return median(what(run[fetch]) for run in runs) if runs else None

    title = f"{shape}, throttled" if throttled else shape
    rows = []
    for name, what, fetch, target in (
        ("MB over the line", lambda one: one.bytes / 1e6, 1, None),
        ("MB over the line, in parts of the clip's own", lambda one: one.bytes / own, 1, _MOST_BYTES),
        ("requests for media", lambda one: one.requests, 1, None),
        ("first clip, s", lambda one: one.wall, 0, None),
        ("next clip, s", lambda one: one.wall, 1, _WALL),
        (f"right frames of {LENGTH * RATE}", lambda one: one.frames, 1, _FRAMES),
    ):
        mine = value(ours, what, fetch)
        called = "yt-dlp, sections" + ("" if sections else ": not with --quick")
        rows.append(Row(f"{title}: {name}", mine, value(sections, what, fetch), called, target))
        if whole:
            rows.append(Row(f"{title}: {name}", mine, value(whole, what, fetch), "yt-dlp, whole, then cut"))
    return rows


# The peers, each run as `python -m benchmarks.youtube NAME OPTIONS`, a JSON object per line in and out -------------


def _sections(options: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    from yt_dlp import YoutubeDL

    section: dict[str, Any] = {}
    parameters = {
        "download_ranges": lambda info, ytdlp: [{"start_time": section["start"], "end_time": section["end"]}],
        "force_keyframes_at_cuts": True,
        "merge_output_format": "mp4",
    }
    ytdlp = YoutubeDL({**_QUIET, **parameters, **options})

    def fetch(job: dict[str, Any]) -> str:
        section.update(job)
        return _download(ytdlp, job)

    return fetch


def _whole(options: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    from yt_dlp import YoutubeDL

    ytdlp = YoutubeDL({**_QUIET, "merge_output_format": "mp4", **options})

    def fetch(job: dict[str, Any]) -> str:
        source = Path(_download(ytdlp, job))
        target = source.with_name("clip.mp4")
        length = job["end"] - job["start"]
        cut(Media(source, job["start"], None), length, target, ffmpeg=find_ffmpeg(), max_height=360)
        return str(target)

    return fetch


_QUIET = {"quiet": True, "no_warnings": True, "noprogress": True, "cachedir": False, "outtmpl": "%(id)s.%(ext)s"}
_PEERS = {"sections": _sections, "whole": _whole}


def _download(ytdlp: Any, job: dict[str, Any]) -> str:
    os.chdir(job["folder"])
    info = ytdlp.extract_info(f"https://www.youtube.com/watch?v={job['id']}")
    return str(Path(info["requested_downloads"][0]["filepath"]).absolute())


def _serve(name: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    fetch = _PEERS[name](json.loads(options))
    for line in sys.stdin:
        answers.write(json.dumps(fetch(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
