"""The imports of the program and of its tests.

The import graph has no cycle, including cycles of a package with its modules, which import-linter ignores. A test
module imports no other test module.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

TESTS = Path(__file__).parents[1]


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("kinetics_fs")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    TopologicalSorter(imports).prepare()  # raises CycleError with the modules of a cycle


def test_tests_share_helpers_only_through_support_and_their_own_conftest() -> None:
    faults = []
    for path in TESTS.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("tests."):
                continue
            *folders, name = node.module.split(".") if node.module else []
            own = folders == ["tests", *path.parent.relative_to(TESTS).parts[: len(folders) - 1]]
            if name.startswith("test_") or (name == "conftest" and folders != ["tests"] and not own):
                faults.append(f"{path.relative_to(TESTS)} imports {node.module}")
    assert faults == []


@pytest.mark.parametrize("module", ["kinetics_fs.fetch.worker", "kinetics_fs.fetch.reader_process"])
def test_a_process_that_fetches_starts_without_what_it_may_not_need(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    needless = {"hashlib", "kinetics_fs.catalog.catalog", "kinetics_fs.store", "requests", "sqlite3", "ssl", "yt_dlp"}
    assert module in loaded
    assert needless.isdisjoint(loaded)


@pytest.mark.parametrize("module", ["kinetics_fs.mount.session", "kinetics_fs.api"])
def test_a_machine_without_a_shared_store_does_not_load_its_modules(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert module in loaded
    assert "kinetics_fs.shared" not in loaded
