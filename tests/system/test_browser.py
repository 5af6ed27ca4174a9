"""The page of `kinetics-fs report` in Chromium: its script runs, and the page requests nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.demo_clips import fetched as fetched
from tests.support.report_page import IMAGE, Reported, Tables
from tests.support.report_page import reported as reported

pytestmark = pytest.mark.apps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """Opens pages in a headless Chromium that cannot resolve any host.

    Args:
        folder: empty; for the profile and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, page: Path, fragment: str = "") -> tuple[str, str]:
        """Return the document after its script has run, and what the browser logged.

        Raises:
            AssertionError: the page requested an address.
        """
        log = self._folder / "net.json"
        done = self._run(f"--log-net-log={log}", "--dump-dom", f"{page.as_uri()}{fragment}")
        assert requested_by_pages(log) == set()
        return done.stdout, done.stderr

    def screenshot(self, page: Path) -> cv2.typing.MatLike:
        """Return the pixels of the page in a window of 1200 × 1600."""
        picture = self._folder / "page.png"
        self._run(f"--screenshot={picture}", "--window-size=1200,1600", page.as_uri())
        pixels = cv2.imread(str(picture))
        assert pixels is not None
        return pixels

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert CHROMIUM is not None
        return subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
                *(f"--user-data-dir={self._folder / 'profile'}", "--hide-scrollbars", *arguments),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )


def requested_by_pages(net_log: Path) -> set[str]:
    """Return the addresses that pages requested, without files and without requests of Chromium's own."""
    events = json.loads(net_log.read_text())["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return {
        request["url"]
        for request in requests
        if request["initiator"] != "not an origin" and not request["url"].startswith("file:")
    }


def title_of(document: str) -> str:
    [title] = re.findall("<title>.*</title>", document)
    return str(title)


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    if CHROMIUM is None:
        pytest.skip("NOT TESTED: the page in a browser, because Chromium is not installed")
    return Browser(tmp_path)


def test_the_script_sorts_and_filters_the_classes(reported: Reported, browser: Browser) -> None:
    document, log = browser.open(reported.page)

    assert "CONSOLE" not in log
    assert len(Tables(document).rows["classes"]) == 2 + 7
    assert "7 of 7 rows" in document
    assert (document.count("<button"), document.count("<script")) == (9, 1)

    document, log = browser.open(reported.page, "#show=missing&sort=-untried&split=train&find=u+A")
    assert "CONSOLE" not in log
    rows = Tables(document).rows["classes"]
    assert [row[:2] for row in rows[1:-1]] == [["surfing water", "train"], ["zumba", "train"]]
    assert rows[-1] == ["Total", "", "0.0", "3", "0", "0", "0", "0", "3"]
    assert re.search(r'data-by="untried" aria-sort="descending"', document)


def test_the_page_is_painted(reported: Reported, browser: Browser) -> None:
    pixels = browser.screenshot(reported.page)

    assert pixels.shape[:2] == (1600, 1200)
    # A page that fails to render is blank from some line on.
    assert all(part.std() > 10 for part in np.split(pixels[:1200], 3))


def test_an_injected_script_does_not_run(reported: Reported, browser: Browser, tmp_path: Path) -> None:
    # As if escaping had failed: the page's own policy stops the script.
    page = tmp_path / "page.html"
    injected = f"<main>{IMAGE}<script>document.title='stolen'</script>"
    page.write_text(reported.page.read_text().replace("<main>", injected))

    document, log = browser.open(page)

    assert title_of(document) == title_of(reported.page.read_text())
    assert log.count("Content Security Policy") >= 2


def test_the_browser_reports_requests_and_errors(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/asked">')
    with pytest.raises(AssertionError, match=r"127.0.0.1:9/asked"):
        browser.open(page)

    page.write_text('<script>throw Error("told")</script>')
    assert "CONSOLE" in browser.open(page)[1]
