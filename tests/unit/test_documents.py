"""Tests that links to sections of documents, and the modules and names in docs/architecture.md, exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kinetics_fs"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", ARCHITECTURE)))
NAMES = [
    quoted
    for quoted in QUOTED
    if re.fullmatch(r"([A-Z]\w+\.)?_?[a-zA-Z]\w+", quoted) and re.search(r"[a-z][A-Z_.]|^[A-Z][a-z]", quoted)
]
"""Names of classes, methods and functions; words of the command line and errnos look different."""


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_sections_lead_to_a_heading(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
        assert anchor in anchors(document.parent / target if target else document), f"{target}#{anchor}"


@pytest.mark.parametrize("path", [quoted for quoted in QUOTED if re.fullmatch(r"[\w/]+\.py", quoted)])
def test_modules_in_the_architecture_exist(path: str) -> None:
    if "/" in path:
        assert (PACKAGE / path).is_file() or (ROOT / path).is_file()
    else:
        assert [*PACKAGE.rglob(path), *(ROOT / "tests").rglob(path)]


def test_names_in_the_architecture_exist() -> None:
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    words = set(re.findall(r"\w+", source))
    assert len(NAMES) > 30
    assert {part for name in NAMES for part in name.split(".")} <= words
