"""Tests of `kinetics-fs report`: the numbers in the page for a real cache, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.report import gather, render
from kinetics_fs.store import Store
from tests.conftest import made_once
from tests.integration.cli.conftest import ROWS, as_csv
from tests.support.command_line import Mounted, kinetics_fs
from tests.support.store import query

HOSTILE = '"><script>document.title="stolen"'
IMAGE = "<img src=http://localhost/asked onerror=document.title=location>"
EVICTED, REFUSED, DAMAGED = Clip("demo-video2", 0, 2), Clip("DEMOvideo-5", 2, 4), Clip("demo-video2", 4, 6)
EXTRA = [
    (HOSTILE, DAMAGED.youtube_id, DAMAGED.start, DAMAGED.end, "validate"),
    (HOSTILE, REFUSED.youtube_id, REFUSED.start, REFUSED.end, "train"),
    ("zumba", "untriedOne_", 0, 10, "train"),
]
COLUMNS = ("clips", "cached", "evicted", "unavailable", "untried")
ODD_MOUNTS = [{"clips": "many", "cache": 3, "prefetches": ["one"]}, {"dead": "<b>", "opens": [], "prefetches": 7}]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Reported(NamedTuple):
    """A cache, the arguments that select it, and its page."""

    cache: Path
    chosen: tuple[str, ...]
    page: Path


@pytest.fixture(scope="session")
def reported(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A cache with cached, evicted, unavailable and untried clips, and one cached file that is not a video."""

    def make(folder: Path) -> Reported:
        cache, annotations = folder / "cache", folder / "annotations.csv"
        shutil.copytree(fetched, cache)
        with Store(cache) as store:
            store.drop(EVICTED)
            store.remember_failure(Clip(GONE, 5, 15), FetchError(FailureKind.GONE, "Private video", source="youtube"))
            store.remember_failure(REFUSED, FetchError(FailureKind.CREDENTIALS, f"{IMAGE}{HOSTILE}", source="youtube"))
            claim = store.claim(DAMAGED)
            assert claim is not None
            with claim:
                (claim.folder / "clip.mp4").write_text("no video")
                claim.publish(claim.folder / "clip.mp4", "youtube")
        with annotations.open("w") as file:
            file.write(as_csv(ROWS))
            csv.writer(file).writerows(EXTRA)
        chosen = "--annotations", str(annotations), "--cache-dir", str(cache), "--min-free", "0"
        page = folder / "page.html"
        done = kinetics_fs("report", *chosen, "--cache-size", "1GB", "-o", page)
        assert done.returncode == 0, done.stderr
        return Reported(cache, chosen, page)

    return made_once("reported", tmp_path_factory, make)


class Tables(HTMLParser):
    """The text of the cells of all tables of a page, hidden rows left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._of = ""
        self._text: list[str] | None = None
        self._shown = True
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "section":
            self._of = given.get("id") or ""
        if tag == "tr":
            self._shown = "hidden" not in given
            if self._shown:
                self.rows.setdefault(self._of, []).append([])
        if tag in ("th", "td") and self._shown:
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._text is not None:
            self.rows[self._of][-1].append("".join(self._text).strip())
            self._text = None


def counts_in_database(cache: Path) -> dict[tuple[str, str], Counter[str]]:
    """Count the clips of each label and split by state, from the database."""
    ledger = cache / "ledger.sqlite"
    known = dict(query(ledger, "SELECT key, held FROM clip"))
    failed = {key for (key,) in query(ledger, "SELECT key FROM failure")}
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
    assert shown == {place: [str(counts[name]) for name in COLUMNS] for place, counts in expected.items()}
    train = sum((counts for (_, split), counts in expected.items() if split == "train"), Counter())
    assert ["train", "0.0", "", *(str(train[name]) for name in COLUMNS)] in rows["splits"]
    assert rows["classes"][-1] == ["Together", "", "33.3", "9", "3", "1", "2", "3"]
    assert [row[:2] for row in rows["failures"] if row[0]] == [["Kind", "Clips"], ["credentials", "1"], ["gone", "1"]]
    assert ["", "1", f"{IMAGE}{HOSTILE}"] in rows["failures"]
    [(size,)] = query(reported.cache / "ledger.sqlite", "SELECT sum(size) FROM clip WHERE held")
    said = json.loads(kinetics_fs("report", "--json", *reported.chosen).stdout)
    assert (said["cache"]["clips"], said["cache"]["bytes"]) == (3, size)
    assert said["total"] == {"clips": 9, "cached": 3, "evicted": 1, "unavailable": 2, "untried": 3}
    # The fetches of the prefetch are in the history, and in the page as a chart and in numbers.
    [day] = rows["time"][1:]
    assert (day[1], day[3:]) == ("3", ["3", "0", "0", "0"])
    assert "fetched: 3 at first" in text
    assert text.count("<polyline") >= 6


def test_thumbnails_do_not_change_access_times(reported: Reported, tmp_path: Path) -> None:
    ledger = reported.cache / "ledger.sqlite"
    before = query(ledger, "SELECT key, opened_at FROM clip ORDER BY key")
    page = tmp_path / "page.html"
    assert kinetics_fs("report", *reported.chosen, "-o", page).returncode == 0
    assert query(ledger, "SELECT key, opened_at FROM clip ORDER BY key") == before

    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    assert len(found) == 2
    for jpeg in found:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape[1] == 208
        assert picture.std() > 20  # a test card, not grey
    assert page.read_text().count("No picture: ") == 1
    few = kinetics_fs("report", *reported.chosen, "--thumbnails", "1", "-o", "-").stdout
    assert (few.count("<figure>"), few.count("</html>")) == (3 + 1, 1)


def test_a_mount_and_what_it_did(site: VideoSite, reported: Reported, tmp_path: Path) -> None:
    cache, page = tmp_path / "cache", tmp_path / "page.html"
    shutil.copytree(reported.cache, cache)
    chosen = *reported.chosen, "--cache-dir", str(cache)
    with Mounted(tmp_path / "mount", *chosen, "--video-url", site.url_template) as mounted:
        path = mounted.root / "validation/surfing water/-demo_video_000010_000012.mp4"
        for _ in range(3):
            path.read_bytes()
        assert kinetics_fs("prefetch", mounted.root, "--split", "validation", "--wait").returncode == 3
        assert kinetics_fs("report", *chosen, "-o", page).returncode == 0

    assert f"<h3>{mounted.root}</h3>" in page.read_text()
    assert ["1", "validation; all classes", "done", "5", "1", "3", "1"] in Tables(page.read_text()).rows["mounts"]
    said = json.loads(kinetics_fs("report", "--json", *chosen).stdout)
    assert str(mounted.root) not in [mount["mountpoint"] for mount in said["mounts"]]
    assert sum(sample["from_cache"] for sample in said["history"]) == 3


def test_an_empty_cache_and_output_paths(annotations: Path, cache: Path, tmp_path: Path) -> None:
    chosen = "--annotations", annotations, "--cache-dir", cache
    page = tmp_path / "page.html"
    assert kinetics_fs("report", *chosen, "-o", page).returncode == 0
    assert "No history yet" in page.read_text()

    for place in (tmp_path, tmp_path / "nowhere/page.html"):
        done = kinetics_fs("report", *chosen, "-o", place)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_of_700_classes_and_any_number_of_reasons_is_small(tmp_path: Path) -> None:
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


# In a browser -----------------------------------------------------------------------------------------------------

Browse = Callable[..., tuple[str, str]]


def asked_by_pages(net_log: Path) -> set[str]:
    """Return the URLs, except files, that a page requested; Chromium's own requests have no origin."""
    events = json.loads(net_log.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {one["url"] for one in asked if one["initiator"] != "not an origin" and not one["url"].startswith("file:")}


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in Chromium and return its final DOM and the browser's log. Fails if the page requests anything."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: the page was not tested in a browser (Debian: apt-get install chromium)")

    def run(page: Path, fragment: str = "") -> tuple[str, str]:
        profile, net = tmp_path / "profile", tmp_path / "net.json"
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
                *(f"--user-data-dir={profile}", f"--log-net-log={net}", "--dump-dom", f"{page.as_uri()}{fragment}"),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert asked_by_pages(net) == set()
        return done.stdout, done.stderr

    return run


def test_in_a_browser(reported: Reported, browse: Browse) -> None:
    became, logged = browse(reported.page)

    assert "CONSOLE" not in logged
    assert "<title>Kinetics-600: coverage</title>" in became
    assert len(Tables(became).rows["classes"]) == 2 + 7
    assert "7 of 7 rows" in became
    assert (became.count("<button"), became.count("<script")) == (8, 1)

    became, logged = browse(reported.page, "#show=missing&sort=-untried&split=train&find=u+A")
    assert "CONSOLE" not in logged
    rows = Tables(became).rows["classes"]
    assert [row[:2] for row in rows[1:-1]] == [["surfing water", "train"], ["zumba", "train"]]
    assert rows[-1] == ["Together", "", "0.0", "3", "0", "0", "0", "3"]
    assert re.search(r'data-by="untried" aria-sort="descending"', became)


def test_policy_blocks_an_injected_script(reported: Reported, browse: Browse, tmp_path: Path) -> None:
    # Simulates a failure of escaping: the content security policy of the page must stop the script and the image.
    page = tmp_path / "page.html"
    page.write_text(
        reported.page.read_text().replace("<main>", f"<main>{IMAGE}<script>document.title='stolen'</script>")
    )

    became, logged = browse(page)

    assert "<title>Kinetics-600: coverage</title>" in became
    assert logged.count("Content Security Policy") >= 2


def test_browse_detects_requests_and_errors(browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/asked"><script>throw Error("told")</script>')
    with pytest.raises(AssertionError, match=r"127.0.0.1:9/asked"):
        browse(page)
