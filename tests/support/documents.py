"""Examples in the documents, for tests that run them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"


class Example(NamedTuple):
    """A command of a console block, and its output; `…` in the output matches any text."""

    command: str
    output: str

    def matches(self, printed: str) -> bool:
        """Return whether the output of a command is that of the document."""
        pattern = ".*".join(map(re.escape, self.output.split("…")))
        return re.fullmatch(pattern, printed.rstrip("\n")) is not None


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a language in a document of `docs`."""
    text = (DOCS / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def examples(document: str) -> list[Example]:
    """Return all commands in the console blocks of a document, in order."""
    found: list[Example] = []
    for block in blocks(document, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command, output.rstrip("\n")))
    return found


def run(shown: list[Example], folder: Path, environment: Mapping[str, str], *, timeout: float) -> Iterator[str]:
    """Run commands in one shell, as a reader of the document would; yield the output of each."""
    end = "\nprintf '\\0'\n"
    done = subprocess.run(
        ["bash", "-c", end.join(example.command for example in shown) + end],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    printed = done.stdout.decode(errors="replace").split("\0")
    assert len(printed) == len(shown) + 1, printed[-1]
    yield from printed[:-1]
