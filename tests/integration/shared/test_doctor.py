"""The checks of a shared store by `kinetics-fs doctor`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.config import Settings
from kinetics_fs.doctor import Finding, State, shared
from kinetics_fs.shared import UploadQueue, create_store
from kinetics_fs.shared.upload_queue import Upload
from kinetics_fs.store import CacheLayout
from tests.support.command_line import run_command
from tests.support.s3_proxy import Fault, s3_proxy
from tests.support.servers import Moto


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", shared=str(tmp_path / "store"))


def found(settings: Settings) -> dict[str, Finding]:
    findings = {one.name: one for one in shared.store(settings)}
    text = str(findings)
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "no secret") not in text
    assert all(bool(one.fix) == (one.state is not State.OK) for one in findings.values()), text
    return findings


def test_a_sound_bucket(bucket_url: str, settings: Settings) -> None:
    create_store(bucket_url)
    findings = found(settings.with_values(shared=bucket_url))
    assert {name: one.state for name, one in findings.items()} == dict.fromkeys(
        ("credentials", "shared store", "shared writes", "shared clock"), State.OK
    )
    assert findings["credentials"].found == "for S3: from env"
    assert "answers within" in findings["shared store"].found


def test_a_place_that_is_no_store(bucket_url: str, settings: Settings) -> None:
    for address in (bucket_url, settings.shared):
        one = found(settings.with_values(shared=address))["shared store"]
        assert one.state is State.PROBLEM and "kinetics-fs shared init" in one.fix


def test_a_server_that_is_down_is_found_within_seconds(
    bucket_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begun = time.monotonic()
    one = found(settings.with_values(shared=bucket_url))["shared store"]
    assert one.state is State.PROBLEM and "credentials" not in one.found and "network" in one.fix
    assert time.monotonic() - begun < 15


def test_a_server_that_never_answers(
    bucket_url: str, serve: Moto, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_TIMEOUT", 1.0)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: Fault(waits=True)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        one = found(settings.with_values(shared=bucket_url))["shared store"]
        assert one.state is State.PROBLEM and "does not answer within 1 s" in one.found


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [
        (400, "ExpiredToken", "have expired"),
        (403, "RequestTimeTooSkewed", "Set the clock"),
        (403, "InvalidAccessKeyId", "Check the credentials"),
    ],
)
def test_refused_credentials_are_not_an_outage(
    status: int, code: str, fix: str, bucket_url: str, serve: Moto, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(bucket_url)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: Fault(status, code)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        one = found(settings.with_values(shared=bucket_url))["shared store"]
    assert one.state is State.PROBLEM and one.found.startswith("credentials: ") and code in one.found and fix in one.fix


def test_a_bucket_that_may_not_be_listed(
    bucket_url: str, serve: Moto, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(bucket_url)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: (
            Fault(403, "AccessDenied") if method == "GET" and "kinetics-store.json" not in path else None
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        findings = list(shared.store(settings.with_values(shared=bucket_url)))
    assert findings[-1].state is State.PROBLEM and "s3:ListBucket" in findings[-1].fix and "403" in findings[-1].found


def test_a_bucket_that_may_not_be_written(
    bucket_url: str, serve: Moto, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(bucket_url)
    with s3_proxy(serve.url) as proxy:
        proxy.fault = lambda method, path: Fault(403, "AccessDenied") if method == "PUT" else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        findings = found(settings.with_values(shared=bucket_url))
        assert findings["shared writes"].state is State.WARNING and "only reads" in findings["shared writes"].found
        reads = found(settings.with_values(shared=bucket_url, shared_write="none"))
        assert reads["shared writes"].state is State.OK


def test_a_server_that_ignores_conditions(
    bucket_url: str, serve: Moto, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(bucket_url)
    with s3_proxy(serve.url) as proxy:
        proxy.drops_headers = {"if-none-match", "if-match"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        one = found(settings.with_values(shared=bucket_url))["shared writes"]
    assert one.state is State.WARNING and "no conditional writes" in one.found and "stay correct" in one.found


@pytest.mark.parametrize(("ahead", "state"), [(2.0, State.OK), (600.0, State.WARNING), (-600.0, State.WARNING)])
def test_the_clock_of_the_store(
    ahead: float, state: State, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(str(settings.shared))
    now = time.time
    monkeypatch.setattr("kinetics_fs.doctor.shared.time.time", lambda: now() + ahead)
    one = found(settings)["shared clock"]
    assert one.state is state
    assert state is State.OK or ("10 min" in one.found and ("ahead of" in one.found) == (ahead > 0))


def test_a_long_queue_of_uploads(settings: Settings) -> None:
    assert list(shared.uploads(settings)) == []
    settings.cache_dir.mkdir()
    path = CacheLayout(settings.cache_dir).uploads
    queue = UploadQueue(path, limit=1)
    queue.add([Upload(Clip("a" * 11, 0, 10), "source")], urgent=False)
    assert [one.state for one in shared.uploads(settings)] == [State.OK]
    queue.finish(Upload(Clip("a" * 11, 0, 10), "source"))
    queue = UploadQueue(path, limit=1, now=lambda: time.time() - 7200)
    queue.add([Upload(Clip(letter * 11, 0, 10), "source") for letter in "bc"], urgent=False)
    waiting, dropped = shared.uploads(settings)
    assert waiting.state is dropped.state is State.WARNING
    assert "shared sync" in waiting.fix and "dropped from a full queue" in dropped.found


def test_doctor_checks_the_store_unless_it_is_offline(settings: Settings) -> None:
    arguments = "--shared", str(settings.shared), "--cache-dir", settings.cache_dir
    done = run_command("doctor", *arguments, "--source", "folder", "--json")
    assert done.returncode == 1 and "kinetics-fs shared init" in done.stdout
    assert "shared store" not in run_command("doctor", *arguments, "--source", "folder", "--offline").stdout
