"""A bucket on an S3 server, and folders."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Moto, moto

_buckets = itertools.count()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def bucket_url(serve: Moto, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty prefix in a bucket; the environment has the keys and the endpoint."""
    name = f"bucket-{os.getpid()}-{next(_buckets)}"
    serve.s3.create_bucket(Bucket=name)
    for variable, value in {
        **serve.admin.environment(),
        "AWS_ENDPOINT_URL": serve.url,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}/shared/kinetics"


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """An empty folder in memory."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tmpfs_of_1_mib(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder], check=False).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)
