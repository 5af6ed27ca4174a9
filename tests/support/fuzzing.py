"""Mutated input, with fixed seeds, for everything that reads files, messages and answers from outside.

A target makes an input and reads it, over and over. Allowed are a result and an error of this package. Findings are any
other exception, bytes other than those that were packed, an input that takes longer than `MAX_SECONDS`, and memory
above the limit of worker processes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import tarfile
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from yt_dlp import YoutubeDL

from kinetics_fs.catalog import (
    Annotation,
    Catalog,
    Clip,
    Selection,
    compile_catalog,
    find_release,
    parse_file_name,
    read_annotations,
)
from kinetics_fs.catalog.annotations import needs_split
from kinetics_fs.catalog.compile import AnnotationList
from kinetics_fs.config import read_config
from kinetics_fs.control import ControlServer, Request, RequestHandler, socket_path
from kinetics_fs.control.client import Connection
from kinetics_fs.control.status import InvalidStatusError, MountStatus
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings
from kinetics_fs.fetch.prefetch import parse_clip_list
from kinetics_fs.fetch.prefetch_manager import PrefetchManager
from kinetics_fs.fill.indexes import import_indexes
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import (
    ALL_CLIPS,
    ClipFacts,
    CompletedFill,
    Lease,
    Leases,
    SharedBudget,
    SharedStore,
    clip_lease,
    create_store,
    open_backend,
)
from kinetics_fs.shared.summary import summarize_store
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.index import ArchiveIndex, check_record, read_indexes, write_index
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.inflate import is_gzip
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Checkpoint, Scan
from kinetics_fs.sources.http_range import Pace
from kinetics_fs.sources.youtube.segments import NoSegments, Segments
from kinetics_fs.store import Failure, RateLimited, Store, read_reports
from tests.support.mutations import mutate, mutate_text
from tests.support.tarballs import by_zlib, in_members, make_clips, make_tar

MAX_SECONDS = 10.0
"""Seconds that one input may take."""

Reader = Callable[[bytes], object]


@dataclass
class Result:
    """What became of the inputs of one target.

    Attributes:
        inputs: number of inputs.
        refused: number of inputs that ended in an error of this package.
        slowest: seconds that the slowest input took.
        findings: one text for each input that ended otherwise, with its number.
    """

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A reader of input from outside.

    Attributes:
        start: yields good inputs, and the function that reads one; its folder is empty. The reader returns, or raises a
            `KineticsError`; any other exception is a finding.
        inputs: number of inputs of a full run.
        mutate: returns a good input with faults.
    """

    start: Callable[[Path], contextlib.AbstractContextManager[tuple[list[bytes], Reader]]]
    inputs: int
    mutate: Callable[[bytes, random.Random], bytes] = mutate


class TooSlow(BaseException):
    """An input takes longer than `MAX_SECONDS`. Not an `Exception`, so that no reader catches it."""


def fuzz(name: str, folder: Path, share: float = 1.0) -> Result:
    """Run a target in the main thread.

    Args:
        name: one of `TARGETS`.
        folder: an empty folder.
        share: part of the inputs of a full run; the same seed always gives the same ones.
    """
    target, chance, result = TARGETS[name], random.Random(f"fuzz {name}"), Result()
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        with target.start(folder) as (good, read):
            for _ in range(max(1, round(target.inputs * share))):
                _try(read, target.mutate(chance.choice(good), chance), result)
    finally:
        signal.signal(signal.SIGALRM, before)
    return result


def _try(read: Reader, data: bytes, result: Result) -> None:
    result.inputs += 1
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        read(data)
    except KineticsError:
        result.refused += 1
    except (Exception, TooSlow) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        result.findings.append(f"input {result.inputs}, {data[:60]!r}: {found}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        result.slowest = max(result.slowest, time.monotonic() - began)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {MAX_SECONDS:.0f} s")


# Annotations, lists and settings

_ROWS = [
    (label, f"-vid_{number:06d}", number, number + 10, split)
    for number, (label, split) in enumerate(
        (label, split)
        for label in ("surfing water", "(driving) car", 'say "hi", twice', "ümlaut")
        for split in ("train", "validate", "test")
    )
]
_CSV = "label,youtube_id,time_start,time_end,split,is_cc\n" + "".join(
    '"{}",{},{},{},{},0\n'.format(label.replace('"', '""'), *rest) for label, *rest in _ROWS
)
_JSON = json.dumps(
    {
        id: {
            "annotations": {"label": label, "segment": [float(start), float(end)]},
            "duration": 10.0,
            "subset": split,
            "url": f"https://www.youtube.com/watch?v={id}",
        }
        for label, id, start, end, split in _ROWS
    }
)
_LINES = "".join(
    f"{split}/{label}/{id}_{start:06d}_{end:06d}.mp4 {start % 4}\n" for label, id, start, end, split in _ROWS
)
_REPORTS = "".join(
    json.dumps({"clip": f"{id}_{start:06d}_{end:06d}", "kind": "gone", "reason": label, "last_at": 1.7e9 + start})
    + "\n"
    for label, id, start, end, split in _ROWS
)
_CONFIG = """
cache-size = "200GB"
min-free = "1GB"
workers = 4
source = ["archive", "youtube"]
max-bandwidth = "5MB/s"
cookies = "/tmp/cookies"
[youtube]
programs = true
[youtube.ytdlp]
retries = 3
"""


@contextmanager
def _annotations(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    path = folder / "list"
    release = find_release("600")

    def read(data: bytes) -> None:
        path.write_bytes(data)
        split = "train" if needs_split(path) else None
        for row in read_annotations(path, split=split):
            if isinstance(row, Annotation):
                assert row.clip == Clip(*row.clip) and 0 <= row.clip.start < row.clip.end
        with Catalog(compile_catalog([AnnotationList(path)], release, folder / "catalogs", split="train")) as catalog:
            assert sum(1 for _ in catalog.clips()) == catalog.clip_count
        shutil.rmtree(folder / "catalogs")

    yield [text.encode() for text in (_CSV, _JSON, _LINES)], read


@contextmanager
def _containers(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read lists in `.tar.gz`, `.tar` and `.gz` files."""
    path, plain = folder / "lists", io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, text in (("kinetics/train.csv", _CSV), ("kinetics/val.json", _JSON)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for _ in read_annotations(path, split="train"):
            pass

    yield [plain.getvalue(), by_zlib(plain.getvalue()), by_zlib(_CSV.encode())], read


@contextmanager
def _lists(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read lists of clips, file names, and the failures of other machines."""

    def read(data: bytes) -> None:
        lines = data.decode(errors="surrogateescape").splitlines()
        clips, invalid = parse_clip_list(lines)
        assert len(clips) + invalid == len(lines)
        for line in lines:
            parse_file_name(line)
        for _ in read_reports(io.BytesIO(data)):
            pass

    yield [text.encode() for text in (_LINES, _REPORTS)], read


@contextmanager
def _settings(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    path = folder / "config.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_config(path)

    yield [_CONFIG.encode()], read


# Archives

_CLIPS = make_clips(4, size=(2_000, 9_000))


def _packed() -> dict[str, bytes]:
    tar = make_tar(_CLIPS)
    return {"plain": tar, "one member": by_zlib(tar), "members": in_members(tar, 5_000)}


def _indexed(archive: bytes) -> ArchiveIndex:
    scan = Scan()
    for _ in scan.feed(archive):
        pass
    scan.finish()
    return ArchiveIndex("600/val/pull ups.tar.gz", len(archive), '"abc-8"', scan.gzipped, scan.records)


def _mutate_archive(archive: bytes, chance: random.Random) -> bytes:
    """Return an archive with faults in its packed bytes, or in the tar below its compression."""
    if not is_gzip(archive) or chance.random() < 0.5:
        return mutate(archive, chance)
    return by_zlib(mutate(gzip.decompress(archive), chance))


def _mutate_index(index: bytes, chance: random.Random) -> bytes:
    """Return an index with faults in its bytes, or in the records below its compression."""
    head, _, packed = index.partition(b"\n")
    stream = zlib.decompressobj()
    if chance.random() < 0.3:
        return mutate(index, chance)
    records = zlib.compress(mutate(stream.decompress(packed), chance))
    head = re.sub(rb'"bytes": [0-9]+', b'"bytes": %d' % len(records), head)
    return head + b"\n" + records + stream.unused_data


def _mutate_checkpoint(checkpoint: bytes, chance: random.Random) -> bytes:
    """Return a checkpoint with faults, mostly with the checksum of what it became."""
    changed = mutate(checkpoint[:-4], chance)
    right = zlib.crc32(changed).to_bytes(4, "little")
    return changed + (right if chance.random() < 0.8 else checkpoint[-4:])


def _extract_all(index: ArchiveIndex, archive: bytes, clips: Mapping[Clip, bytes]) -> None:
    """Read every clip by its record; each is right or refused."""
    errors = []
    for clip, record in index.records.items():
        try:
            check_record(record, index.size, gzipped=index.gzipped)
            part = archive[record.begin : record.end]
            data = b"".join(map(bytes, extract(clip, record, [part], gzipped=index.gzipped)))
            assert data == clips.get(clip), f"wrong bytes of {clip.key}"
        except KineticsError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@contextmanager
def _archives(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read archives with faults: all of each, with checkpoints, and single clips by the index of the whole one."""
    archives = list(_packed().values())
    indexes = [_indexed(archive) for archive in archives]

    def read(data: bytes) -> None:
        scan = Scan()
        try:
            for start in range(0, len(data), 4_000):
                for _ in scan.feed(data[start : start + 4_000]):
                    if (checkpoint := scan.checkpoint()) is not None:
                        assert Checkpoint.unpack(checkpoint.pack()).pack() == checkpoint.pack()
            scan.finish()
        finally:
            for index in indexes:
                with contextlib.suppress(KineticsError):
                    _extract_all(index, data, _CLIPS)

    yield archives, read


@contextmanager
def _indexes(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Indexes with faults beside archives without any."""
    archives = _packed()
    good = []
    for archive in archives.values():
        file = io.BytesIO()
        write_index(_indexed(archive), file)
        good.append(file.getvalue())
    with contextlib.closing(ArchiveIndexDB(folder / "index.sqlite")) as index_db:

        def read(data: bytes) -> None:
            for index in read_indexes(io.BytesIO(data)):
                for archive in archives.values():
                    with contextlib.suppress(KineticsError):
                        _extract_all(index, archive, _CLIPS)
            import_indexes(index_db, io.BytesIO(data), folder=folder)

        yield [*good, b"".join(good)], read


@contextmanager
def _checkpoints(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    archive, good = _packed()["one member"], []
    scan = Scan()
    for _ in scan.feed(archive):
        checkpoint = scan.checkpoint()
        if checkpoint is not None:
            good.append(checkpoint.pack())
    yield good, Checkpoint.unpack


# Servers and clients


class _AnswersServer(socketserver.ThreadingTCPServer):
    """A server that gives one prepared answer to every request, and hangs up."""

    daemon_threads = allow_reuse_address = True
    answer = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(socketserver.StreamRequestHandler):
    timeout = 5

    def handle(self) -> None:
        assert isinstance(self.server, _AnswersServer)
        with contextlib.suppress(OSError):
            while self.rfile.readline(65536).strip():
                pass
            self.wfile.write(self.server.answer)


@contextmanager
def _answering() -> Iterator[_AnswersServer]:
    with _AnswersServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def _ranges(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Answers to requests for the version and for a part of an archive on a server."""
    archive = _packed()["one member"]
    index = _indexed(archive)
    clip, record = next(iter(index.records.items()))
    part = archive[record.begin : record.end]

    def answer(status: str, body: bytes, content_range: str) -> bytes:
        head = f"Content-Length: {len(body)}\r\nContent-Range: bytes {content_range}/{len(archive)}\r\n"
        return f'HTTP/1.1 {status}\r\nETag: "abc"\r\nAccept-Ranges: bytes\r\n{head}\r\n'.encode() + body

    first = answer("206 Partial Content", archive[:1], "0-0")
    good = [
        answer("206 Partial Content", part, f"{record.begin}-{record.end - 1}"),
        answer("200 OK", archive, "*"),
        first,
        answer("503 Busy", b"<html>later</html>", "*").replace(b"ETag", b"Retry-After: 1\r\nETag"),
    ]
    with _answering() as server:
        address = f"{server.url}/600/val/pull%20ups.tar.gz"
        server.answer = first
        version = open_archive(address, tries=1).version()

        def read(data: bytes) -> None:
            server.answer = data
            remote = open_archive(address, tries=1)
            with contextlib.suppress(KineticsError):
                remote.version()
            pieces = remote.read(record.begin, record.end, version)
            assert b"".join(map(bytes, extract(clip, record, pieces, gzipped=True))) == _CLIPS[clip]

        yield good, read


@contextmanager
def _control(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Messages to the control socket. Each gets an answer or none, and the server goes on."""
    mountpoint = folder / "mnt"

    def use(request: Request) -> object:
        values = [
            request.get(name, kind) for name, kind in (("id", int), ("pause", float), ("name", str), ("on", bool))
        ]
        return [*values, *request.texts("words"), sum(1 for _ in request.lines())]

    parameters = ("id", "pause", "name", "on", "words", "lines")
    requests: list[dict[str, object]] = [
        {"request": "use", "id": 3, "pause": 0.5, "name": "surfing", "on": True, "words": ["a", "b"]},
        {"request": "use", "lines": 2},
        {"request": "none"},
    ]
    good = [json.dumps(request).encode() + b"\n" + b"one\ntwo\n" * ("lines" in request) for request in requests]

    def exchange(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(MAX_SECONDS / 2)
            client.connect(str(socket_path(mountpoint)))
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                return client.makefile("rb").read()
            except (BrokenPipeError, ConnectionResetError):  # it has read enough
                return b""

    def read(data: bytes) -> None:
        for line in exchange(data).splitlines():
            answer = json.loads(line)
            assert answer.keys() <= {"result", "error", "progress", "busy"}, answer
            assert "unexpected" not in str(answer.get("error")), answer
        assert json.loads(exchange(good[0]))["result"][0] == 3

    with ControlServer(mountpoint, {"use": RequestHandler(use, parameters)}):
        yield good, read


@contextmanager
def _control_answers(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read answers of a mount to a command."""

    def read(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs, Connection(folder, ours, MAX_SECONDS / 2) as connection:
            writer = threading.Thread(target=answer, args=(theirs, data), daemon=True)
            writer.start()
            try:
                MountStatus.from_json(connection.request("status", on_progress=lambda _: None))
            except InvalidStatusError:
                pass
            finally:
                ours.close()
                writer.join()

    def answer(client: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    status = {"version": "1", "pid": 1, "cache": {"clips": 3, "bytes": 5}, "sources": [], "mountpoint": "/mnt"}
    answers: list[dict[str, object]] = [{"progress": {"clips": 3}}, {"result": status}, {"error": "no"}]
    yield [b"".join(json.dumps(one).encode() + b"\n" for one in answers[start:]) for start in range(3)], read


@contextmanager
def _playlists(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read HLS playlists of a site."""
    lines = "".join(
        f"#EXTINF:{4 + part / 2},\n#EXT-X-BYTERANGE:{100 + part}@{part * 500}\n{part}.ts\n" for part in range(6)
    )
    playlist = f'#EXTM3U\n#EXT-X-TARGETDURATION:7\n#EXT-X-MAP:URI="head.mp4"\n{lines}#EXT-X-ENDLIST\n'
    with _answering() as server, YoutubeDL({"quiet": True, "proxy": "", "cachedir": False}) as ytdlp:

        def read(data: bytes) -> None:
            server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            with contextlib.suppress(NoSegments):
                assert Segments.of_playlist(ytdlp, f"{server.url}/list.m3u8", {}, Pace(None)).seconds > 0

        yield [playlist.encode()], read


# Files of the cache


@contextmanager
def _catalogs(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Read compiled catalogs."""
    lists, path = folder / "list.csv", folder / "damaged.sqlite"
    lists.write_text(_CSV)
    good = compile_catalog([AnnotationList(lists)], find_release("600"), folder / "catalogs").read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with Catalog(path) as catalog:
            for split in catalog.splits():
                for directory in catalog.classes(split):
                    catalog.entries(directory, 0, 100)
            for entry in catalog.clips():
                catalog.locate(entry.clip)

    yield [good], read


@contextmanager
def _jobs(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Prefetch jobs that an earlier mount left."""
    path = folder / "00000000000000000001.json"
    selection = Selection(("train",), ("surfing water",), max_samples=3, shuffle=True, seed=1)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        path.with_suffix(".list").write_text("-vid_000000_000000_000010\n")
        manager = PrefetchManager(fetcher, store, catalog, folder, window=1)
        manager.resume()
        manager.close()

    lists = folder / "list.csv"
    lists.write_text(_CSV)
    with (
        Catalog(compile_catalog([AnnotationList(lists)], find_release("600"), folder / "catalogs")) as catalog,
        Store(folder / "cache") as store,
        contextlib.closing(Fetcher(store, FetchSettings(workers=0))) as fetcher,
    ):
        yield [json.dumps(asdict(selection)).encode(), b"null"], read


@contextmanager
def _caches(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Open caches with a damaged file: clips are right, or lost with an error or without."""
    content = {clip: data[:3_000] for clip, data in _CLIPS.items()}
    whole = folder / "whole"
    with Store(whole) as store:
        for clip, data in content.items():
            claim = store.claim(clip, size=len(data))
            assert claim is not None
            with claim:
                path = claim.folder / clip.name
                path.write_bytes(data)
                claim.publish(path, "youtube", duration=10.0)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.stat().st_size > 100)
    turn = iter(range(10**9))

    def read(data: bytes) -> None:
        number = next(turn)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        shutil.copytree(whole, folder / "damaged")
        damaged = folder / "damaged" / files[number % len(files)].relative_to(whole)
        damaged.chmod(0o600)
        damaged.write_bytes(mutate(damaged.read_bytes(), random.Random(data)))
        with Store(folder / "damaged") as store:
            for clip, expected in content.items():
                stored = store.open(clip)
                if stored is None:
                    continue
                with os.fdopen(stored.fd, "rb") as file:
                    found = file.read()
                # Only `verify` reads a whole clip; a changed file of the same size is served.
                assert found == expected or (len(found) == len(expected) and damaged.suffix == ".mp4")
            store.usage()
            list(store.failures.all())
            list(store.cached_clips())

    yield [number.to_bytes(8, "big") * 20 for number in range(1000)], read


@contextmanager
def _shared_stores(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    """Use shared stores with a damaged object: clips are right or damaged, and everything else is an error or ignored.

    Every input is a seed. The stores are in memory where that is possible, because each write waits for the disk.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else folder) as made:
        yield from _shared_stores_in(Path(made))


def _shared_stores_in(folder: Path) -> Iterator[tuple[list[bytes], Reader]]:
    clip, content = next(iter(_CLIPS.items()))
    content = content[:3_000]
    whole, damaged = folder / "whole", folder / "damaged"
    store, _ = create_store(str(whole))
    store.probe()
    store.put_clip(clip, SOURCE, content, ClipFacts.of(content, "archive", 10.0))
    store.put_gone(Failure(clip.key, FailureKind.GONE, "removed", "youtube", None, 1e9, 1e9, 1, 2e9))
    store.put_fill(CompletedFill("600/train/a.tar.gz", "etag", ALL_CLIPS, True, 1, 3_000, "node"))
    leases = Leases(store.records, store.clock, "node")
    names = [clip_lease(clip, SOURCE), clip_lease(clip, "0123abcd")]
    *_, lease = (leases.acquire(name) for name in names)
    assert isinstance(lease, Lease)
    lease.fail(FetchError(FailureKind.TRANSIENT, "reason", source="youtube"), 60)
    _budget(store).record(_budget(store).acquire(limit=300, urgent=True), FetchError(FailureKind.BLOCKED, "bot"))
    files = sorted(path for path in whole.rglob("*") if path.is_file())

    def read(data: bytes) -> None:
        chance = random.Random(data)
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        path = damaged / chance.choice(files).relative_to(whole)
        path.chmod(0o600)
        change = mutate_text if chance.random() < 0.7 else mutate
        path.write_bytes(change(path.read_bytes(), chance))
        store = SharedStore(open_backend(str(damaged)))
        store.clock.observe(time.time())
        steps: list[Callable[[], object]] = [
            lambda: store.open(create=False),
            lambda: _check_clip(store, clip, content),
            lambda: store.get_gone(clip),
            lambda: summarize_store(store),
            lambda: list(store.fills()),
            lambda: _budget(store).acquire(limit=300, urgent=True),
            *(partial(Leases(store.records, store.clock, "other").acquire, name) for name in names),
            lambda: store.put_clip(clip, SOURCE, content, ClipFacts.of(content, "archive", 10.0)),
        ]
        for step in steps:
            with contextlib.suppress(KineticsError, RateLimited):
                step()
        assert _check_clip(store, clip, content)

    yield [number.to_bytes(8, "big") * 20 for number in range(1000)], read


def _budget(store: SharedStore) -> SharedBudget:
    return SharedBudget(store.records, store.backend, store.clock, "youtube", "default", "0" * 12)


def _check_clip(store: SharedStore, clip: Clip, content: bytes) -> bool:
    found = store.get_clip(clip, SOURCE)
    assert found is None or found.body == content
    return found is not None


TARGETS = {
    "annotations": Target(_annotations, 1_500, mutate_text),
    "annotations in containers": Target(_containers, 5_000),
    "lists and failures": Target(_lists, 6_000, mutate_text),
    "settings": Target(_settings, 5_000, mutate_text),
    "archives": Target(_archives, 4_000, _mutate_archive),
    "indexes": Target(_indexes, 6_000, _mutate_index),
    "checkpoints": Target(_checkpoints, 5_000, _mutate_checkpoint),
    "answers to range requests": Target(_ranges, 2_000, partial(mutate_text, binary=True)),
    "playlists": Target(_playlists, 2_000, mutate_text),
    "control requests": Target(_control, 3_000, mutate_text),
    "control answers": Target(_control_answers, 3_000, mutate_text),
    "catalogs": Target(_catalogs, 1_500),
    "jobs": Target(_jobs, 1_000, mutate_text),
    "caches": Target(_caches, 500),
    "shared stores": Target(_shared_stores, 1_000),
}
