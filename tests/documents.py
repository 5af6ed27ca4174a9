"""Examples in the documents, as tests run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent.parent / "docs"


class Example(NamedTuple):
    """A command of a console block, and what it prints; `…` in it stands for anything."""

    command: str
    output: str

    def matches(self, printed: str) -> bool:
        """Whether a command that printed this did what the document says."""
        pattern = ".*".join(map(re.escape, self.output.split("…")))
        return re.fullmatch(pattern, printed.rstrip("\n")) is not None


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language in a document of `docs`."""
    text = (DOCS / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def examples(document: str) -> list[Example]:
    """All commands in the console blocks of a document, in order."""
    found: list[Example] = []
    for block in blocks(document, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command, output.rstrip("\n")))
    return found
