"""Archives of clips: one clip out of a `.tar.gz`, its index, and whole archives into a folder or a store.

The benchmark makes the clips: h264 and aac, with noise, movement and flat parts, so that they deflate as little as real
clips do (to 0.99; real archives: 0.993). No real archive was measured: repeat this on one before you rely on a number.
The archive is `tar | gzip -6` of many clips. Some are alike, too far apart for deflate to find the repetition.

- Whole archives, from disk to disk, in one process. Peers: `tar xzf`, which people run; `bsdtar`, the fastest in C; as
  lower bounds, a tar without compression and a copy of the clips.
- Whole archives from nginx: `kinetics-fs fill`, once as it is and once without index and verification, next to `wget`
  then `tar xzf` and the like. With and without a limit on each connection, on one core and on all cores.
- One clip, by closed range requests to nginx, directly and over a link with a round-trip time of 50 ms. Peer: the clip
  as a file on the same server, which is a lower bound.

Peers run in turn within each round. A peer that is not installed has a row without a number.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import string
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.report import Row, Target
from kinetics_fs.catalog import Clip
from kinetics_fs.fill.archive_job import ArchiveJob, fill_archive
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex, write_index
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.reader import LocalArchive, open_archive
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.sources.archive.source import ArchiveSource
from kinetics_fs.sources.archive.tar import Begin, End
from kinetics_fs.store import FillCheckpoints
from tests.support.link import Link
from tests.support.servers import find_nginx, nginx

_ID = string.ascii_letters + string.digits + "-_"

NAME = "600/train/juggling.tar.gz"
ROUND_TRIP = 0.05
"""Round-trip time of the link, in seconds."""


class Scale(NamedTuple):
    """How much is measured."""

    distinct: int
    """Number of different encodings; further clips are copies with another trailing box."""
    clips: int
    rounds: int
    served_rounds: int
    slow_rounds: int
    """Rounds with a limit on each connection."""
    reads: int


_FULL = Scale(24, 240, 5, 3, 1, 60)
QUICK = Scale(6, 30, 1, 1, 1, 10)


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure everything, in about six minutes; with `quick` in less than one."""
    scale = QUICK if quick else _FULL
    with tempfile.TemporaryDirectory(prefix="kinetics-fs-benchmark-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        clips = make_archive(folder, scale)
        rows = _whole(folder, clips, scale)
        if find_nginx() is None:
            return [*rows, Row("from a server: not measured, nginx is not installed", None)]
        state = folder / "nginx"
        state.mkdir()
        with nginx(folder, state, rate="20m") as url:
            rows += _served(folder, clips, url, scale)
            rows += _single(folder, clips, url, scale)
        return rows


# Measurements -----------------------------------------------------------------------------------------------------


def _whole(folder: Path, clips: dict[Clip, Path], scale: Scale) -> list[Row]:
    archive = folder / "archives" / NAME
    size = sum(path.stat().st_size for path in clips.values())
    plain = folder / "plain.tar"
    subprocess.run(["tar", "cf", plain, "-C", folder, "clips"], check=True)

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
        base = str(folder / "archives")
        checkpoints = FillCheckpoints(out / "fills")
        job = ArchiveJob(base, NAME, out / "cache", 0, None, True, checkpoints, VerifyLevel.CONTAINER)
        summary, index = fill_archive(job)
        assert summary.stored == len(clips) and index is not None, summary
        with ArchiveIndexDB(out / "index") as index_db:
            index_db.add(index)

    ours: dict[str, _Way] = {
        "clips": lambda out: unpack(out, index=False),
        "clips and index": lambda out: unpack(out, index=True),
        "store and index, verified": fill,
    }
    peers: dict[str, _Way] = {
        "tar xzf": _pipe(["tar", "xzf", archive, "-C", _OUT]),
        "bsdtar xf": _pipe(["bsdtar", "xf", archive, "-C", _OUT]),
        "tar xf, of a plain tar": _pipe(["tar", "xf", plain, "-C", _OUT]),
        "cp -r": _pipe(["cp", "-r", folder / "clips", _OUT]),
    }
    rows, peers = _without_missing(peers)
    costs = _compare(folder / "out", ours | peers, scale.rounds)
    plain.unlink()
    targets = {"clips": 0.5, "clips and index": 0.75}
    for name in ours:
        target = Target("ratio", "<=", targets[name]) if name in targets else None
        for what in ("cpu", "wall"):
            own, other = (getattr(costs[one], what) / size * 1e9 for one in (name, "tar xzf"))
            rows.append(Row(f"archive to {name}: {what} s/GB", own, other, "tar xzf", target))
    for name in [name for name in peers if name != "tar xzf"]:
        own, other = (costs[one].cpu / size * 1e9 for one in ("clips", name))
        rows.append(Row("archive to clips: cpu s/GB", own, other, name))
    more, less = (costs[name].cpu / size * 1e9 for name in ("clips and index", "clips"))
    rows.append(Row("with the index on top: cpu s/GB", more, less, "without one"))
    return rows


def _served(folder: Path, clips: dict[Clip, Path], url: str, scale: Scale) -> list[Row]:
    """Measure `fill` from a server into a cache, next to downloads and unpackers."""
    size = sum(path.stat().st_size for path in clips.values())
    annotations = folder / "annotations.csv"
    lines = (f"juggling,{clip.youtube_id},{clip.start},{clip.end},train" for clip in clips)
    annotations.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n")

    def ways(base: str) -> dict[str, _Way]:
        address = f"{base}/{NAME}"
        fill: list[str | Path] = [
            *(sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "fill", "--archive-url", base),
            *("--archive", NAME, "--annotations", annotations, "--cache-dir", _OUT / "cache", "--min-free", "0"),
        ]
        wget = _pipe(["wget", "-q", "-O", _OUT / "archive", address])
        tar = _pipe(["tar", "xzf", _OUT / "archive", "-C", _OUT])

        def wget_then_tar(out: Path) -> int:
            return max(wget(out) or 0, tar(out) or 0)

        wget_then_tar.programs = ["wget", "tar"]  # type: ignore[attr-defined]
        return {
            "fill": _pipe(fill),
            "fill, no more": _pipe([*fill, "--no-index", "--verify", "none"]),
            _USUAL: wget_then_tar,
            "curl | tar xz": _pipe(["curl", "-sf", address], ["tar", "xz", "-C", _OUT]),
            "curl | bsdtar x": _pipe(["curl", "-sf", address], ["bsdtar", "x", "-C", _OUT, "-f", "-"]),
        }

    rows, _ = _without_missing(ways(url))
    cores = sorted(os.sched_getaffinity(0))
    situations = [
        ("all cores", f"{url}/archives", cores, scale.served_rounds, 0.5),
        ("one core", f"{url}/archives", cores[:1], scale.served_rounds, None),
        ("20 MB/s a connection", f"{url}/limited/archives", cores, scale.slow_rounds, 0.2),
    ]
    for situation, base, some, rounds, bound in situations:
        _, there = _without_missing(ways(base))
        with _on_cores(some):
            costs = _compare(folder / "out", there, rounds)
        peers = [name for name in costs if not name.startswith("fill")]
        for ours in ("fill", "fill, no more"):
            for name in peers:
                target = Target("ratio", "<=", bound) if bound and name == _USUAL else None
                for what, goal in (("wall", target), ("cpu", None)):
                    own, other = (getattr(costs[one], what) / size * 1e9 for one in (ours, name))
                    rows.append(Row(f"{ours}, {situation}: {what} s/GB", own, other, name, goal))
        if some == cores and base == f"{url}/archives":
            rows.append(Row("fill: peak memory, MB", costs["fill"].memory / 1e6))
            own, other = ((_peak_disk(there[name], folder / "out") - size) / 1e6 for name in ("fill", _USUAL))
            rows.append(Row("fill: peak disk beyond the clips, MB", own, other, _USUAL))
    return rows


def _single(folder: Path, clips: dict[Clip, Path], url: str, scale: Scale) -> list[Row]:
    base = f"{url}/archives"
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
    with ArchiveIndexDB(folder / "indexes.sqlite") as index_db:
        index_db.add(index)
    asked = [(record.end - record.begin) / record.size for record in scan.records.values()]
    rows = [
        Row("index: bytes a clip", path.stat().st_size / len(clips), target=Target("ours", "<=", 100)),
        Row("index: kB a GB of archive", path.stat().st_size / version.size * 1e6),
        Row("index: share of clips in it", len(scan.records) / len(clips), target=Target("ours", ">=", 1)),
        Row("one clip: bytes asked for, in clips (median)", median(asked), target=Target("ours", "<=", 1.05)),
        Row("one clip: bytes asked for, in clips (largest)", max(asked)),
    ]
    chosen = random.Random(1).sample(sorted(clips), min(scale.reads, len(clips)))
    with Link(int(url.rsplit(":", 1)[1]), rtt=ROUND_TRIP) as link:
        for link_name, address in (("loopback", url), (f"{ROUND_TRIP * 1e3:.0f} ms", link.url)):
            source = ArchiveSource(f"{address}/archives", folder / "indexes.sqlite")
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
                    f"one clip, {link_name}: ms (median)",
                    median(ours[1:]) * 1e3,
                    median(peer[1:]) * 1e3,
                    "the clip as a file",
                )
            )
    return rows


_Way = Callable[[Path], int | None]
"""Writes the clips into a folder. Returns the peak memory of its child processes in bytes."""

_USUAL = "wget; tar xzf"
"""The usual way to get the clips of an archive."""

_OUT = Path("/out")
"""Placeholder in a command for the output folder."""


class _Cost(NamedTuple):
    cpu: float
    wall: float
    memory: float
    """Peak memory of child processes in bytes; at least that of this process, which they begin as copies of."""


def _pipe(*commands: Sequence[str | Path]) -> _Way:
    """Return a way that runs a pipeline of commands."""

    def way(out: Path) -> int:
        # `_OUT` is replaced where it is a whole word or the beginning of a path.
        filled_in = [[_with_output(word, out) for word in command] for command in commands]
        processes: list[subprocess.Popen[bytes]] = []
        for number, command in enumerate(filled_in):
            last = number == len(filled_in) - 1
            before = processes[-1].stdout if processes else subprocess.DEVNULL
            processes.append(
                subprocess.Popen(command, stdin=before, stdout=subprocess.DEVNULL if last else subprocess.PIPE)
            )
            if processes[:-1] and (pipe := processes[-2].stdout):
                pipe.close()
        memory = 0
        for process in processes:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, process.args
            memory += used.ru_maxrss * 1024
        return memory

    way.programs = [str(command[0]) for command in commands]  # type: ignore[attr-defined]
    return way


def _with_output(word: str | Path, out: Path) -> str:
    return str(out / word.relative_to(_OUT)) if isinstance(word, Path) and word.is_relative_to(_OUT) else str(word)


def _without_missing(ways: dict[str, _Way]) -> tuple[list[Row], dict[str, _Way]]:
    """Return a row for each way with a program that is not installed, and the other ways."""
    missing = {name for name, way in ways.items() if not all(map(shutil.which, getattr(way, "programs", [])))}
    rows = [Row(f"next to {name}: not measured, it is not installed", None) for name in sorted(missing)]
    return rows, {name: way for name, way in ways.items() if name not in missing}


def _compare(out: Path, ways: dict[str, _Way], rounds: int) -> dict[str, _Cost]:
    """Return the median cost of each way. All ways run in turn in each round."""
    costs: dict[str, list[_Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            costs[name].append(_cost(way, out))
    return {name: _Cost(*map(median, zip(*measured, strict=True))) for name, measured in costs.items()}


def _cost(way: _Way, out: Path) -> _Cost:
    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    out.mkdir()
    before, began = cpu(), time.perf_counter()
    memory = way(out)
    cost = _Cost(cpu() - before, time.perf_counter() - began, memory or 0)
    shutil.rmtree(out)
    return cost


def _peak_disk(way: _Way, out: Path) -> int:
    out.mkdir()
    ended = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.03):
            total = 0
            for path in out.rglob("*"):
                with suppress(FileNotFoundError):
                    total += path.lstat().st_size if not path.is_dir() else 0
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    way(out)
    time.sleep(0.1)
    ended.set()
    watcher.join()
    shutil.rmtree(out)
    return peak


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Restrict this process, and the processes that it starts, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Data -------------------------------------------------------------------------------------------------------------


def make_archive(folder: Path, scale: Scale) -> dict[Clip, Path]:
    """Write the archive below `archives`, and its clips as files below `clips`; return those files."""
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
        # A free box at the end makes each file different (ISO/IEC 14496-12, 8.1.2).
        filler = chance.randbytes(chance.randrange(4_000))
        box = struct.pack(">I4s", len(filler) + 8, b"free") + filler
        clips[clip].write_bytes(made[number % scale.distinct].read_bytes() + box)
    archive = folder / "archives" / NAME
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
