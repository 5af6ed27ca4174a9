"""The examples of docs/semantics.md are true, with each front end."""

from __future__ import annotations

import subprocess

from tests.conftest import MountFactory
from tests.documents import examples
from tests.harness import ENVIRONMENT


def test_the_examples_print_what_the_page_says(mount: MountFactory) -> None:
    root = mount().root
    shown = examples("semantics.md")
    assert len(shown) > 15
    for example in shown:
        done = subprocess.run(
            ["bash", "-c", example.command],
            cwd=root,
            env={**ENVIRONMENT, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        printed = done.stdout.decode(errors="replace")
        assert example.matches(printed), f"$ {example.command}\n{printed}"
