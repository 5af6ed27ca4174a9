"""The examples of README.md and of documents in docs print what is shown."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import kinetics_fs
from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts
from tests.conftest import Dataset
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import ENVIRONMENT, Mounted
from tests.support.documents import DOCS, Example, blocks, examples, run
from tests.support.mounts import write_clips
from tests.support.native_mounts import NEEDS_FUSE

EXAMPLE = Clip("-a1B2c3D4e5", 10, 20)
"""The clip that the documents name."""
GONE = Clip("AGoneVideo_", 0, 10)
OTHER = Clip("demo_video4", 0, 1)
CLASSES = ("surfing water", "springboard diving")
ELSEWHERE = [("abseiling", "validate"), ("acting in play", "validate"), (CLASSES[0], "train"), (CLASSES[0], "test")]

DEFAULTS = """
import json, os, kinetics_fs
class Library(kinetics_fs.Library):
    def __init__(self, **values):
        super().__init__(**{**json.loads(os.environ["DEFAULTS"]), **values})
kinetics_fs.Library = Library
"""
"""Code before an example of Python that gives other defaults to `Library`."""


class Reader(NamedTuple):
    """A user who has followed the installation, and whose clips come from a local site."""

    home: Path
    settings: dict[str, object]
    environment: dict[str, str]


@pytest.fixture
def reader(dataset: Dataset, tmp_path: Path) -> Iterator[Reader]:
    many = [Clip("demo-video2", second, second + 1) for second in range(9)]
    some = [Clip("_demo_vid3_", second, second + 1) for second in range(2)]
    clips = write_clips(tmp_path / "clips", [EXAMPLE, OTHER, *many, *some])
    rows = [Labelled(CLASSES[0], clip, "validate") for clip in [EXAMPLE, *many]]
    rows += [Labelled(CLASSES[1], clip, "validate") for clip in some]
    rows += [Labelled(label, OTHER, split) for label, split in ELSEWHERE]
    rows += [Labelled("unavailable", GONE, "validate")]
    home = tmp_path / "home"
    program, config = home / "bin/kinetics-fs", home / ".config/kinetics-fs/config.toml"
    for path in (program, config):
        path.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kinetics_fs "$@"\n')
    program.chmod(0o755)
    with VideoSite(dataset.videos) as site:
        settings: dict[str, object] = {
            "annotations": [str(write_annotations(tmp_path / "annotations.csv", rows))],
            "min-free": 0,
            "folder": [str(clips)],
            "source": ["folder", "youtube"],
            "video-url": site.url_template,
        }
        config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()) + "\n")
        environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("XDG_", "KINETICS"))}
        yield Reader(
            home, settings, {**environment, "HOME": str(home), "PATH": f"{program.parent}:{os.environ['PATH']}"}
        )
        for path in find_mounts():
            if path.is_relative_to(home):
                mounted = Mounted(path)
                mounted.pid = mounted.status()["pid"]
                mounted.end()


def shell(text: str) -> list[Example]:
    """Return the commands that a reader can run anywhere: those after the installation."""
    return [one for one in examples(text) if not re.match(r"git|make|python3|export", one.command)]


@NEEDS_FUSE
@pytest.mark.parametrize("document", ["../README.md", "quickstart.md", "clusters.md"])
def test_commands_print_what_the_document_shows(reader: Reader, document: str) -> None:
    shown = shell(document)
    assert len(shown) >= 7
    printed = list(run(shown, reader.home, {**reader.environment, "LC_ALL": "C"}, timeout=100))
    for example, text in zip(shown, printed, strict=True):
        assert not re.search(r"^(Traceback|kinetics-fs: |Usage: |Error: )", text, re.MULTILINE), text
        if example.output:
            expected = example._replace(
                output=example.output.replace("/home/you", str(reader.home)).replace("4711", "…")
            )
            assert words(expected).matches(" ".join(text.split())), text


@NEEDS_FUSE
def test_the_reason_of_a_failure_is_read_as_troubleshooting_says(reader: Reader) -> None:
    [example] = [one for one in examples("troubleshooting.md") if "user.kinetics.error" in one.command]
    clip = reader.home / f"kinetics/validation/unavailable/{GONE.name}"
    commands = ["kinetics-fs mount ~/kinetics", f"clip={shlex.quote(str(clip))}; ! cat $clip", example.command]
    *_, printed = run([Example(command, "") for command in commands], reader.home, reader.environment, timeout=60)
    assert printed.startswith(example.output.partition(": ")[0] + ": ")


def test_python_prints_what_library_md_shows(reader: Reader) -> None:
    values = {name.replace("-", "_"): value for name, value in reader.settings.items()}
    values["cache_dir"] = str(reader.home / "cache")
    for block in blocks("library.md", "python"):
        done = subprocess.run(
            [sys.executable, "-c", DEFAULTS + block],
            env={**reader.environment, "DEFAULTS": json.dumps(values)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown = re.findall(r"^ *print\(.*\) *# (.*)$", block, re.MULTILINE)
        assert shown
        assert done.stdout.splitlines()[: len(shown)] == shown


def test_library_md_names_what_exists() -> None:
    text = (DOCS / "library.md").read_text()
    named = re.findall(r"`library\.(\w+)", text)
    assert len(named) > 20
    for name in named:
        assert hasattr(kinetics_fs.Library, name), name


def words(example: Example) -> Example:
    return example._replace(output=" ".join(example.output.split()))
