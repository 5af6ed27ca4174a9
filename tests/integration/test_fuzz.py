"""A short run of every target of `python -m benchmarks fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzzing import TARGETS, fuzz


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_gives_a_result_or_an_error_of_this_package(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    assert fuzz(name, folder, 0.02).findings == []
