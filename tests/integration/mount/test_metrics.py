"""The HTTP server of the metrics, and docs/metrics.md."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kinetics_fs.control.status import MountStatus
from kinetics_fs.errors import FailureKind
from kinetics_fs.mount import metrics
from kinetics_fs.mount.metrics import MetricsServer, MountMetrics
from tests.support.status import STATUS

DOCUMENT = Path(__file__).parents[3] / "docs/metrics.md"


def make_metrics(status: MountStatus = STATUS) -> MountMetrics:
    made = MountMetrics(lambda: status)
    made.on_fetched("youtube", 1000, 0.2)
    made.on_fetched("youtube", 500, None)
    made.on_undelivered("archive", FailureKind.GONE)
    return made


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer(0) as server:
        server.start(make_metrics())
        yield server


def connect(server: MetricsServer) -> socket.socket:
    address = urlsplit(server.url)
    assert address.hostname is not None and address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def test_fetches_are_counted_by_source() -> None:
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(make_metrics().text())
        for sample in family.samples
    }
    assert samples["kinetics_fs_fetches_total", "fetched", "youtube"] == 2
    assert samples["kinetics_fs_fetches_total", "gone", "archive"] == 1
    assert samples["kinetics_fs_fetched_bytes_total", "youtube"] == 1500
    assert samples["kinetics_fs_fetch_seconds_count", "youtube"] == 1
    assert samples["kinetics_fs_fetch_seconds_bucket", "0.1", "youtube"] == 0
    assert samples["kinetics_fs_fetch_seconds_bucket", "0.25", "youtube"] == 1
    assert samples["kinetics_fs_prefetch_clips", "to_do"] == 4
    assert not [name for name, *_ in samples if name.endswith("_created")]


def test_silent_client_is_disconnected(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TIMEOUT", 0.3)
    with connect(server) as client:
        started = time.monotonic()
        assert client.recv(1) == b""
        assert 0.2 < time.monotonic() - started < 10


def test_client_that_sends_a_byte_now_and_then_is_disconnected(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_TIMEOUT", 1.0)
    with connect(server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        with pytest.raises(OSError):
            while True:  # never silent for as long as the timeout
                client.send(b"x")
                time.sleep(0.05)


def test_connections_above_the_cap_are_closed(server: MetricsServer) -> None:
    with ExitStack() as opened:
        silent = [opened.enter_context(connect(server)) for _ in range(metrics._MAX_CONNECTIONS)]
        with connect(server) as refused:
            assert refused.recv(1) == b""
        for client in silent:
            client.close()
        deadline = time.monotonic() + 20
        while True:  # the threads of the closed connections end one by one
            try:
                with urllib.request.urlopen(server.url) as answer:
                    assert b"kinetics_fs_clips" in answer.read()
                    break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_error_in_the_status_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> MountStatus:
        raise ZeroDivisionError

    with MetricsServer(0) as server:
        server.start(MountMetrics(fail))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.url)
        with caught.value as error:
            assert error.code == 500
    assert "ZeroDivisionError" in caplog.text


def test_document_lists_every_metric_with_its_labels_type_and_help() -> None:
    status = replace(STATUS, cache=replace(STATUS.cache, limit=1000))
    found = {}
    for family in text_string_to_metric_families(make_metrics(status).text()):
        if family.name.startswith("kinetics_fs_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = family.samples[0].labels.keys() - {"le"}
            found[name] = (family.type, labels, family.documentation.rstrip("."))
    documented = {}
    for line in DOCUMENT.read_text().splitlines():
        if row := re.fullmatch(r"\| `(kinetics_fs_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (.+) \|", line):
            name, names, kind, meaning = row.groups()
            documented[name] = (kind, set(names.split(",")) if names else set(), meaning)
    assert documented.keys() == found.keys()
    for name, (kind, labels, help) in found.items():
        assert documented[name][:2] == (kind, labels), name
        assert documented[name][2].startswith(help), name


def test_prometheus_client_is_not_imported_before_it_is_needed() -> None:
    """Its import takes 25 ms, which no command and no mount should pay at start."""
    modules = "kinetics_fs.mount.session, kinetics_fs.mount.native, kinetics_fs.cli.status, kinetics_fs.cli.watch"
    script = f"import sys, {modules}; print('prometheus_client' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
