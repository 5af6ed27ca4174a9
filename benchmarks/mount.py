"""The mount against the disk itself, bindfs, rclone, and the portable front end of kinetics-fs.

Three trees:

- a small one of cached clips (random bytes, 1.5 MB on average, and a few real videos), for reading. All systems show
  the same files, by hard links, so that the page cache is as warm for each of them;
- all of Kinetics-700 with 50 cached clips, for listing. Its peer has as many empty files on the disk, with all names
  and inodes in memory: no filesystem can list faster;
- the small one with a thousand more clips, from a site that does not answer.

Each round goes over all systems in turn, so that other load of the machine affects all of them. Every number is the
median over the rounds. Readers are separate processes (`benchmarks.readers`). For a cold disk, the pages of these clips
are evicted from the page cache one file after the other.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.catalog import write_annotations
from benchmarks.mounts import NOBODY, Disk, Mounted, Ours, Program, System, ending_by_signal, resident
from benchmarks.report import Row, Target
from kinetics_fs.catalog import Catalog, Clip, compile_catalog, find_release
from kinetics_fs.demo.media import make_video
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import CacheLayout, Store, prepare_folder


@dataclass(frozen=True)
class _Scale:
    """How much is measured.

    Attributes:
        rounds: number of rounds over all systems.
        classes: number of classes in the small tree.
        clips: number of clips in each class.
        sample: number of clips that are read.
        opens: number of opens that are timed.
        seconds: maximum duration of a task.
        rows: number of clips in the large tree.
        large_rounds: number of rounds over the large tree.
        waiting: numbers of opens that wait at the same time.
    """

    rounds: int
    classes: int
    clips: int
    sample: int
    opens: int
    seconds: float
    rows: int
    large_rounds: int
    waiting: tuple[int, ...]


_FULL = _Scale(3, 20, 75, 400, 3000, 1.5, 650_000, 3, (500, 1000))
_QUICK = _Scale(1, 4, 30, 100, 1000, 0.5, 40_000, 1, (200,))

_BYTES = (500_000, 2_500_000)  # of a clip, from and to
_VIDEOS = 24
_VIDEO_SECONDS = 4
_TAR_FOLDERS = 3
_LARGE_SECONDS = 30.0  # for a walk of the large tree
_SLOW_SECONDS = 6.0  # for a walk by a system that would take minutes
_MAKING_SECONDS = 60.0  # for its twin on the disk
_FEWER = 10  # divides the number of files in the twin, if it took longer
_CACHED = 50  # clips in the cache
_SITE_SECONDS = 600.0  # until the site answers
_TRACED = 50
_WAIT_WITHIN = 60.0
_READER = (sys.executable, "-m", "benchmarks.readers")

_PASSTHROUGH, _PAGE_CACHE, _NOBODY, _FUSEPY = "passthrough", "page cache", "unprivileged", "fusepy"


@dataclass(frozen=True)
class _Metric:
    key: str  # the name that the readers use
    name: str
    targets: Mapping[str, Target]


def _share(value: float) -> Target:
    return Target("ratio", ">=", value)


_METRICS = (
    _Metric("walk", "walk, first, entries/s", {}),
    _Metric("stat", "stat sweep after it, /s", {}),
    _Metric("open", "open+close, cached, µs", {_PASSTHROUGH: Target("ours", "<=", 60)}),
    _Metric("read", "read, warm disk, MB/s", {_PASSTHROUGH: _share(0.8), _NOBODY: _share(0.4)}),
    _Metric("read again", "read again, MB/s", {_PASSTHROUGH: _share(0.8), _NOBODY: _share(0.7)}),
    _Metric("read cold", "read, cold disk, MB/s", {_PASSTHROUGH: _share(0.8)}),
    _Metric("tar", "tar c, MB/s", {}),
    _Metric("decode", "decode in 2 processes, frames/s", {}),
)
_READY = Target("ours", "<=", 0.3)
_RESIDENT = Target("ours", "<=", 120)


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measure everything, in five minutes; with `quick` in less than one."""
    scale = _QUICK if quick else _FULL
    with ending_by_signal(), tempfile.TemporaryDirectory(prefix="kinetics-fs-benchmark-") as made:
        folder = Path(made)
        folder.chmod(0o755)  # so that the user nobody can read too
        small = _Small(folder / "small", scale)
        return [
            *_compare(small, folder / "mounts", scale),
            *_count_requests(small, folder / "requests"),
            *_keep_waiting(small, folder / "waiting", scale),
            *_list_everything(folder / "large", scale),
        ]


# The small tree ---------------------------------------------------------------------------------------------------


class _Small:
    """Clips in a store, and the same files under the names of the mount.

    Attributes:
        annotations: of all clips.
        cache: the folder of the store.
        cache_of_nobody: another store with the same files, owned by the user nobody.
        tree: the files on the disk, with the paths that the mount shows.
        clips, videos, folders: paths below the root, for the readers.
    """

    def __init__(self, folder: Path, scale: _Scale) -> None:
        folder.mkdir()
        self.annotations = folder / "annotations.csv"
        self.cache = folder / "cache"
        self.cache_of_nobody = folder / "cache-of-nobody"
        self.tree = folder / "tree"
        draw = random.Random(700)
        noise = os.urandom(2 * _BYTES[1])
        self.videos: list[str] = []
        self._rows = ["label,youtube_id,time_start,time_end,split"]
        self._number = 0
        with Store(self.cache) as store:
            paths = [
                self._publish(store, "train", f"class {label:02d}", 10, _random_file(noise, draw))
                for label in range(scale.classes)
                for _ in range(scale.clips)
            ]
            media = folder / "video.mp4"
            make_video(media, seconds=_VIDEO_SECONDS, ffmpeg=find_ffmpeg())
            self.videos = [
                self._publish(store, "validation", "decoding", _VIDEO_SECONDS, lambda path: shutil.copy(media, path))
                for _ in range(_VIDEOS)
            ]
        self.annotations.write_text("\n".join(self._rows) + "\n")
        self._link(paths + self.videos)
        _copy_for_nobody(self.cache, self.cache_of_nobody)
        self.clips = draw.sample(paths, min(scale.sample, len(paths)))
        self.folders = [f"train/class {label:02d}" for label in range(_TAR_FOLDERS)]

    def _publish(self, store: Store, split: str, label: str, seconds: int, write: Callable[[Path], object]) -> str:
        clip = Clip(f"clip{self._number:07d}", 0, seconds)
        self._number += 1
        self._rows.append(f"{label},{clip.youtube_id},{clip.start},{clip.end},{split}")
        claim = store.claim(clip)
        assert claim is not None
        with claim:
            path = claim.folder / clip.name
            write(path)
            claim.publish(path, "benchmark")
        return f"{split}/{label}/{clip.name}"

    def _link(self, paths: list[str]) -> None:
        stored = {file.name.split(".")[0]: file for file in self.cache.glob("clips/*/*.mp4")}
        for path in paths:
            target = self.tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(stored[target.stem])

    def evict(self) -> None:
        """Drop the pages of the clips from memory."""
        for path in self.clips:
            with (self.tree / path).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def warm(self) -> None:
        """Read all clips into memory."""
        for path in self.tree.rglob("*.mp4"):
            path.read_bytes()


def _random_file(noise: bytes, draw: random.Random) -> Callable[[Path], object]:
    size = draw.randint(*_BYTES)
    begin = draw.randrange(len(noise) - size)
    return lambda path: path.write_bytes(noise[begin : begin + size])


def _copy_for_nobody(cache: Path, copy: Path) -> None:
    """Copy the store for another user, with links to the same files: a user must own their cache."""

    def link(source: str, target: str) -> None:
        if source.endswith(".mp4"):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(cache, copy, copy_function=link)
    if os.geteuid() == 0:
        for path in (copy, *copy.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def _systems(small: _Small, scratch: Path) -> list[System]:
    def ours(cache: Path) -> list[object]:
        return ["--annotations", small.annotations, "--cache-dir", cache, "--min-free", "0"]

    root = "" if os.geteuid() == 0 else "needs root"
    timeouts = "attr_timeout=86400,entry_timeout=86400,negative_timeout=86400"
    rclone = ["rclone", "mount", str(small.tree), "{mountpoint}", "--config", os.devnull, "--read-only"]
    rclone += ["--attr-timeout", "24h", "--dir-cache-time", "24h", "--cache-dir", str(scratch)]
    return [
        Disk(small.tree),
        Ours(_PASSTHROUGH, ["--frontend", "native", *ours(small.cache)], needs=root),
        Ours(_PAGE_CACHE, ["--frontend", "native", "--no-passthrough", *ours(small.cache)]),
        Ours(_NOBODY, ["--frontend", "native", *ours(small.cache_of_nobody)], nobody=True, needs=root),
        Ours(_FUSEPY, ["--frontend", "fusepy", *ours(small.cache)]),
        Program("bindfs", ["bindfs", "-f", "-r", "-o", f"kernel_cache,{timeouts}", str(small.tree), "{mountpoint}"]),
        Program("rclone, no cache (its default)", [*rclone, "--vfs-cache-mode", "off"]),
        Program("rclone, full cache", [*rclone, "--vfs-cache-mode", "full"], scratch),
    ]


def _compare(small: _Small, folder: Path, scale: _Scale) -> list[Row]:
    """Measure all systems on the small tree."""
    folder.mkdir()
    systems = _systems(small, folder / "rclone")
    absent = {system.name: system.absent() for system in systems if system.absent()}
    measured: dict[str, dict[str, list[float]]] = {system.name: defaultdict(list) for system in systems}
    for number in range(scale.rounds):
        for index, system in enumerate(systems):
            if system.name in absent:
                continue
            small.warm()
            mountpoint = folder / f"{number}-{index}"
            mountpoint.mkdir()
            with system.mounted(mountpoint) as mounted:
                _check_mode(system, mounted)

                def read(*tasks: str, system: System = system, mounted: Mounted = mounted) -> dict[str, float]:
                    return _read(
                        mounted,
                        *tasks,
                        by=system.reader,
                        clips=small.clips,
                        videos=small.videos,
                        folders=small.folders,
                        seconds=scale.seconds,
                        opens=scale.opens,
                    )

                found = read("walk", "stat", "latency", "read", "read_again")
                found |= read("tar", "load")
                found |= {"memory": mounted.memory(), "ready": mounted.ready}
                read("evict")
                small.evict()
                found |= read("read_cold")
            for key, single in found.items():
                measured[system.name][key].append(single)

    def value(system: str, key: str) -> float | None:
        return median(measured[system][key]) if key in measured[system] else None

    disk, *others = (system.name for system in systems)
    modes = [_PASSTHROUGH, _PAGE_CACHE, _NOBODY, _FUSEPY]
    others = [name for name in others if name not in modes]

    def called(peer: str) -> str:
        return f"{peer}: {absent[peer]}" if peer in absent else peer

    rows = []
    for metric in _METRICS:
        for mode in modes:
            name = f"{metric.name}: {mode}"
            rows.append(Row(name, value(mode, metric.key), value(disk, metric.key), disk, metric.targets.get(mode)))
        ours = value(_PASSTHROUGH, metric.key)
        rows += [Row(f"{metric.name}: {_PASSTHROUGH}", ours, value(peer, metric.key), called(peer)) for peer in others]
    for key, name, target in (("ready", "mount ready, s", _READY), ("memory", "resident memory, MB", None)):
        rows += [Row(f"{name}: {mode}", value(mode, key), target=target) for mode in modes]
        rows += [
            Row(f"{name}: {_PASSTHROUGH}", value(_PASSTHROUGH, key), value(peer, key), called(peer)) for peer in others
        ]
    return rows


def _check_mode(system: System, mounted: Mounted) -> None:
    """Warn if the system does not run in the mode of its name."""
    if system.name != _PASSTHROUGH:
        return
    mode = mounted.status()["frontend"]["mode"]
    if mode != "passthrough":
        print(f"The rows of passthrough are of another mode: {mode}", file=sys.stderr)


# Messages ---------------------------------------------------------------------------------------------------------


def _count_requests(small: _Small, folder: Path) -> list[Row]:
    """Count the requests of the kernel for one open, read and close of a cached clip, with strace."""
    folder.mkdir()
    rows = []
    for system in _systems(small, folder / "rclone"):
        if system.name not in (_PASSTHROUGH, _PAGE_CACHE):
            continue
        name = f"requests per open+read+close: {system.name}"
        if system.absent() or not shutil.which("strace"):
            rows.append(Row(f"{name} ({system.absent() or 'needs strace'})", None))
            continue
        mountpoint = folder / system.name
        mountpoint.mkdir()
        clips = small.clips[:_TRACED]
        with system.mounted(mountpoint) as mounted:
            _read(mounted, "walk", "stat", "latency", "read", clips=clips, opens=100)
            with _traced(mounted.pid, folder / "trace") as requests:
                _read(mounted, "read", clips=clips)
        kinds = ", ".join(f"{kind} {number / _TRACED:g}" for kind, number in sorted(requests.items()) if number > 2)
        rows.append(Row(f"{name} ({kinds})", sum(requests.values()) / _TRACED))
    return rows


@contextmanager
def _traced(pid: int, record: Path) -> Iterator[Counter[str]]:
    """Count by opcode the messages that a process reads from /dev/fuse during the block; filled in at its end."""
    from kinetics_fs.mount.native.protocol import Opcode

    found: Counter[str] = Counter()
    command = ["strace", "-f", "-e", "trace=readv", "-xx", "-s", "8", "-o", str(record), "-p", str(pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        try:
            tracer.stderr.readline()  # that it is attached
            yield found
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
    names = {opcode.value: opcode.name for opcode in Opcode}
    # A message begins with its length and its opcode, 32 bits each.
    for line in record.read_text().splitlines():
        if match := re.search(r'iov_base="((?:\\x[0-9a-f]{2}){8})', line):
            opcode = int.from_bytes(bytes.fromhex(match[1].replace("\\x", ""))[4:], sys.byteorder)
            found[names.get(opcode, str(opcode))] += 1


# Waiting opens ----------------------------------------------------------------------------------------------------


def _keep_waiting(small: _Small, folder: Path, scale: _Scale) -> list[Row]:
    """Measure opens of cached clips while many others wait for a site that does not answer."""
    folder.mkdir()
    (folder / "site").mkdir()
    most = max(scale.waiting)
    slow = [Clip(f"slow{number:07d}", 0, 10) for number in range(most)]
    annotations = folder / "annotations.csv"
    rows = [f"waiting,{clip.youtube_id},{clip.start},{clip.end},test" for clip in slow]
    annotations.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    measured: dict[str, list[float]] = defaultdict(list)
    with VideoSite(folder / "site") as site:
        site.delay = {clip.youtube_id: _SITE_SECONDS for clip in slow}
        mode = _PASSTHROUGH if os.geteuid() == 0 else _PAGE_CACHE
        lists = ["--annotations", small.annotations, "--annotations", annotations]
        fetching = ["--video-url", site.url_template, "--cache-dir", small.cache, "--min-free", "0"]
        patient = folder / "config.toml"
        patient.write_text(f"[youtube.ytdlp]\nsocket_timeout = {_SITE_SECONDS}\n")
        ours = Ours(mode, ["--frontend", "native", *lists, *fetching], config=patient)
        mountpoint = folder / "mountpoint"
        mountpoint.mkdir()
        with ours.mounted(mountpoint) as mounted:
            _read(mounted, "walk", "read", clips=small.clips)
            for _ in range(scale.rounds):
                with ExitStack() as waiters:
                    waiting = 0
                    for number in (0, *scale.waiting):
                        more = slow[waiting:number]
                        waiting = number
                        if more:
                            waiters.enter_context(_waiting(mounted, more))
                        _wait_until(mounted, number, site)
                        found = _read(mounted, "latency", clips=small.clips, opens=scale.opens)
                        measured[f"open {number}"].append(found["open"])
                        measured[f"p99 {number}"].append(found["open p99"])
                        measured[f"memory {number}"].append(mounted.memory())
                _wait_until(mounted, 0, site)
            workers = _children(mounted.pid)
            measured["workers"].append(sum(map(resident, workers)))

    idle = f"idle ({mode})"
    rows_made = []
    for number in scale.waiting:
        while_they_wait = f"while {number:,} opens wait"
        rows_made += [
            Row(
                f"open+close, median, µs, {while_they_wait}",
                _of(measured, f"open {number}"),
                _of(measured, "open 0"),
                idle,
            ),
            Row(
                f"open+close, p99, µs, {while_they_wait}",
                _of(measured, f"p99 {number}"),
                _of(measured, "p99 0"),
                idle,
                Target("ratio", "<=", 3),
            ),
            Row(
                f"memory added, MB, {while_they_wait}",
                max(measured[f"memory {number}"]) - measured["memory 0"][0],
                target=Target("ours", "<=", 50),
            ),
        ]
    return [*rows_made, Row(f"memory of {len(workers)} fetching processes, MB", _of(measured, "workers"))]


@contextmanager
def _waiting(mounted: Mounted, clips: list[Clip]) -> Iterator[None]:
    """Start a process whose threads open these clips, and wait."""
    request = _request(mounted, "wait", clips=[f"test/waiting/{clip.name}" for clip in clips])
    with subprocess.Popen(_READER, stdin=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(request)
            process.stdin.close()
            yield
        finally:
            process.kill()


def _wait_until(mounted: Mounted, number: int, site: VideoSite) -> None:
    """Wait until `number` opens wait, and the site has been asked for some of them."""
    deadline = time.monotonic() + _WAIT_WITHIN
    while mounted.status()["frontend"]["waiting_opens"] != number or (number and not site.requests):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{number} opens do not wait within {_WAIT_WITHIN} s: {mounted.status()}")
        time.sleep(0.1)
    time.sleep(1)  # for the fetching processes, which load their libraries


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


# The large tree ---------------------------------------------------------------------------------------------------


def _list_everything(folder: Path, scale: _Scale) -> list[Row]:
    """Measure listings of all of Kinetics-700, with a few cached clips."""
    folder.mkdir()
    annotations, cache = folder / "annotations.csv", folder / "cache"
    write_annotations(annotations, scale.rows)
    prepare_folder(cache)
    with Catalog(compile_catalog([annotations], find_release("700-2020"), CacheLayout(cache).catalogs)) as catalog:
        _publish_a_few(catalog, cache)
        tree, entries = _make_twin(catalog, folder / "tree")
    arguments = ["--release", "700-2020", "--annotations", annotations, "--cache-dir", cache, "--min-free", "0"]
    mode = _PASSTHROUGH if os.geteuid() == 0 else _PAGE_CACHE
    systems = {
        "disk": Disk(tree),
        "ours": Ours(mode, ["--frontend", "native", *arguments]),
        "fusepy": Ours(_FUSEPY, ["--frontend", "fusepy", *arguments]),
    }
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(scale.large_rounds):
        for name, system in systems.items():
            if name == "fusepy" and number:
                continue  # slow, and varies little
            mountpoint = folder / f"{number}-{name}"
            mountpoint.mkdir()
            with system.mounted(mountpoint) as mounted:
                found = _read(mounted, "walk", "stat", seconds=_SLOW_SECONDS if name == "fusepy" else _LARGE_SECONDS)
                found |= {"memory": mounted.memory(), "ready": mounted.ready}
            for key, value in found.items():
                measured[name][key].append(value)

    peer = f"{systems['disk'].name}, {entries:,} empty files"
    of = f"of {scale.rows:,} clips"
    walk, stat = _of(measured["ours"], "walk"), _of(measured["ours"], "stat")
    # As `ls -lR`, du and rsync do: the walk of fusepy is fast, but leaves all the work to the sweep.
    both = {name: _one_after_the_other(found["walk"], found["stat"]) for name, found in measured.items()}
    fusepy = f"fusepy, {int(measured['fusepy']['entries'][0]):,} of them"
    return [
        Row(f"walk {of}, first, entries/s", walk, target=Target("ours", ">=", 100_000)),
        Row(f"walk {of}, first, entries/s", walk, _of(measured["disk"], "walk"), peer, _share(0.25)),
        Row(f"walk {of}, first, entries/s", walk, _of(measured["fusepy"], "walk"), fusepy, _share(10)),
        Row(f"stat sweep {of}, /s", stat, _of(measured["disk"], "stat"), peer, _share(0.9)),
        Row(f"stat sweep {of}, /s", stat, _of(measured["fusepy"], "stat"), fusepy),
        Row(f"walk and stat {of}, /s", both["ours"], both["disk"], peer),
        Row(f"walk and stat {of}, /s", both["ours"], both["fusepy"], fusepy),
        Row(f"resident memory, {scale.rows:,} clips listed, MB", _of(measured["ours"], "memory"), target=_RESIDENT),
        Row(f"mount ready, {scale.rows:,} clips, s", _of(measured["ours"], "ready"), target=_READY),
    ]


def _one_after_the_other(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rate of both tasks together, from their rates."""
    return 1 / (1 / median(first) + 1 / median(second))


def _publish_a_few(catalog: Catalog, cache: Path) -> None:
    """Publish the first clip of some classes: with an empty store, the size of every clip is an estimate."""
    with Store(cache) as store:
        for directory in catalog.classes(catalog.splits()[0])[:_CACHED]:
            clip = catalog.entries(directory, 0, 1)[0].clip
            claim = store.claim(clip)
            assert claim is not None
            with claim:
                path = claim.folder / clip.name
                path.write_bytes(bytes(1000))
                claim.publish(path, "benchmark")


def _make_twin(catalog: Catalog, tree: Path) -> tuple[Path, int]:
    """Create empty files of the same names; only those of every tenth class if the disk is too slow for all."""
    classes = [(split.split, directory) for split in catalog.splits() for directory in catalog.classes(split)]
    entries, started = 0, time.perf_counter()
    # Any part of this order is a sample of all classes.
    for step in range(_FEWER):
        for split, directory in classes[step::_FEWER]:
            folder = tree / split / (directory.label or "")
            folder.mkdir(parents=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            for entry in catalog.entries(directory):
                os.mknod(entry.clip.name, 0o600, dir_fd=fd)
            os.close(fd)
            entries += directory.clips
        if (time.perf_counter() - started) / (step + 1) * _FEWER > _MAKING_SECONDS:
            break
    return tree, entries


# Readers ----------------------------------------------------------------------------------------------------------


def _read(mounted: Mounted, *tasks: str, by: tuple[str, ...] = (), **what: object) -> dict[str, float]:
    """Run tasks of `benchmarks.readers` in a separate process, and return the measurements."""
    done = subprocess.run(
        [*by, *_READER], input=_request(mounted, *tasks, **what), stdout=subprocess.PIPE, text=True, check=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _request(mounted: Mounted, *tasks: str, **what: object) -> str:
    nothing = {"clips": [], "videos": [], "folders": [], "seconds": 60.0, "opens": 100}
    return json.dumps({**nothing, **what, "root": str(mounted.root), "tasks": tasks})


def _of(measured: Mapping[str, Sequence[float]], key: str) -> float | None:
    return median(measured[key]) if measured.get(key) else None
