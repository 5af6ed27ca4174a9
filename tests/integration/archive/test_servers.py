"""Archives on servers that others have made: what mirrors run, and S3."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fill.archive_job import ArchiveJob, fill_archive
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources.archive import remote, s3
from kinetics_fs.sources.archive.base import ArchiveChanged
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.source import ArchiveSource
from kinetics_fs.store import FillCheckpoints
from kinetics_fs.util import http
from tests.support.annotations import csv_text
from tests.support.command_line import run_command
from tests.support.servers import Keys, Moto, hadro, moto, nginx
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, deep, flat, in_class, make_clips, make_tar

pytestmark = pytest.mark.server

ODD = "600/val/it's odd (very), 50% & more+.tar.gz"
BUCKET = "kinetics"


def in_layouts() -> dict[str, tuple[dict[Clip, bytes], bytes]]:
    """Return archives in the layout of each release, by name: their clips and their content."""
    layouts: dict[str, tuple[Callable[[Clip], str], Callable[[bytes], bytes]]] = {
        "400/train/part_0.tar.gz": (flat, by_zlib),
        "400/train/part_120.tar.gz": (deep, bytes),  # a plain tar under this name, as it once was
        "600/val/massaging person's head.tar.gz": (in_class, by_zlib),
        "600/val/mountain climber (exercise).tar.gz": (flat, by_zlib),
        "700_2020/val/k700_val_001.tar.gz": (in_class, by_zlib),
    }
    made = {}
    for seed, (name, (layout, pack)) in enumerate(layouts.items()):
        clips = {
            Clip(f"{seed:02}{clip.youtube_id[2:]}", clip.start, clip.end): content
            for clip, content in make_clips(4, seed=seed).items()
        }
        made[name] = clips, pack(make_tar(clips, layout))
    return made


ARCHIVES = in_layouts()
CLIPS = {clip: content for clips, _ in ARCHIVES.values() for clip, content in clips.items()}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use no AWS settings of the user who runs the tests."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (("CONFIG_FILE", os.devnull), ("SHARED_CREDENTIALS_FILE", os.devnull)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3.forget()
    yield
    s3.forget()


def use(monkeypatch: pytest.MonkeyPatch, url: str, keys: Keys | None = None) -> None:
    """Make `server` the server of S3, and `keys` the credentials."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (keys.environment() if keys else {}).items():
        monkeypatch.setenv(name, value)
    s3.forget()


OF_CLASSES = [name for name in ARCHIVES if name.startswith("600/val/")]
LISTS = {"600/val/k600_val_path.txt": "\n".join(f"https://s3.amazonaws.com/kinetics/{name}" for name in OF_CLASSES)}
FILES = {name: content for name, (_, content) in ARCHIVES.items()} | {
    name: content.encode() for name, content in LISTS.items()
}


def write(folder: Path) -> Path:
    """All archives as files."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def fill_by_command(base: str, folder: Path, **environment: str) -> None:
    """Fill a cache with the archives of a list, by the command line, and check that every clip is cached."""
    rows: list[str] = []
    clips: dict[Clip, bytes] = {}
    for name in OF_CLASSES:
        label = name.split("/")[-1].removesuffix(".tar.gz")
        rows += [f"{label},{clip.youtube_id},{clip.start},{clip.end},validate" for clip in ARCHIVES[name][0]]
        clips |= ARCHIVES[name][0]
    annotations = folder / "annotations.csv"
    annotations.write_text(csv_text(rows))
    done = run_command(
        *("fill", "--annotations", annotations, "--split", "validation", "--verify", "none", "--json"),
        *("--archive-url", base, "--cache-dir", folder / "cache", "--min-free", "0"),
        **environment,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert sorted(json.loads(done.stdout)["archives"]["read"]) == sorted(OF_CLASSES)
    assert cached_content(folder / "cache") == clips


def fill_and_read_single_clips(base: str, folder: Path) -> None:
    """Read all archives in this process, then read each clip by their index."""
    index_db = folder / "archives.sqlite"
    checkpoints = FillCheckpoints(folder / "states")
    with ArchiveIndexDB(index_db) as opened:
        for name in ARCHIVES:
            job = ArchiveJob(base, name, folder / "cache", 0, None, True, checkpoints, VerifyLevel.NONE)
            _, index = fill_archive(job)
            assert index is not None
            opened.add(index)
    assert cached_content(folder / "cache") == CLIPS
    source = ArchiveSource(base, index_db)
    (folder / "single").mkdir()
    for clip, content in CLIPS.items():
        media = source.fetch(clip, folder / "single")
        assert media is not None and media.path.read_bytes() == content


# nginx


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    served = write(tmp_path_factory.mktemp("root"))
    served.parent.chmod(0o755)
    return served


@pytest.fixture(scope="session")
def url(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nginx(served, tmp_path_factory.mktemp("nginx"), rate="100k") as url:
        yield url


def test_nginx_fill_by_command(url: str, tmp_path: Path) -> None:
    fill_by_command(url, tmp_path)


def test_nginx_fill_and_single_clips(url: str, tmp_path: Path) -> None:
    fill_and_read_single_clips(url, tmp_path)


def test_nginx_another_version(url: str, served: Path) -> None:
    content = random.Random(1).randbytes(100_000)
    (served / ODD).write_bytes(content)
    archive = open_archive(archive_address(url, ODD))
    version = archive.version()
    assert version.etag
    assert b"".join(archive.read(10, 90_000, version)) == content[10:90_000]

    os.utime(served / ODD, (1, 1))  # of the same size, but not the same

    with pytest.raises(ArchiveChanged):
        list(archive.read(10, 20, version))
    assert archive.version().etag != version.etag


def test_nginx_connections_that_are_slow(url: str, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(2).randbytes(600_000)
    (served / "large.tar").write_bytes(content)
    monkeypatch.setattr(remote, "_SEGMENT", 150_000)
    archive = open_archive(f"{url}/limited/large.tar", connections=6)

    assert b"".join(archive.stream(0, archive.version())) == content


# hadro

FAULTS = ("--latency-ms", "2", "--latency-jitter-ms", "4", "--error-rate", "0.05", "--fault-seed", "7")


def test_slow_and_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "buckets" / BUCKET)
    monkeypatch.setattr(remote, "_SEGMENT", 15_000)
    log = tmp_path / "log"
    with hadro(tmp_path / "buckets", log, *FAULTS) as url:
        use(monkeypatch, url)
        fill_and_read_single_clips(f"s3://{BUCKET}", tmp_path)
    assert log.read_text().count(" 503") > 2


def test_signatures_are_checked_by_another_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both agree on names that need to be encoded."""
    path = tmp_path / "buckets" / BUCKET / ODD
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello")
    keys = Keys("somebody", "whispered")
    with hadro(tmp_path / "buckets", tmp_path / "log", keys=keys) as url:
        use(monkeypatch, url, keys)
        archive = open_archive(archive_address(f"s3://{BUCKET}", ODD))
        assert b"".join(archive.read(1, 4, archive.version())) == b"ell"
        use(monkeypatch, url, keys._replace(secret="shouted"))
        with pytest.raises(FetchError, match="SignatureDoesNotMatch"):
            archive.version()


# moto


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        for bucket in (BUCKET, "open"):
            server.s3.create_bucket(Bucket=bucket)
        for name, content in FILES.items():
            server.s3.put_object(Bucket=BUCKET, Key=name, Body=content)
        server.s3.put_object(Bucket="open", Key=ODD, Body=b"hello", ACL="public-read")
        server.s3.put_object(Bucket=BUCKET, Key=ODD, Body=b"hello")
        yield server


@pytest.fixture(scope="session")
def reader(server: Moto) -> Keys:
    return server.user("reader", "s3:GetObject")


def test_s3_public_objects_and_private_ones(server: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, server.url)
    archive = open_archive(archive_address("s3://open", ODD))
    assert b"".join(archive.read(1, 4, archive.version())) == b"ell"

    with pytest.raises(FetchError, match=r"HTTP 403.*there are no AWS credentials") as caught:
        open_archive(archive_address(f"s3://{BUCKET}", ODD)).version()
    assert caught.value.kind is FailureKind.CONFIG


def test_s3_keys(server: Moto, reader: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = server.user("stranger", "s3:ListBucket")
    server.check(signatures=True)
    try:
        use(monkeypatch, server.url, reader)
        archive = open_archive(archive_address(f"s3://{BUCKET}", ODD))
        assert b"".join(archive.read(1, 4, archive.version())) == b"ell"
        for keys, code in (
            (reader._replace(secret=stranger.secret), "SignatureDoesNotMatch"),
            (reader._replace(key="AKIANOBODY"), "InvalidAccessKeyId"),
            (stranger, "AccessDenied"),
        ):
            use(monkeypatch, server.url, keys)
            with pytest.raises(FetchError, match=rf"HTTP 403 \({code}\).*AWS credentials in use") as caught:
                archive.version()
            assert not any(part in str(caught.value) for part in keys)
    finally:
        server.check(signatures=False)


def test_s3_fill_by_lists_and_a_profile(server: Moto, reader: Keys, tmp_path: Path) -> None:
    profile = tmp_path / "credentials"
    profile.write_text(f"[lab]\naws_access_key_id = {reader.key}\naws_secret_access_key = {reader.secret}\n")
    server.check(signatures=True)
    try:
        fill_by_command(
            f"s3://{BUCKET}",
            tmp_path,
            AWS_SHARED_CREDENTIALS_FILE=str(profile),
            AWS_PROFILE="lab",
            AWS_ENDPOINT_URL=server.url,
        )
    finally:
        server.check(signatures=False)


def test_s3_object_replaced_in_parts(server: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entity tag of an object that came in parts is no checksum of it, and names the version all the same."""
    use(monkeypatch, server.url, Keys("any", "body"))
    content = random.Random(3).randbytes(6 * 1024 * 1024)
    target = {"Bucket": BUCKET, "Key": "in parts.tar"}
    upload = server.s3.create_multipart_upload(**target)["UploadId"]
    pieces = (content[: 5 * 1024 * 1024], content[5 * 1024 * 1024 :])
    parts = [
        {
            "PartNumber": number,
            "ETag": server.s3.upload_part(**target, UploadId=upload, PartNumber=number, Body=piece)["ETag"],
        }
        for number, piece in enumerate(pieces, 1)
    ]
    server.s3.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
    archive = open_archive(f"s3://{BUCKET}/in parts.tar")
    version = archive.version()
    assert version.etag and version.etag.endswith('-2"')
    with closing(archive.stream(0, version)) as stream:
        assert b"".join(stream) == content

    server.s3.put_object(**target, Body=content)

    with pytest.raises(ArchiveChanged):
        list(archive.read(0, 10, version))
