"""The examples of docs/clusters.md: permissions on an S3 server, scripts and manifests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared import AccessRefused, ClipFacts, SharedStore, open_backend
from tests.support.documents import blocks
from tests.support.servers import Keys, Moto

ADDRESS = "s3://my-bucket/kinetics"
CLIP = Clip("-a1B2c3D4e5", 10, 20)


def policy(*, without: str = "") -> dict[str, Any]:
    """Return the policy of the document, without one action."""
    (text,) = blocks("clusters.md", "json")
    found: dict[str, Any] = json.loads(text)
    for statement in found["Statement"]:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        statement["Action"] = [action for action in actions if action != without]
        # Amazon compares a request that deletes many objects with each of them, and moto with the bucket.
        statement["Resource"] = [statement["Resource"], "arn:aws:s3:::my-bucket"]
    return found


@pytest.fixture(scope="module")
def users(serve: Moto) -> Iterator[dict[str, Keys]]:
    """The keys of users of a server that checks permissions: those of the document, and of others without one."""
    serve.s3.create_bucket(Bucket="my-bucket")
    users = {
        "admin": serve.admin,
        "node": serve.user("node", policy()),
        "keeper": serve.user("keeper", policy(without="s3:DeleteObject")),
        "reader": serve.user("reader", policy(without="s3:PutObject")),
    }
    serve.check(signatures=True)
    yield users
    serve.check(signatures=False)


Open = Callable[[str], SharedStore]


@pytest.fixture
def open_as(serve: Moto, users: dict[str, Keys], monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("AWS_ENDPOINT_URL", serve.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")

    def open_store(user: str) -> SharedStore:
        for variable, value in users[user].environment().items():
            monkeypatch.setenv(variable, value)
        return SharedStore(open_backend(ADDRESS))

    return open_store


def test_the_permissions_suffice_for_a_node(open_as: Open) -> None:
    store = open_as("node")
    assert store.open(create=True)
    assert store.probe().has_conditional_writes
    assert store.get_clip(CLIP, "source") is None
    assert store.put_clip(CLIP, "source", b"clip", ClipFacts.of(b"clip", "youtube", 10.0))
    found = store.get_clip(CLIP, "source")
    assert found is not None and found.body == b"clip"
    assert list(store.clips("source")) == [(CLIP, 4)]
    assert list(store.backend.scan("probe")) == []


def test_without_delete_a_node_still_stores_clips(open_as: Open) -> None:
    store = open_as("keeper")
    store.open(create=True)
    assert store.probe().has_conditional_writes
    other = Clip("-a1B2c3D4e5", 20, 30)
    assert store.put_clip(other, "source", b"clip", ClipFacts.of(b"clip", "youtube", 10.0))


def test_without_put_a_node_reads(open_as: Open) -> None:
    store = open_as("admin")
    store.open(create=True)
    store.put_clip(CLIP, "source", b"clip", ClipFacts.of(b"clip", "youtube", 10.0))
    store = open_as("reader")
    store.open(create=False)
    assert not store.probe().can_write
    assert store.get_clip(CLIP, "source") is not None
    with pytest.raises(AccessRefused):
        store.put_clip(Clip("-a1B2c3D4e5", 30, 40), "source", b"clip", ClipFacts.of(b"clip", "youtube", 10.0))


@pytest.mark.parametrize("script", blocks("clusters.md", "sh"))
def test_the_scripts_are_valid(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("manifest", blocks("clusters.md", "yaml"))
def test_the_manifests_name_what_they_mount(manifest: str) -> None:
    pod = yaml.safe_load(manifest)["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["KINETICS_FS_CACHE_DIR"] in places
