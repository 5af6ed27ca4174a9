"""Fixtures for sources, which run in worker processes otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.youtube import FakeYouTube


@pytest.fixture
def as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back afterwards: a source goes elsewhere
    monkeypatch.setenv("YTDLP_NO_PLUGINS", "1")


@pytest.fixture
def yt() -> Iterator[FakeYouTube]:
    """A YouTube that has no videos yet."""
    with FakeYouTube() as fake:
        yield fake
