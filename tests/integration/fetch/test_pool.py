"""The conversation between a fetcher and its worker processes, when one of them talks nonsense."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.sources import SourceSettings
from tests.support.command_line import ENVIRONMENT

CLIP = Clip("DEMOvideo-5", 0, 2)


def talker(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Worker:
    """Return a worker whose process answers every job with these shell commands."""
    program = folder / "worker"
    program.write_text(
        "#!/bin/sh\nread settings\nwhile read job; do\necho '{\"begun\": true}'\n" + "\n".join(lines) + "\ndone\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return Worker(SourceSettings(), lambda: folder)


def fetch_error(worker: Worker, folder: Path, timeout: float = 20) -> FetchError:
    try:
        with pytest.raises(FetchError) as caught:
            worker.fetch(CLIP, "youtube", folder, timeout=timeout)
        return caught.value
    finally:
        worker.stop()


@pytest.mark.parametrize(
    "line",
    [
        "echo garbage",
        "echo",
        "echo '{'",
        "printf '\\377\\376\\n'",
        "echo null",
        "echo 5",
        "echo '[]'",
        "echo '\"error\"'",
        "echo '{}'",
        "echo '{\"file\": 5}'",
        "echo '{\"received\": -1}'",
        'echo \'{"received": "5"}\'',
        "echo '{\"received\": Infinity}'",
        "echo '\"received\"'",
        "echo '{\"error\": null}'",
        'echo \'{"error": {"kind": "x", "reason": "", "source": "", "errno": 1, "retry_after": 1}}\'',
        'echo \'{"error": {"kind": "gone"}}\'',
        "echo one; echo two",
        'echo \'{"file": "clip.mp4"}\'',
        'echo \'{"file": "clip.mp4", "duration": NaN, "cut": true}\'',
        'echo \'{"file": "clip.mp4", "duration": -1, "cut": true}\'',
        'echo \'{"file": "clip.mp4", "duration": 1}\'',
        'echo \'{"file": "clip.mp4", "duration": 1, "cut": 1}\'',
        "head -c 200000 /dev/zero; echo",
        "exit 0",
        "kill -9 $$",
    ],
)
def test_an_invalid_answer_counts_as_a_dead_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    worker = talker(tmp_path, monkeypatch, line)

    assert fetch_error(worker, tmp_path).kind is FailureKind.TRANSIENT


def test_an_unfinished_answer_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = fetch_error(talker(tmp_path, monkeypatch, "printf '{'; exec sleep 60"), tmp_path, timeout=0.5)

    assert (error.kind, error.errno) == (FailureKind.TRANSIENT, errno.ETIMEDOUT)


def test_progress_reaches_the_parent_and_does_not_extend_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    worker = talker(tmp_path, monkeypatch, "echo '{\"received\": 5}'", "while :; do echo '{\"received\": 7}'; done")
    try:
        with pytest.raises(FetchError) as caught:
            worker.fetch(CLIP, "youtube", tmp_path, timeout=0.5, on_received=received.append)
    finally:
        worker.stop()
    assert (caught.value.kind, caught.value.errno) == (FailureKind.TRANSIENT, errno.ETIMEDOUT)
    assert set(received) == {5, 7}


def test_a_path_in_an_answer_is_reduced_to_a_name_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = talker(tmp_path, monkeypatch, 'echo \'{"file": "/etc/../etc/passwd", "duration": 2, "cut": false}\'')
    try:
        found = worker.fetch(CLIP, "youtube", tmp_path, timeout=20)
    finally:
        worker.stop()

    assert found == (tmp_path / "passwd", 2, False)


def test_all_fields_of_a_failure_reach_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"kind": "blocked", "reason": "HTTP Error 429 “ü”", "source": "youtube", "errno": 110, "retry_after": 7.5}
    worker = talker(tmp_path, monkeypatch, f"echo '{json.dumps({'error': answer})}'")

    error = fetch_error(worker, tmp_path)

    assert error.as_json() == answer


def test_a_stopped_worker_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = talker(tmp_path, monkeypatch, f"touch {tmp_path}/started")
    worker.stop()

    with pytest.raises(FetchError):
        worker.fetch(CLIP, "youtube", tmp_path, timeout=20)

    assert not (tmp_path / "started").exists()


# The process itself


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kinetics_fs.fetch.worker"],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def first_line(settings: dict[str, object], scratch: Path) -> bytes:
    return json.dumps({"settings": settings, "scratch": str(scratch), "lifeline": 2}).encode() + b"\n"


def job(folder: Path, clip: Clip = CLIP) -> bytes:
    fields = {"youtube_id": clip.youtube_id, "start": clip.start, "end": clip.end}
    fields |= {"source": "youtube", "folder": str(folder)}
    return json.dumps(fields).encode() + b"\n"


def test_only_answers_are_written_to_standard_output(tmp_path: Path) -> None:
    # `verbose` makes yt-dlp print a page of its own on the way.
    settings = SourceSettings(
        video_url="http://127.0.0.1:9/{id}", ytdlp={"verbose": True, "logger": None, "quiet": False, "retries": 0}
    )
    worker = process()
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(first_line(asdict(settings), tmp_path) + job(tmp_path))
        worker.stdin.flush()
        begun, answer = (json.loads(worker.stdout.readline()) for _ in range(2))
    finally:
        worker.kill()
        worker.communicate()

    assert begun == {"begun": True}
    assert answer["error"]["kind"] == "transient"


@pytest.mark.parametrize("last_words", [b"", b"garbage\n", b'{"half": ', b"\xff\xfe\n", b"5\n"])
def test_the_process_ends_when_its_input_closes(last_words: bytes) -> None:
    worker = process()
    assert worker.stdin is not None
    worker.stdin.write(b"{}\n" + last_words)
    worker.stdin.close()
    worker.stdin = None
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        pytest.fail("the worker has outlived its parent")
    finally:
        worker.kill()
        worker.communicate()


def test_the_process_ignores_ctrl_c(tmp_path: Path) -> None:
    worker = process()
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        # Only an answer shows that it has begun to listen, so that the interrupt comes in good time.
        worker.stdin.write(first_line({"video_url": "http://127.0.0.1:9/{id}"}, tmp_path) + job(tmp_path))
        worker.stdin.flush()
        worker.stdout.readline()
        os.kill(worker.pid, 2)
        time.sleep(0.2)
        worker.stdin.write(job(tmp_path))
        worker.stdin.flush()
        assert worker.stdout.readline()
    finally:
        worker.kill()
        worker.communicate()


def test_a_process_that_cannot_start_is_a_local_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))

    error = fetch_error(Worker(SourceSettings(), lambda: tmp_path), tmp_path)

    assert (error.kind, error.cause_errno) == (FailureKind.LOCAL, errno.ENOENT)
