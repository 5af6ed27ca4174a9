"""`kinetics-fs prefetch`, and what `status` and `failures` say afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.integration.cli.conftest import Prefetch
from tests.support.command_line import ENVIRONMENT, json_output, run_command
from tests.support.youtube import FakeYouTube

Arguments = tuple[str | Path, ...]


def asked(site: VideoSite) -> dict[str, int]:
    pages = [path.removeprefix("/watch/") for path, _ in site.requests if path.startswith("/watch/")]
    return {page: pages.count(page) for page in pages}


def test_prefetch_fetches_a_class_of_a_split(prefetch: Prefetch, site: VideoSite, cache: Path) -> None:
    wanted = ("--split", "validation", "--class", "surfing water", "--json")
    first = prefetch(*wanted)

    assert (first.returncode, first.stderr) == (0, "")
    result = json_output(first)
    assert result.pop("bytes") > 0
    assert result == {
        "clips": 2,
        "fetched": 2,
        "already_cached": 0,
        "failed": 0,
        "failures": {},
        "interrupted": False,
    }
    assert asked(site) == {"-demo_video": 1, "_demo_vid3_": 1}
    assert len(list(CacheLayout(cache).clips.glob("*/*.mp4"))) == 2
    assert list(CacheLayout(cache).incoming.iterdir()) == []

    again = prefetch(*wanted)
    assert again.returncode == 0
    assert (json_output(again)["fetched"], json_output(again)["already_cached"]) == (0, 2)
    assert asked(site) == {"-demo_video": 1, "_demo_vid3_": 1}

    status = json.loads(run_command("status", "--json", "--cache-dir", cache).stdout)
    assert status["cache"]["clips"] == 2
    assert status["cache"]["bytes"] == sum(path.stat().st_size for path in CacheLayout(cache).clips.glob("*/*.mp4"))


def test_max_samples_limits_each_split(prefetch: Prefetch, site: VideoSite) -> None:
    done = prefetch("--class", "surfing water", "--max-samples", "1")

    assert done.returncode == 0
    assert done.stdout == "2 fetched, 0 already cached, 0 unavailable\n"
    assert asked(site) == {"-demo_video": 1, "DEMOvideo-5": 1}


def test_prefetch_exits_with_3_if_some_clips_are_unavailable(prefetch: Prefetch, site: VideoSite, cache: Path) -> None:
    wanted = ("--class", "passing American football (in game)", "--class", "massaging_persons_head")
    part = prefetch(*wanted, "--json")
    assert part.returncode == 3
    assert json_output(part)["failures"] == {"gone": 1}
    assert (json_output(part)["clips"], json_output(part)["fetched"], json_output(part)["failed"]) == (2, 1, 1)

    again = prefetch(*wanted)
    assert again.returncode == 3
    assert again.stdout.splitlines() == [
        "0 fetched, 1 already cached, 1 unavailable",
        "  1 gone",
        f"To list the reasons by clip: kinetics-fs failures list --cache-dir {cache}",
    ]
    assert asked(site)[GONE] == 1  # it is remembered

    store = ("--cache-dir", cache)
    [failure] = json.loads(run_command("failures", "list", "--json", *store).stdout)
    assert failure["key"] == f"{GONE}_000005_000015"
    assert (failure["kind"], failure["source"], failure["attempts"]) == ("gone", "youtube", 1)
    assert "404" in failure["reason"]
    assert failure["retry_at"] > failure["last_at"] >= failure["first_at"]
    listed = run_command("failures", "list", *store).stdout
    [_, line] = listed.splitlines()
    for part_of_line in (failure["key"], "gone", " 1 ", failure["reason"]):
        assert part_of_line in line

    # A name that begins with a dash, and one that was never there.
    none = run_command("failures", "clear", *store, "--", "-abcdefghij_000010_000020")
    assert (none.returncode, none.stdout) == (0, "0 failures forgotten\n")
    cleared = run_command("failures", "clear", *store, f"{failure['key']}.mp4")
    assert (cleared.returncode, cleared.stdout) == (0, "1 failure forgotten\n")
    assert run_command("failures", "list", *store).stdout == "No failures are remembered.\n"
    assert run_command("failures", "list", "--json", *store).stdout.strip() == "[]"

    assert prefetch(*wanted).returncode == 3
    assert asked(site)[GONE] == 2
    assert run_command("failures", "clear", "--all", *store).stdout == "1 failure forgotten\n"


@pytest.mark.parametrize(
    "arguments", [(), ("--all", "--", "-abcdefghij_000010_000020"), ("nonsense",), ("abc_000010_000020",)]
)
def test_failures_clear_refuses_invalid_arguments(cache: Path, arguments: tuple[str, ...]) -> None:
    done = run_command("failures", "clear", "--cache-dir", cache, *arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_interrupted_prefetch_resumes(prefetch: Prefetch, site: VideoSite, chosen: Arguments, cache: Path) -> None:
    wanted = ("--class", "surfing water", "--json")
    site.media_delay["DEMOvideo-5"] = 60
    site.media_delay["_demo_vid3_"] = 60
    command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "prefetch"]
    command += [*map(str, chosen), "--video-url", site.url_template, "--workers", "2", *wanted]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 60
            # Two are through, and the two slow ones under way.
            while len(list(CacheLayout(cache).clips.glob("*/*.mp4"))) < 2 or len(asked(site)) < 4:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            said, complaints = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 130
    assert "Traceback" not in complaints
    told = json.loads(said)
    assert told["interrupted"]
    assert told["fetched"] == 2
    assert list(CacheLayout(cache).incoming.iterdir()) == []
    # Nothing of it is remembered as a failure, so that the next run goes on at once.
    assert json.loads(run_command("failures", "list", "--json", "--cache-dir", cache).stdout) == []
    before = asked(site)
    site.media_delay.clear()

    rest = prefetch(*wanted)

    assert rest.returncode == 0
    assert (json_output(rest)["already_cached"], json_output(rest)["fetched"]) == (2, 2)
    more = {page for page, times in asked(site).items() if times > before[page]}
    assert more == {"DEMOvideo-5", "_demo_vid3_"}
    # Clips that were merely not waited for are no failures.
    assert (told["failed"], told["failures"]) == (0, {})


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--class", "surfing watr"), "surfing water"),
        (("--split", "trian"), "train"),
        (("--release", "800"), "700-2020"),
    ],
)
def test_an_unknown_selection_is_refused_with_a_hint(prefetch: Prefetch, arguments: tuple[str, ...], hint: str) -> None:
    done = prefetch(*arguments)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert hint in done.stderr


def test_a_video_url_without_id_is_refused(chosen: Arguments) -> None:
    done = run_command("prefetch", *chosen, "--video-url", "http://127.0.0.1:9/")

    assert done.returncode == 2
    assert "{id}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.server
def test_youtube_settings_come_from_the_configuration_file(
    dataset: Dataset, annotations: Path, cache: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    with FakeYouTube() as yt:
        for video, scenario in {"-demo_video": "ok", "_demo_vid3_": "private", "demo-video2": "http-500"}.items():
            yt.add_video(video, dataset.videos / f"{video}.mp4", duration=24.0)
            yt.set_scenario(video, scenario)
        lines = [
            f"annotations = {json.dumps(str(annotations))}",
            f"cache-dir = {json.dumps(str(cache))}",
            "min_free = 0",
            'split = ["validation"]',
            "workers = 2",
            yt.config,
        ]
        config.write_text("\n".join(lines) + "\n")

        done = run_command("--config", config, "prefetch", "--json")

        assert done.returncode == 3, done.stderr
        assert json_output(done)["fetched"] == 1
        assert json_output(done)["failures"] == {"credentials": 1, "transient": 1, "gone": 1}
        assert [yt.player_requests(video) for video in ("-demo_video", GONE, "demo_video4")] == [1, 1, 0]
        assert yt.media_requests("-demo_video")
    # One line for each on standard error: which, why, and when next.
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "youtube: " in line
        assert "next retry " in line


def test_a_block_stops_the_prefetch(prefetch: Prefetch, site: VideoSite, cache: Path) -> None:
    for video in ("-demo_video", "_demo_vid3_", "demo-video2", "demo_video4", "DEMOvideo-5"):
        site.fail[video] = 429
    stopped = prefetch("--workers", "1")

    assert stopped.returncode == 3
    assert "Stopped: youtube:" in stopped.stderr
    assert "HTTP Error 429" in stopped.stderr
    assert sum(asked(site).values()) == 1
    assert run_command("failures", "list", "--cache-dir", cache).stdout == "No failures are remembered.\n"

    site.fail.clear()
    assert prefetch("--workers", "1").returncode == 3
    assert sum(asked(site).values()) == 1, "it lasts"
    run_command("failures", "clear", "--kind", "blocked", "--cache-dir", cache)
    assert prefetch("--class", "surfing water").returncode == 0


@pytest.mark.parametrize("rate", ["fast", "-1", "300/s", "1.5"])
def test_an_invalid_rate_is_refused(prefetch: Prefetch, site: VideoSite, rate: str) -> None:
    refused = prefetch(f"--max-fetches-per-hour={rate}")

    assert refused.returncode == 2
    assert "300/h" in refused.stderr
    assert asked(site) == {}


def test_trim_copy_caches_each_clip(prefetch: Prefetch, cache: Path) -> None:
    assert prefetch("--class", "surfing water", "--trim", "copy").returncode == 0

    assert len(list(CacheLayout(cache).clips.glob("*/*.mp4"))) == 4


@pytest.mark.parametrize("lines", ["", "no clip\n"])
def test_prefetch_of_a_list_without_clips_fails(prefetch: Prefetch, tmp_path: Path, lines: str) -> None:
    (tmp_path / "list").write_text(lines)

    done = prefetch("--list", tmp_path / "list")

    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot prefetch the list {tmp_path / 'list'}: it names no clip; " in done.stderr


def test_prefetch_of_an_unreadable_list_names_it_once(prefetch: Prefetch, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    done = prefetch("--list", missing)

    cause = f"cannot read the list {missing}: No such file or directory; give the path of a text file"
    assert (done.returncode, done.stderr) == (1, f"kinetics-fs: {cause}\n")
