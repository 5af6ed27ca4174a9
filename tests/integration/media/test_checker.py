"""The processes that read files from outside: the files that they survive, and the limits that they leave alone."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.checker import Checker
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.util.processes import MAX_MEMORY
from tests.support.bombs import mp4_bomb
from tests.support.command_line import ENVIRONMENT, has_ended
from tests.support.memory import in_limited_process
from tests.support.mounts import command_line, descendants
from tests.support.videos import run_ffmpeg


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "good.mp4"
    make_video(path, seconds=2, ffmpeg=find_ffmpeg(), width=160, height=120)
    return path


def test_all_operations(good: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "-other.mp4", tmp_path / "cut.mp4"
    run_ffmpeg("-i", good, "-c", "copy", "-f", "matroska", other)
    with Checker(tmp_path) as checker, good.open("rb") as file:
        assert checker.check(good, VerifyLevel.NONE) is None
        assert checker.check(good, VerifyLevel.CONTAINER) == pytest.approx(2, abs=0.1)
        assert checker.measure(file.fileno()) == pytest.approx(2, abs=0.1)
        assert checker.decode(file.fileno()) == pytest.approx(2, abs=0.1)
        assert checker.check(other, VerifyLevel.NONE, accept_unknown=False) is None
        assert other.read_bytes()[4:8] == b"ftyp"
        media = checker.find_excerpt(other, 0, 1)
        assert media == Media(other, 0.0, media.length)
        assert checker.cut(media, 1, target, max_height=120, exact=True) == pytest.approx(1, abs=0.1)
        assert checker.thumbnail(file.fileno(), 100).startswith(b"\xff\xd8")


def test_this_process_keeps_its_limit(good: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with Checker() as checker:
        checker.check(good, VerifyLevel.CONTAINER)
        [process] = [pid for pid in descendants(os.getpid()) if "checker_process" in command_line(pid)]
        limits = Path(f"/proc/{process}/limits").read_text()
        assert re.search(f"Max data size +{MAX_MEMORY} +{MAX_MEMORY} ", limits)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert has_ended(process, within=10)


def test_a_file_that_needs_too_much_memory(good: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.mp4"
    bomb.write_bytes(mp4_bomb())
    with Checker() as checker:
        for _ in range(2):
            checker.check(good, VerifyLevel.DECODE)
            with pytest.raises(FetchError) as caught:
                checker.check(bomb, VerifyLevel.CONTAINER)
            assert caught.value.kind is FailureKind.CORRUPT


def killing_ffmpeg(folder: Path, signal: str) -> None:
    """Write an ffmpeg that crashes the process that has started it, as a bug of FFmpeg's libraries would."""
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nkill -{signal} $PPID\nsleep 60\n")
    program.chmod(0o755)


@pytest.mark.parametrize(("signal", "number"), [("SEGV", None), ("ABRT", None), ("KILL", errno.ENOMEM)])
def test_a_file_that_crashes_the_process(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: str, number: int | None
) -> None:
    webm = tmp_path / "clip.mp4"
    run_ffmpeg("-i", good, "-c", "copy", "-f", "matroska", webm)
    with monkeypatch.context() as patched, Checker(tmp_path) as checker:
        killing_ffmpeg(tmp_path, signal)
        patched.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        checker.check(good, VerifyLevel.CONTAINER)
        with pytest.raises(FetchError, match=f"the process that reads the file died \\(SIG{signal}\\)") as caught:
            checker.check(webm, VerifyLevel.CONTAINER)
        assert (caught.value.kind, caught.value.cause_errno) == (FailureKind.CORRUPT, number)
        assert checker.check(good, VerifyLevel.CONTAINER)


def test_a_process_that_does_not_start_is_no_verdict_on_the_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checker() as checker:
        for program in (shutil.which("false"), "/nonexistent/python"):
            monkeypatch.setattr(sys, "executable", program)
            with pytest.raises(FetchError) as caught:
                checker.check(good, VerifyLevel.CONTAINER)
            assert caught.value.kind is FailureKind.LOCAL


def test_the_processes_end_with_their_parent(good: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from kinetics_fs.media import VerifyLevel;"
        "from kinetics_fs.media.checker import Checker; from tests.support.mounts import command_line, descendants\n"
        "with Checker() as checker:\n"
        "    checker.check(Path(sys.argv[1]), VerifyLevel.CONTAINER)\n"
        "    print(*descendants(os.getpid()), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, good], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    [process] = map(int, done.stdout.split())
    assert has_ended(process, within=10)


ON_64_CORES = """
import os, sys
os.cpu_count = lambda: 64
from pathlib import Path
from kinetics_fs.media import Media
from kinetics_fs.media.cut import cut
from kinetics_fs.media.verify import verify_clip
video, target = map(Path, sys.argv[1:3])
cut(Media(video, 0.5, None), 1, target, ffmpeg=sys.argv[3], max_height=1080)
print(verify_clip(target, None))
"""


def test_a_machine_of_64_cores(tmp_path: Path) -> None:
    video, target, log, program = (tmp_path / name for name in ("large.mp4", "cut.mp4", "log", "ffmpeg"))
    make_video(video, seconds=2, ffmpeg=find_ffmpeg(), width=1920, height=1080)
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\nexec {find_ffmpeg()} "$@"\n')
    program.chmod(0o755)

    done = in_limited_process(ON_64_CORES, video, target, program)

    assert float(done.stdout) == pytest.approx(1, abs=0.1), done.stderr
    words = log.read_text().splitlines()
    threads = [words[at + 1] for at, word in enumerate(words) if word.endswith("threads")]
    assert threads == ["8", "8", "8"]  # decoder, filters, encoder


@pytest.mark.parametrize("runtime", ["deno", "node", "bun"])
def test_javascript_runtimes_run_inside_the_limit(runtime: str) -> None:
    program = shutil.which(runtime, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{runtime} is not installed")
    code = "console.log([...Array(2e6).keys()].map(String).length)"
    done = in_limited_process(
        "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))",
        *(program, "eval", code) if runtime == "deno" else (program, "-e", code),
    )
    assert (done.returncode, done.stdout) == (0, "2000000\n"), done.stderr
