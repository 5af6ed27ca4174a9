"""Archives of a few classes, with the annotation file that lists their clips, for tests of `fill` and `index`."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from kinetics_fs.catalog import Clip
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import run_command
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, in_class, make_tar

SURFING = "600/val/surfing water.tar.gz"
HEADS = "600/val/massaging person's head.tar.gz"
TRAIN = "600/train/surfing water.tar.gz"
OTHER = "600/val/zumba.tar.gz"

Clips = dict[Clip, bytes]


class AnnotatedArchives:
    """Annotations, and the archives of their classes.

    Attributes:
        clips: the clips of each archive.
        arguments: arguments that make a command use the annotations.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        videos = dataset.clips
        self.folder = folder / "archives"
        self.cache = folder / "cache"
        self.annotations = folder / "annotations.csv"
        self.clips: dict[str, Clips] = {
            SURFING: {Clip(f"-surfing__{number}", 0, 10): videos[number] for number in range(4)},
            HEADS: {Clip(f"_heads____{number}", 5, 15): videos[number] for number in range(3)},
            TRAIN: {Clip("train_____0", 0, 10): videos[0]},
        }
        self.labels = {SURFING: "surfing water", HEADS: "massaging person's head", TRAIN: "surfing water"}
        self.annotate(clip for clips in self.clips.values() for clip in clips)
        for name, clips in self.clips.items():
            self.write(name, by_zlib(make_tar(clips, in_class)))
        self.write(OTHER, b"not wanted, and no archive")
        self.arguments = ("--annotations", self.annotations, "--cache-dir", self.cache)

    def annotate(self, clips: Iterator[Clip] | list[Clip]) -> None:
        rows: list[str] = []
        for clip in clips:
            name = next((name for name, known in self.clips.items() if clip in known), SURFING)
            split = "validate" if "/val/" in name else "train"
            rows.append(f"{self.labels[name]},{clip.youtube_id},{clip.start},{clip.end},{split}")
        self.annotations.write_text(csv_text(rows))

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def fill(self, *arguments: str | Path, base: str | Path | None = None) -> CompletedProcess[str]:
        """Run `kinetics-fs fill` with the folder of archives, or with another base."""
        return run_command("fill", *self.arguments, "--archive-url", base or self.folder, *arguments)

    def cached(self) -> Clips:
        """Return the clips in the cache; check that no fetch has left files behind."""
        found = cached_content(self.cache)
        assert not list(CacheLayout(self.cache).incoming.iterdir())
        return found

    def of(self, *names: str) -> Clips:
        return {clip: content for name in names for clip, content in self.clips[name].items()}

    def report(self) -> dict[str, Any]:
        report = json.loads(CacheLayout(self.cache).fill_report.read_text())
        assert isinstance(report, dict)
        return report

    @contextmanager
    def site(self) -> Iterator[ArchiveSite]:
        """Serve the archives over HTTP, with the lists of their names."""
        files = {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.glob("*/*/*")}
        for split in ("val", "train"):
            names = [name for name in files if f"/{split}/" in name]
            addresses = "\n".join(f"https://s3.amazonaws.com/kinetics/{name}" for name in names)
            files[f"600/{split}/k600_{split}_path.txt"] = addresses.encode()
        with ArchiveSite(files) as site:
            yield site


def damage(path: Path) -> None:
    """Overwrite the second half of a file with random bytes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = random.Random(1).randbytes(len(content) - len(content) // 2)
    path.write_bytes(content)


class Withheld(bytes):
    """The content of a file. Bytes after `WITHHELD_FROM` are served only after `released` is set.

    Attributes:
        reached: set when somebody has asked for them.
    """

    released: threading.Event
    reached: threading.Event

    def __getitem__(self, key: Any) -> Any:
        if key.start >= WITHHELD_FROM:
            self.reached.set()
            self.released.wait(100)
        return super().__getitem__(key)


WITHHELD_FROM = 8 * 1024 * 1024
"""One request of a reader of a whole archive."""


def withheld(content: bytes) -> Withheld:
    content = Withheld(content)
    content.released, content.reached = threading.Event(), threading.Event()
    return content


@contextmanager
def large_archive(annotated: AnnotatedArchives, site: ArchiveSite) -> Iterator[Withheld]:
    """Replace an archive by one whose rest is withheld after some clips."""
    chance = random.Random(1)
    clips = {Clip(f"large____{number:02}", 0, 10): chance.randbytes(400_000) for number in range(50)}
    annotated.clips[SURFING] = clips
    annotated.annotate([*clips, *annotated.clips[HEADS]])
    site.files[SURFING] = content = withheld(by_zlib(make_tar(clips), 1))
    try:
        yield content
    finally:
        content.released.set()
