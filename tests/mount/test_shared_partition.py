"""A mount that the network cuts off from its shared store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import Mounted, run_command
from tests.support.mounts import CLASS, clip_path, wait_until, write_clips
from tests.support.namespaces import NetworkLink
from tests.support.s3_proxy import s3_proxy
from tests.support.servers import moto

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="takes root and iproute2"),
]

CLIPS = [Clip(f"-partition{number}", number, number + 2) for number in range(4)]
ADDRESS = "s3://kinetics/partition"


@pytest.fixture
def link() -> Iterator[NetworkLink]:
    with NetworkLink() as link:
        yield link


def use_of(mounted: Mounted) -> dict[str, Any]:
    value = mounted.status()["shared"]
    assert isinstance(value, dict)
    return value


def test_a_mount_that_is_cut_off_works_alone_says_so_and_returns(link: NetworkLink, tmp_path: Path) -> None:
    (tmp_path / "moto").mkdir()
    clips = write_clips(tmp_path / "clips", CLIPS)
    annotations = write_annotations(tmp_path / "clips.csv", [Labelled(CLASS, clip, "validate") for clip in CLIPS])
    with moto(tmp_path / "moto") as server, s3_proxy(server.url, link.host) as proxy:
        server.s3.create_bucket(Bucket="kinetics")
        keys = {**server.admin.environment(), "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1"}
        assert run_command("shared", "init", ADDRESS, **keys).returncode == 0
        wrapper = (*link.wrapper, "env", *(f"{name}={value}" for name, value in keys.items()))
        arguments: list[str | Path] = ["--annotations", annotations, "--cache-dir", tmp_path / "cache"]
        arguments += ["--min-free", "0", "--source", "folder", "--folder", clips, "--shared", ADDRESS]
        with Mounted(tmp_path / "mountpoint", *arguments, wrapper=wrapper) as mounted:
            first, second, third, fourth = (clip_path(mounted, clip) for clip in CLIPS)
            content = {path: (clips / path.name).read_bytes() for path in (first, second, third, fourth)}
            assert first.read_bytes() == content[first]
            wait_until(lambda: use_of(mounted)["uploads"]["uploaded"] == 1)
            assert use_of(mounted)["error"] == ""

            link.cut()
            assert second.read_bytes() == content[second]
            assert "no answer" in use_of(mounted)["error"]
            assert "works alone" in run_command("status", mounted.root).stdout
            assert third.read_bytes() == content[third]
            assert use_of(mounted)["uploads"]["queued"] == 2

            link.connect()
            wait_until(lambda: use_of(mounted)["uploads"]["uploaded"] == 3)
            wait_until(lambda: fourth.read_bytes() and use_of(mounted)["error"] == "")
            assert fourth.read_bytes() == content[fourth]
            wait_until(lambda: use_of(mounted)["uploads"]["uploaded"] == 4)
