"""A page of `kinetics-fs report` about a cache with clips in every state, and the tables of such a page."""

from __future__ import annotations

import csv
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import Store
from tests.conftest import made_once
from tests.support.command_line import run_command
from tests.support.demo_clips import ROWS, as_csv

HOSTILE = '"><script>document.title="stolen"'
IMAGE = "<img src=http://localhost/asked onerror=document.title=location>"
EVICTED, REFUSED, DAMAGED = Clip("demo-video2", 0, 2), Clip("DEMOvideo-5", 2, 4), Clip("demo-video2", 4, 6)
EXTRA = [
    (HOSTILE, DAMAGED.youtube_id, DAMAGED.start, DAMAGED.end, "validate"),
    (HOSTILE, REFUSED.youtube_id, REFUSED.start, REFUSED.end, "train"),
    ("zumba", "untriedOne_", 0, 10, "train"),
]


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
            store.remove(EVICTED)
            store.failures.remember(Clip(GONE, 5, 15), FetchError(FailureKind.GONE, "Private video", source="youtube"))
            store.failures.remember(REFUSED, FetchError(FailureKind.CREDENTIALS, f"{IMAGE}{HOSTILE}", source="youtube"))
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
        done = run_command("report", *chosen, "--cache-size", "1GB", "-o", page)
        assert done.returncode == 0, done.stderr
        return Reported(cache, chosen, page)

    return made_once("reported", tmp_path_factory, make)


class Tables(HTMLParser):
    """The text of the cells in the tables of a page, without hidden rows.

    Args:
        page: HTML.
    """

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
