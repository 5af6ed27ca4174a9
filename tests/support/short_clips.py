"""Clips of 10 s and files for them: some cover the 10 s, some are short, and some are no clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg
from tests.support.annotations import Labelled, write_annotations
from tests.support.tarballs import by_zlib, make_tar
from tests.support.videos import run_ffmpeg

FULL, ALMOST = Clip("-full______", 0, 10), Clip("almost_____", 5, 15)
SHORT, ONE_FRAME = Clip("-short_____", 0, 10), Clip("one_frame__", 3, 13)
NO_SAMPLE, PAGE, PICTURE = Clip("no_sample__", 0, 10), Clip("-web_page__", 0, 10), Clip("picture____", 0, 10)

SECONDS = {FULL: 10.0, ALMOST: 9.2, SHORT: 4.0, ONE_FRAME: 0.04}
"""The seconds of the files that are clips."""
REFUSED = (NO_SAMPLE, PAGE, PICTURE)

LABEL = "surfing water"
ARCHIVE = f"600/val/{LABEL}.tar.gz"


def make_files(folder: Path) -> dict[Clip, bytes]:
    """Return the content of the file of each clip; make them in an empty folder."""
    files = {}
    for clip, seconds in SECONDS.items():
        path = folder / clip.name
        make_video(path, seconds=seconds, ffmpeg=find_ffmpeg(), width=160, height=120)
        files[clip] = path.read_bytes()
    fragments, picture = folder / "fragments.mp4", folder / "picture.png"
    run_ffmpeg("-i", folder / SHORT.name, "-c", "copy", "-movflags", "+frag_keyframe+empty_moov", fragments)
    run_ffmpeg("-i", folder / SHORT.name, "-frames:v", 1, picture)
    data = fragments.read_bytes()
    files[NO_SAMPLE] = data[: data.index(b"moof") - 4]
    files[PAGE] = b"<!DOCTYPE html><title>404 Not Found</title>"
    files[PICTURE] = picture.read_bytes()
    return files


def write_folder(folder: Path, files: Mapping[Clip, bytes]) -> Path:
    """Write the files into a folder, under the names of their clips."""
    folder.mkdir()
    for clip, content in files.items():
        (folder / clip.name).write_bytes(content)
    return folder


def write_archive(folder: Path, files: Mapping[Clip, bytes]) -> Path:
    """Write the archive of the class into a folder of archives."""
    path = folder / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(by_zlib(make_tar(files)))
    return folder


def annotate(path: Path) -> Path:
    """Write the annotations of all clips."""
    return write_annotations(path, [Labelled(LABEL, clip, "validate") for clip in (*SECONDS, *REFUSED)])
