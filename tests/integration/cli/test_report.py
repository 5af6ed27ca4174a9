"""Tests of `kinetics-fs report`: the numbers in the page for a real cache."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from kinetics_fs.control.status import UnreachableMount
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind
from kinetics_fs.report import gather, render
from kinetics_fs.store import CacheLayout, Store
from tests.support.command_line import Mounted, run_command
from tests.support.demo_clips import ROWS
from tests.support.report_page import EXTRA, HOSTILE, IMAGE, Reported, Tables
from tests.support.report_page import reported as reported
from tests.support.store import query

COLUMNS = ("clips", "cached", "short", "evicted", "unavailable", "untried")
ODD_MOUNTS = [UnreachableMount(mountpoint="</section>", reason="<b>", advice="<i>", hung=True)]


def counts_in_database(cache: Path) -> dict[tuple[str, str], Counter[str]]:
    """Count the clips of each label and split by state, from the database."""
    database = CacheLayout(cache).state_database
    known = dict(query(database, "SELECT key, cached FROM clip"))
    failed = {key for (key,) in query(database, "SELECT key FROM failure")}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for label, video, start, end, split in ROWS + EXTRA:
        key = f"{video}_{start:06d}_{end:06d}"
        state = "unavailable" if key in failed else ("evicted", "cached")[known[key]] if key in known else "untried"
        counts.setdefault((label, "validation" if split == "validate" else split), Counter()).update(["clips", state])
    return counts


def test_numbers_equal_those_of_the_state_database(reported: Reported) -> None:
    text = reported.page.read_text()
    rows = Tables(text).rows
    expected = counts_in_database(reported.cache)
    assert sum(expected.values(), Counter()) == {"clips": 9, "cached": 3, "evicted": 1, "unavailable": 2, "untried": 3}

    shown = {(row[0], row[1]): row[3:] for row in rows["classes"][1:-1]}
    assert shown == {row: [str(counts[name]) for name in COLUMNS] for row, counts in expected.items()}
    train = sum((counts for (_, split), counts in expected.items() if split == "train"), Counter())
    assert ["train", "0.0", "", *(str(train[name]) for name in COLUMNS)] in rows["splits"]
    assert rows["classes"][-1] == ["Total", "", "33.3", "9", "3", "0", "1", "2", "3"]
    assert [row[:2] for row in rows["failures"] if row[0]] == [["Kind", "Clips"], ["credentials", "1"], ["gone", "1"]]
    assert ["", "1", f"{IMAGE}{HOSTILE}"] in rows["failures"]
    [(size,)] = query(reported.cache / "state.sqlite", "SELECT sum(size) FROM clip WHERE cached")
    said = json.loads(run_command("report", "--json", *reported.chosen).stdout)
    assert (said["cache"]["clips"], said["cache"]["bytes"]) == (3, size)
    assert said["total"] == {"clips": 9, "cached": 3, "short": 0, "evicted": 1, "unavailable": 2, "untried": 3}
    # The fetches of the prefetch are in the history, and in the page as a chart and in numbers.
    [day] = rows["time"][1:]
    assert (day[1], day[3:]) == ("3", ["3", "0", "0", "0"])
    assert "fetched: 3 at first" in text
    assert text.count("<polyline") >= 6


def test_thumbnails_do_not_change_access_times(reported: Reported, tmp_path: Path) -> None:
    database = reported.cache / "state.sqlite"
    before = query(database, "SELECT key, opened_at FROM clip ORDER BY key")
    page = tmp_path / "page.html"
    assert run_command("report", *reported.chosen, "-o", page).returncode == 0
    assert query(database, "SELECT key, opened_at FROM clip ORDER BY key") == before

    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    assert len(found) == 2
    for jpeg in found:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape[1] == 208
        assert picture.std() > 20  # a test card, not grey
    assert page.read_text().count("No thumbnail: ") == 1
    few = run_command("report", *reported.chosen, "--thumbnails", "1", "-o", "-").stdout
    assert (few.count("<figure>"), few.count("</html>")) == (3 + 1, 1)


def test_report_shows_mounts_and_their_prefetches(site: VideoSite, reported: Reported, tmp_path: Path) -> None:
    cache, page = tmp_path / "cache", tmp_path / "page.html"
    shutil.copytree(reported.cache, cache)
    chosen = *reported.chosen, "--cache-dir", str(cache)
    with Mounted(tmp_path / "mount", *chosen, "--video-url", site.url_template) as mounted:
        path = mounted.root / "validation/surfing water/-demo_video_000010_000012.mp4"
        for _ in range(3):
            path.read_bytes()
        assert run_command("prefetch", mounted.root, "--split", "validation").returncode == 0
        assert run_command("jobs", "wait", mounted.root).returncode == 3
        assert run_command("report", *chosen, "-o", page).returncode == 0

    assert f"<h3>{mounted.root}</h3>" in page.read_text()
    assert ["1", "validation; all classes", "done", "5", "1", "3", "1"] in Tables(page.read_text()).rows["mounts"]
    said = json.loads(run_command("report", "--json", *chosen).stdout)
    assert str(mounted.root) not in [mount["mountpoint"] for mount in said["mounts"]]
    assert sum(sample["from_cache"] for sample in said["history"]) == 3


def test_an_empty_cache_and_output_paths(annotations: Path, cache: Path, tmp_path: Path) -> None:
    chosen = "--annotations", annotations, "--cache-dir", cache
    page = tmp_path / "page.html"
    assert run_command("report", *chosen, "-o", page).returncode == 0
    assert "No history yet" in page.read_text()

    for path in (tmp_path, tmp_path / "nowhere/page.html"):
        done = run_command("report", *chosen, "-o", path)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_with_700_classes_and_many_reasons_stays_small(tmp_path: Path) -> None:
    classes = [
        {"split": split, "label": f"a class of some length, number {number}", **dict.fromkeys(COLUMNS, 123456)}
        for split in ("train", "validation", "test")
        for number in range(700)
    ]
    reasons = {f"{number} {'x' * 490}": 1 for number in range(10_000)}
    with Store(tmp_path / "cache") as store:
        failures = {str(kind): {"clips": 10_000, "reasons": reasons} for kind in FailureKind}
        selection = {"release": "700-2020", "annotations": (), "splits": (), "classes": (), "max_samples": None}
        gathered = gather(store, selection=selection, classes=classes, failures=failures, mounts=ODD_MOUNTS)
    page = render(gathered, [])

    assert len(page.encode()) < 1_000_000
    assert len(Tables(page).rows["classes"]) == 2 + 2100
    assert "and 9,980 more reasons" in page
