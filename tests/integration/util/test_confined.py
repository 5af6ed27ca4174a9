"""A process that a file from outside has taken over can do nothing outside of its own folder."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.demo.media import make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.media.checker import Checker, take
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.util.confined import ConfinedProcess, ProcessDied, TooSlow
from kinetics_fs.util.sandbox import libraries_of, other_uid
from tests.support.command_line import ENVIRONMENT, has_ended

ROOT = Path(__file__).parents[3]
DENIED = {f"OSError {number}" for number in (errno.EACCES, errno.EPERM, errno.ENOENT)}
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfinedProcess]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = ConfinedProcess("tests.support.hostile_process", {}, scratch=tmp_path / "scratch")
    yield process
    process.end()


def run(process: ConfinedProcess, code: str, *files: int) -> str:
    return str(process.ask("run", {"code": code}, files, timeout=60))


def status_of(process: ConfinedProcess) -> dict[str, str]:
    lines = run(process, "result = open('/proc/self/status').read()").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_process_has_no_rights_of_its_parent(hostile: ConfinedProcess) -> None:
    status, confinement = status_of(hostile), hostile.confinement
    if IS_ROOT:
        assert confinement.uid == other_uid()
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(confinement.uid)}
        assert status["Groups"] == ""
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0, 0, 0, 0]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert confinement.landlock
    assert confinement.missing == ()


def test_programs_that_it_starts_have_none_either(hostile: ConfinedProcess) -> None:
    code = "import subprocess; result = subprocess.check_output(['cat', '/proc/self/status'], text=True)"
    lines = run(hostile, code).splitlines()
    [capabilities] = [line.split()[1] for line in lines if line.startswith("CapEff")]
    assert int(capabilities, 16) == 0
    assert "NoNewPrivs:\t1" in lines


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_files_outside_cannot_be_read(hostile: ConfinedProcess, tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(mode)
    for path in (secret, Path("/etc/shadow"), Path("/proc/1/environ"), Path(f"/proc/{os.getpid()}/environ")):
        assert run(hostile, f"open({str(path)!r}, 'rb').read()") in DENIED, path
    assert run(hostile, f"import os; os.listdir({str(tmp_path)!r})") in DENIED


def test_secrets_are_not_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "KINETICS_FS_PROXY", "SOME_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = ConfinedProcess("tests.support.hostile_process", {}, scratch=tmp_path)
    try:
        assert "s3cret" not in run(process, "import os; result = dict(os.environ)")
    finally:
        process.end()


@pytest.mark.parametrize(
    "code",
    [
        "open('/tmp/kinetics-fs-hostile', 'w')",
        "open('/usr/kinetics-fs-hostile', 'w')",
        "open({sibling!r} + '/file', 'w')",
        "import os; os.rename({victim!r}, folder / 'mine')",
        "import os; os.link({victim!r}, folder / 'mine')",
        "import os; os.chmod({victim!r}, 0o777)",
        "import os; os.unlink({victim!r})",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.setuid(0)",
        "import os; os.setgroups([0])",
        "import os; os.chroot('.')",
        "import os; os.mknod(folder / 'device', 0o20666, os.makedev(1, 3)); open(folder / 'device')",
        "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\nif c.unshare(0x10000000): raise OSError("
        "ctypes.get_errno(), '')",
        "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\nif c.ptrace(16, os.getppid(), 0, 0): raise OSError("
        "ctypes.get_errno(), '')",
        "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\nif c.mount(b'/', b'/', None, 4096, None):"
        " raise OSError(ctypes.get_errno(), '')",
        "import socket; socket.socket(socket.AF_UNIX).connect('\\0kinetics-fs-test')",
    ],
)
def test_nothing_outside_can_be_changed(hostile: ConfinedProcess, tmp_path: Path, code: str) -> None:
    sibling = tmp_path / "scratch/sibling"
    sibling.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    with socket_listening("\0kinetics-fs-test"):
        assert run(hostile, code.format(sibling=str(sibling), victim=str(victim))) in DENIED
    assert victim.read_text() == "whole"
    assert list(sibling.iterdir()) == []


def socket_listening(name: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(name)
    listening.listen()
    return listening


def test_its_own_folder_is_writable_and_removed_with_it(hostile: ConfinedProcess) -> None:
    assert hostile.folder is not None
    assert run(hostile, "(folder / 'deep').mkdir(); (folder / 'deep/file').write_text('x')") == "done"
    assert (hostile.folder / "deep/file").read_text() == "x"
    hostile.end()
    assert not hostile.folder.exists()


def test_a_descriptor_of_the_parent_can_be_read(hostile: ConfinedProcess, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("for this request")
    private.chmod(0o600)
    with private.open("rb") as file:
        assert (
            run(hostile, "import os; result = os.pread(files[0], 99, 0).decode()", file.fileno()) == "for this request"
        )
        if IS_ROOT:
            assert run(hostile, "open(f'/proc/self/fd/{files[0]}', 'r+b')", file.fileno()) in DENIED


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("(folder / 'clip').symlink_to('/etc/passwd')", "clip"),
        ("import os; os.mkfifo(folder / 'clip')", "clip"),
        ("(folder / 'clip').mkdir()", "clip"),
        ("", "clip"),
        ("", "../sibling"),
        ("", "/etc/passwd"),
        ("", ""),
        ("", None),
        ("", 5),
        ("(folder / 'clip').write_text('x'); (folder / 'clip').chmod(0)", "clip"),
    ],
)
def test_what_is_no_file_of_its_own_is_not_taken(
    hostile: ConfinedProcess, tmp_path: Path, code: str, name: object
) -> None:
    (tmp_path / "scratch/sibling").write_text("private")
    run(hostile, code)
    target = tmp_path / "target"
    if "chmod(0)" in code and IS_ROOT:
        take(hostile, name, target)  # root may read it; it is the process's own content
        return
    with pytest.raises(FetchError) as caught:
        take(hostile, name, target)
    assert caught.value.kind is FailureKind.CORRUPT
    assert not target.exists()


def test_a_taken_file_does_not_change_any_more(hostile: ConfinedProcess, tmp_path: Path) -> None:
    run(hostile, "kept['file'] = open(folder / 'clip', 'w+'); kept['file'].write('verified'); kept['file'].flush()")
    take(hostile, "clip", tmp_path / "target")
    run(hostile, "kept['file'].seek(0); kept['file'].write('replaced'); kept['file'].flush()")
    assert (tmp_path / "target").read_text() == "verified"


def test_what_it_leaves_is_removed_after_each_request(hostile: ConfinedProcess) -> None:
    assert hostile.folder is not None
    run(hostile, "(folder / 'deep').mkdir(); (folder / 'deep/file').write_text('x'); (folder / 'deep').chmod(0)")
    hostile.empty_folder()
    assert not hostile.is_usable or list(hostile.folder.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    ["b'garbage\\n'", "b'[]\\n'", "b'{}\\n'", "b'{\"error\": 5}\\n'", 'b\'{"call": "none"}\\n\'', "b'x' * 2_000_000"],
)
def test_nonsense_ends_the_process(hostile: ConfinedProcess, answer: str) -> None:
    code = f"import os; os.write(0, {answer})"
    with pytest.raises(ProcessDied):
        run(hostile, code)
    assert not hostile.is_usable


def test_a_process_that_never_answers_is_ended(hostile: ConfinedProcess) -> None:
    pid = int(run(hostile, "import os; result = os.getpid()"))
    with pytest.raises(TooSlow):
        hostile.ask("run", {"code": "import time; time.sleep(99)"}, timeout=0.5)
    hostile.end()
    assert has_ended(pid, within=10)


def test_a_function_of_the_parent_is_called_with_its_failure(hostile: ConfinedProcess) -> None:
    def ask(_: ConfinedProcess, number: int) -> int:
        if number > 1:
            raise FetchError(FailureKind.BLOCKED, "no more", retry_after=5)
        return number + 1

    assert hostile.ask("run", {"code": "result = call('ask', 1)"}, calls={"ask": ask}) == "2"
    with pytest.raises(FetchError) as caught:
        hostile.ask("run", {"code": "call('ask', 2)"}, calls={"ask": ask})
    assert (caught.value.kind, caught.value.reason, caught.value.retry_after) == (FailureKind.BLOCKED, "no more", 5)


def test_many_threads_have_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = set[Path]()

    def start() -> None:
        process = ConfinedProcess("tests.support.hostile_process", {}, scratch=tmp_path)
        assert process.folder is not None
        folders.add(process.folder)
        process.end()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_ffmpeg_with_libraries_of_its_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, video = tmp_path / "own/bin/ffmpeg", tmp_path / "video.mp4"
    for folder in (program.parent, tmp_path / "own/lib"):
        folder.mkdir(parents=True)
    shutil.copy("/usr/bin/ffmpeg", program)
    [library] = re.findall("=> (/.*libavdevice[^ ]*)", subprocess.check_output(["ldd", program], text=True))
    shutil.copy(library, tmp_path / "own/lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "own/lib"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert find_ffmpeg() == str(program)
    assert str(tmp_path / "own/lib" / Path(library).name) in libraries_of(str(program))
    assert libraries_of("/usr/bin/ffmpeg") == []  # they are readable anyway
    make_video(video, seconds=2, ffmpeg=str(program), width=160, height=120)
    with Checker(tmp_path / "scratch") as checker:
        target = tmp_path / "cut.mp4"
        assert checker.cut(Media(video, 0.0, 2.0), 1, target, max_height=120, exact=True) == pytest.approx(1, abs=0.1)


SHOW = (
    "import sys; from pathlib import Path; from kinetics_fs.util.confined import ConfinedProcess\n"
    "process = ConfinedProcess('tests.support.hostile_process', {}, scratch=Path(sys.argv[1]))\n"
    "print(process.confinement)\n"
    "code = \"(folder / 'x').write_text('y'); result = open('/proc/self/status').read()\"\n"
    "print(process.ask('run', {'code': code}))\n"
)


def show(tmp_path: Path, *wrapper: str, path: Path = ROOT) -> str:
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", SHOW, tmp_path],
        env={**ENVIRONMENT, "PYTHONPATH": f"{path}:{ROOT}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not IS_ROOT, reason="only root can give its capabilities away")
def test_a_python_that_only_a_capability_can_read_works_and_says_so(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "only_here.py").write_text("VALUE = 5\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for folder in (*tmp_path.parents, tmp_path):
        if folder.is_relative_to("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    os.chown(scratch, 65533, 65533)
    user = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups")
    capability = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    shown = show(scratch, *user, *capability, path=private)
    assert "without the loss of capabilities: " in shown.splitlines()[0]


@pytest.mark.skipif(not IS_ROOT, reason="only root has another uid to give")
@pytest.mark.parametrize(
    "wrapper",
    [
        ("unshare", "--user", "--map-root-user"),
        ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
        ("setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"),
    ],
)
def test_root_without_another_uid_goes_on_and_says_so(tmp_path: Path, wrapper: tuple[str, ...]) -> None:
    shown = show(tmp_path, *wrapper)
    first = shown.splitlines()[0]
    assert "no capabilities, Landlock" in first
    assert "without another uid: " in first
    [capabilities] = [line.split()[1] for line in shown.splitlines() if line.startswith("CapEff")]
    assert int(capabilities, 16) == 0


@pytest.mark.parametrize("messages", [[], [{"configuration": {}}]])
def test_a_process_whose_parent_was_killed_while_it_starts_ends_silently(messages: list[dict[str, Any]]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        started = subprocess.Popen(
            [sys.executable, "-m", "kinetics_fs.media.checker_process"],
            stdin=theirs.fileno(),
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
    with ours:
        for message in messages:
            ours.sendall(json.dumps(message).encode() + b"\n")
    _, errors = started.communicate(timeout=60)
    # The thread that waits for the end of the parent, or the main thread, which reads: either may notice it first.
    assert started.returncode in (0, 1)
    assert errors == ""
