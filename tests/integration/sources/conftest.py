"""Fixtures for sources, which normally run in worker processes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the working directory after the test, because sources change it."""
    monkeypatch.chdir(tmp_path)
