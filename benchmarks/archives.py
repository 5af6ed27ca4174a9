"""Archives of clips: one clip out of a `.tar.gz`, the index that it takes, and whole archives into a folder or store.

The clips are made here: h264 and aac, of noise, movement and flat parts, so that they deflate as little as real ones
do (to 0.99; real archives: 0.993). No real archive was at hand: see what these numbers become on one before promising
them. The archive is `tar | gzip -6` of many clips of which some are alike, too far apart for deflate to notice.

One clip: closed requests to nginx, directly and over a line of 80 ms; the peer is the clip itself as a file on the same
server, which is the best that there can be. Whole archives: from a disk to a disk, in one process; the peer is what
people run, `tar xzf`.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import string
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.report import Row, Target
from kinetics_fs.catalog import Clip
from kinetics_fs.ffmpeg import find_ffmpeg
from kinetics_fs.fill import Depth, Job, fill_archive
from kinetics_fs.sources.archive.access import LocalArchive, Version, open_archive
from kinetics_fs.sources.archive.index import ArchiveIndex, write_index
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.sources.archive.shelf import Shelf
from kinetics_fs.sources.archive.source import ArchiveSource
from kinetics_fs.sources.archive.tar import Begin, End
from tests.fakes.link import Link

_ID = string.ascii_letters + string.digits + "-_"

NAME = "600/train/juggling.tar.gz"
ROUND_TRIP = 0.08
"""Seconds, of the line."""


class _Scale(NamedTuple):
    distinct: int
    """Clips that are really encoded."""
    clips: int
    rounds: int
    reads: int


_FULL = _Scale(24, 240, 5, 60)
_QUICK = _Scale(6, 30, 1, 10)


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measures everything; takes some three minutes, with `quick` half a one."""
    scale = _QUICK if quick else _FULL
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-benchmark-") as made:
        folder = Path(made)
        clips = _make_archive(folder, scale)
        rows = list(_whole(folder, clips, scale))
        with _nginx(folder) as port:
            rows += [] if port is None else _single(folder, clips, port, scale)
        return rows


# What is measured -------------------------------------------------------------------------------------------------


def _whole(folder: Path, clips: dict[Clip, Path], scale: _Scale) -> Iterator[Row]:
    archive = folder / "held" / NAME
    size = sum(path.stat().st_size for path in clips.values())

    def tar(out: Path) -> None:
        subprocess.run(["tar", "xzf", archive, "-C", out], check=True)

    def unpack(out: Path, *, index: bool) -> None:
        scan = Scan(index=index)
        local = LocalArchive(archive)
        with closing(local.stream(0, local.version())) as stream:
            for data in stream:
                for event in scan.feed(data):
                    if isinstance(event, Begin):
                        file = (out / event.clip.name).open("wb", buffering=0)
                    elif isinstance(event, End):
                        file.close()
                    else:
                        file.write(event)
        scan.finish()

    def fill(out: Path) -> None:
        base = str(folder / "held")
        summary = fill_archive(
            Job(base, NAME, out / "cache", None, 0, None, out / "shelf", out / "fills", Depth.CONTAINER)
        )
        assert summary.stored == len(clips), summary

    ways: dict[str, Callable[[Path], None]] = {
        "tar": tar,
        "clips": lambda out: unpack(out, index=False),
        "clips and index": lambda out: unpack(out, index=True),
        "store and index, verified": fill,
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(scale.rounds):
        for name, way in ways.items():
            out = folder / "out"
            out.mkdir()
            costs[name].append(_cost(lambda way=way, out=out: way(out)))  # type: ignore[misc]
            shutil.rmtree(out)
    peer = [median(values) for values in zip(*costs.pop("tar"), strict=True)]
    targets = {"clips": (0.5, 0.5), "clips and index": (0.75, 0.75)}
    for name, measured in costs.items():
        ours = [median(values) for values in zip(*measured, strict=True)]
        most = targets.get(name, (None, None))
        for what, own, other, bound in zip(("cpu", "wall"), ours, peer, most, strict=True):
            target = None if bound is None else Target("ratio", "<=", bound)
            yield Row(f"archive to {name}: {what} s/GB", own / size * 1e9, other / size * 1e9, "tar xzf", target)


def _single(folder: Path, clips: dict[Clip, Path], port: int, scale: _Scale) -> list[Row]:
    base = f"http://127.0.0.1:{port}/held"
    scan = Scan()
    archive = open_archive(f"{base}/{NAME}")
    version = archive.version()
    with closing(archive.stream(0, version)) as stream:
        for data in stream:
            for _ in scan.feed(data):
                pass
    scan.finish()
    index = ArchiveIndex(NAME, version.size, version.etag, True, scan.records)
    path = folder / "index"
    with path.open("wb") as file:
        write_index(index, file)
    with Shelf(folder / "shelf") as shelf:
        shelf.add(index)
    asked = [(record.end - record.begin) / record.size for record in scan.records.values()]
    rows = [
        Row("index: bytes a clip", path.stat().st_size / len(clips), target=Target("ours", "<=", 100)),
        Row("index: share of clips in it", len(scan.records) / len(clips), target=Target("ours", ">=", 1)),
        Row("one clip: bytes asked for, in clips (median)", median(asked), target=Target("ours", "<=", 1.05)),
        Row("one clip: the same (largest)", max(asked)),
    ]
    chosen = random.Random(1).sample(sorted(clips), min(scale.reads, len(clips)))
    with Link(port, rtt=ROUND_TRIP) as link:
        for line, address in (("loopback", f"http://127.0.0.1:{port}"), (f"{ROUND_TRIP * 1e3:.0f} ms", link.url)):
            source = ArchiveSource(f"{address}/held", folder / "shelf")
            ours, peer = [], []
            for clip in [chosen[0], *chosen]:  # the first opens the connection
                job = folder / "job"
                job.mkdir()
                began = time.perf_counter()
                media = source.fetch(clip, job)
                ours.append(time.perf_counter() - began)
                assert media is not None and media.path.read_bytes() == clips[clip].read_bytes()
                plain = open_archive(f"{address}/clips/{clip.name}")
                size = clips[clip].stat().st_size
                began = time.perf_counter()
                (job / "plain").write_bytes(b"".join(plain.read(0, size, Version(size))))
                peer.append(time.perf_counter() - began)
                shutil.rmtree(job)
            rows.append(
                Row(
                    f"one clip, {line}: ms (median)",
                    median(ours[1:]) * 1e3,
                    median(peer[1:]) * 1e3,
                    "the clip as a file",
                )
            )
    return rows


def _cost(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU, of this process and those it started, and seconds that passed."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    before, began = cpu(), time.perf_counter()
    work()
    return cpu() - before, time.perf_counter() - began


# What is needed for it --------------------------------------------------------------------------------------------


def _make_archive(folder: Path, scale: _Scale) -> dict[Clip, Path]:
    """The archive below `held`, and its clips as files below `clips`."""
    made = [folder / f"{number}.mp4" for number in range(scale.distinct)]
    for number, path in enumerate(made):
        chance = random.Random(number)
        width, height = chance.choice([(340, 256), (480, 360), (454, 256), (256, 340)])
        picture = chance.choice(["testsrc2", "mandelbrot"])
        source = f"{picture}=size={width}x{height}:rate=25,noise=alls={chance.randint(8, 30)}:allf=t:all_seed={number}"
        subprocess.run(
            [
                find_ffmpeg(), "-nostdin", "-loglevel", "error",
                "-f", "lavfi", "-i", source, "-f", "lavfi", "-i", f"anoisesrc=seed={number}:amplitude=0.1",
                "-t", "10", "-c:v", "libx264", "-preset", "ultrafast", "-b:v", f"{chance.randint(500, 2000)}k",
                "-c:a", "aac", "-b:a", "128k", "-pix_fmt", "yuv420p", path,
            ],
            check=True,
        )  # fmt: skip
    files = folder / "clips"
    files.mkdir()
    clips = {}
    for number in range(scale.clips):
        chance = random.Random(1_000 + number)
        start = chance.randrange(300)
        clip = Clip("".join(chance.choices(_ID, k=11)), start, start + 10)
        clips[clip] = files / clip.name
        # Each is made different by a box at its end that says nothing (ISO/IEC 14496-12, 8.1.2).
        filler = chance.randbytes(chance.randrange(4_000))
        box = struct.pack(">I4s", len(filler) + 8, b"free") + filler
        clips[clip].write_bytes(made[number % scale.distinct].read_bytes() + box)
    archive = folder / "held" / NAME
    archive.parent.mkdir(parents=True)
    names = "".join(f"./{clip.name}\n" for clip in clips).encode()
    with archive.open("wb") as packed:
        tar = subprocess.Popen(
            ["tar", "cf", "-", "-C", files, "-T", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert tar.stdin
        tar.stdin.write(names)
        tar.stdin.close()
        subprocess.run(["gzip", "-6"], stdin=tar.stdout, stdout=packed, check=True)
        assert tar.wait() == 0
    return clips


@contextmanager
def _nginx(root: Path) -> Iterator[int | None]:
    """nginx with these files on a port of its own; None if it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        print("nginx is not installed: reading single clips is not measured")
        yield None
        return
    port = random.randint(20_000, 30_000)
    state = root / "nginx"
    state.mkdir()
    root.chmod(0o755)
    user = "user root;" if os.geteuid() == 0 else ""
    (state / "nginx.conf").write_text(
        f"""
        {user} daemon off; pid {state}/pid; error_log {state}/error.log;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {state}; proxy_temp_path {state}; fastcgi_temp_path {state};
            uwsgi_temp_path {state}; scgi_temp_path {state};
            keepalive_requests 100000;
            server {{ listen 127.0.0.1:{port}; root {root}; }}
        }}
        """
    )
    process = subprocess.Popen([program, "-c", str(state / "nginx.conf"), "-e", str(state / "error.log")])
    try:
        _wait_for(f"http://127.0.0.1:{port}/held/{NAME}")
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    open_archive(url).version()  # tries again for some seconds
