"""The status and the metrics of a mount."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE, VIDEOS
from kinetics_fs.demo.site import VideoSite
from tests.conftest import MountFactory
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import Mounted, run_command
from tests.support.mounts import CLASS, clip_path, reading, short_clips, wait_until

READY, WANTED, LOST = Clip("demo-video2", 5, 6), Clip("-demo_video", 3, 4), Clip(GONE, 5, 6)
SLOW = [clip for clip in short_clips(1) if clip.youtube_id == "demo_video4"][:6]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def mounted(mount: MountFactory, site: VideoSite, tmp_path: Path) -> Mounted:
    """A mount with fetched clips, an unavailable clip, and clips whose fetch takes long."""
    rows = [Labelled(CLASS, clip, "validate") for clip in [READY, WANTED, LOST, *SLOW]]
    annotations = write_annotations(tmp_path / "some.csv", rows)
    # The limit leaves space for one clip besides the space reserved for a fetch.
    mounted = mount("--annotations", annotations, "--workers", "1", "--metrics-port", "0", "--cache-size", "2.15MB")
    for clip in (READY, WANTED, WANTED, WANTED):
        clip_path(mounted, clip).read_bytes()
    with pytest.raises(OSError):
        clip_path(mounted, LOST).read_bytes()
    site.delay.update(dict.fromkeys(VIDEOS, 600.0))
    return mounted


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_status_and_metrics_of_a_busy_mount(mounted: Mounted, site: VideoSite) -> None:
    with reading([clip_path(mounted, clip) for clip in SLOW[:5]]):
        wait_until(lambda: mounted.status()["fetch"]["queue"]["foreground"] == 4)
        wait_until(lambda: mounted.status()["fetch"]["in_flight"][0]["source"])
        status = mounted.status()
        text = (mounted.root / ".kinetics/metrics").read_text()
        asked = urllib.request.urlopen(status["metrics_url"])
        with asked:
            by_http = parsed(asked.read().decode())
        said = run_command("status", mounted.root)
        coverage = run_command("status", "--coverage", mounted.root)

    # The status
    opens, fetch = status["opens"], status["fetch"]
    assert (opens["from_cache"], opens["not_in_cache"], opens["hit_rate"]) == (2, 8, 0.2)
    assert (opens["fetched"], opens["failed"], opens["waiting"]) == (2, 1, 5)
    assert fetch["queue"] == {"foreground": 4, "soon": 0, "background": 0}
    assert fetch["pending"] == 5
    [in_flight] = fetch["in_flight"]
    assert (in_flight["priority"], in_flight["source"]) == ("foreground", "youtube")
    assert in_flight["clip"] in {clip.key for clip in SLOW}
    assert fetch["rates"]["last_minute"]["clips_per_minute"] == 2
    assert fetch["rates"]["last_hour"]["clips_per_minute"] > 0
    assert fetch["rates"]["last_minute"]["bytes_per_second"] > 0
    [failure] = fetch["last_failures"]
    assert (failure["clip"], failure["source"], failure["kind"]) == (LOST.key, "youtube", "gone")
    assert failure["retry_at"] > failure["at"]
    assert (status["evicted"], status["cache"]["clips"]) == (1, 1)
    for words in ("(hit rate 20.0%); 5 waiting", "4 foreground", "2.0 clips/min", LOST.key, status["metrics_url"]):
        assert words in said.stdout
    [row] = [line.split() for line in coverage.stdout.splitlines() if CLASS in line]
    assert row == ["validation", *CLASS.split(), "9", "1", "11.1%", "0", "1"]

    # The metrics, the same in the file and by HTTP
    metrics = parsed(text)
    assert by_http.keys() == metrics.keys()

    def value(name: str, **labels: str) -> float:
        return metrics[f"kinetics_fs_{name}", tuple(sorted(labels.items()))]

    assert {result: value("opens_total", result=result) for result in ("cached", "fetched", "failed")} == {
        "cached": 2,
        "fetched": 2,
        "failed": 1,
    }
    assert value("waiting_opens") == 5
    assert value("queue", priority="foreground") == 4
    assert value("fetching") == 1
    assert value("fetches_total", source="youtube", outcome="fetched") == 2
    assert value("fetches_total", source="youtube", outcome="gone") == 1
    assert value("fetch_seconds_count", source="youtube") == value("fetch_seconds_bucket", source="youtube", le="+Inf")
    assert value("fetch_seconds_count", source="youtube") == 2
    assert 0 < value("fetch_seconds_sum", source="youtube") < 60
    assert value("cache_bytes") == clip_path(mounted, WANTED).stat().st_size
    assert value("fetched_bytes_total", source="youtube") > value("cache_bytes")
    assert value("cache_limit_bytes") == 2_150_000
    assert (value("cache_clips"), value("evictions_total")) == (1, 1)
    assert (value("failures", kind="gone"), value("failures", kind="transient")) == (1, 0)
    assert value("source_blocked", source="youtube") == 0
    assert value("build_info", version=status["version"], release="600") == 1
    assert metrics["process_start_time_seconds", ()] > 0


def test_metrics_server_answers_get_and_head_of_its_path_alone(mounted: Mounted, mount: MountFactory) -> None:
    address = urlsplit(mounted.status()["metrics_url"])
    assert address.hostname == "127.0.0.1"

    def status(method: str, path: str) -> int:
        request = urllib.request.Request(f"http://{address.netloc}{path}", method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    # A client that sends nothing does not keep the others waiting.
    with socket.create_connection((address.hostname, address.port or 0)):
        started = time.monotonic()
        assert [status("GET", "/metrics"), status("HEAD", "/metrics"), status("GET", "/")] == [200, 200, 404]
        assert time.monotonic() - started < 5
    with socket.create_connection((address.hostname, address.port or 0)) as client, client.makefile("rwb") as file:
        file.write(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        file.flush()
        assert file.read().endswith(b"\r\n\r\n")
    assert [status(method, "/metrics") for method in ("POST", "PUT", "DELETE")] == [405] * 3

    with pytest.raises(RuntimeError, match="give another --metrics-port"):
        mount("--metrics-port", str(address.port))
