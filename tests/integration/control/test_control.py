"""The control socket of a mount: requests, answers, errors, and permissions."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.control import ControlServer, Request, RequestHandler, connect, paths, socket_path
from kinetics_fs.errors import KineticsError, MountError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setattr(paths, "_runtime_dir", lambda: folder)
    return folder


MOUNTPOINT = Path("/mnt/kinetics's own")


@pytest.fixture
def server() -> Iterator[ControlServer]:
    def fail(request: Request) -> object:
        raise KineticsError("it cannot be done, for a reason")

    def crash(request: Request) -> object:
        raise ZeroDivisionError("by zero")

    def count(request: Request) -> object:
        for number in range(request.get("to", int, 3)):
            request.send_progress(number)
        return "done"

    handlers = {
        "echo": RequestHandler(
            lambda request: {"text": request.get("text", str), "lines": list(request.lines())}, ("text", "lines")
        ),
        "texts": RequestHandler(lambda request: request.texts("words"), ("words",)),
        "fail": RequestHandler(fail),
        "crash": RequestHandler(crash),
        "count": RequestHandler(count, ("to",)),
        "has_lines": RequestHandler(lambda request: request.has("lines"), ("lines",)),
    }
    with ControlServer(MOUNTPOINT, handlers) as server:
        yield server


def raw(*pieces: bytes) -> bytes:
    """Return the answer to these bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path(MOUNTPOINT)))
        with suppress(ConnectionError):  # the server closed the connection before it had read everything
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()
        return b""


def ask(name: str, **parameters: Any) -> Any:
    connection = connect(MOUNTPOINT)
    assert connection is not None
    with connection:
        return connection.request(name, **parameters)


def test_request_with_lines_is_answered(server: ControlServer) -> None:
    lines = ["one", "", "ümläut -- 'and' \"quotes\""]
    assert ask("echo", text="hello", lines=lines) == {"text": "hello", "lines": lines}
    connection = connect(MOUNTPOINT)
    assert connection is not None and connection.pid == os.getpid()


def test_an_empty_list_of_lines_is_not_a_missing_one(server: ControlServer) -> None:
    assert ask("has_lines", lines=[]) is True
    assert ask("has_lines") is False


def test_progress_comes_before_the_result(server: ControlServer) -> None:
    seen: list[object] = []
    assert ask("count", to=5, on_progress=seen.append) == "done"
    assert seen == [0, 1, 2, 3, 4]


def test_errors_are_sentences(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    for name, parameters, sentence in (
        ("fail", {}, "it cannot be done, for a reason"),
        ("crash", {}, "unexpected ZeroDivisionError"),
        ("eco", {}, "cannot answer 'eco': no such request; the requests are echo, texts, fail"),
        (
            "echo",
            {"txt": "a"},
            "cannot answer the request echo: unknown parameter 'txt'; its parameters are text, lines",
        ),
        ("fail", {"id": 1}, "cannot answer the request fail: unknown parameter 'id'; it has no parameters"),
        ("echo", {"text": 7}, "cannot use the parameter 'text': it must be a text, not 7"),
        ("count", {"to": True}, "cannot use the parameter 'to': it must be an integer, not True"),
        ("texts", {"words": ["a", 1]}, "'words': it must be a list of texts"),
    ):
        with pytest.raises(MountError, match=sentence):
            ask(name, **parameters)
    assert "ZeroDivisionError" in caplog.text, "a defect is in the log, too"
    assert ask("texts", words=["still", "there"]) == ["still", "there"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"7\n",
        b'{"requests": "echo"}\n',
        b'{"do": "echo"}\n',
        b'{"request": ["echo"]}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        b"\xff\n",
    ],
)
def test_malformed_request_is_answered_with_one_sentence(server: ControlServer, line: bytes) -> None:
    answer = raw(line)
    if answer:
        assert json.loads(answer) == {
            "error": 'cannot read the request: it must be a JSON object in one line, with the key "request"'
        }
    assert ask("echo") == {"text": None, "lines": []}


@pytest.mark.parametrize("lines", ["3", "-1", "1000000000", "true", '"3"'])
def test_other_lines_than_announced_are_refused(server: ControlServer, lines: str) -> None:
    request = '{"request": "echo", "lines": %s}\n' % lines  # noqa: UP031
    assert "lines" in json.loads(raw(request.encode(), b"one\n"))["error"]


def test_answer_of_another_version_is_an_error(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_answer", lambda file, send_progress, slot: b'{"ok": 1}' if file.readline() else b"")
    with pytest.raises(MountError, match="it runs another version of kinetics-fs; unmount it and mount it again"):
        ask("echo")


def test_socket_is_for_its_user_only(server: ControlServer, runtime: Path) -> None:
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_path(MOUNTPOINT).stat().st_mode) == 0o600


def test_runtime_directory_of_another_user_is_refused(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    runtime.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MountError, match="belongs to another user"):
        ControlServer(MOUNTPOINT, {})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_requests_in_progress_are_answered_at_the_end_of_the_mount(runtime: Path) -> None:
    begun, end = threading.Barrier(9), threading.Event()

    def wait(request: Request) -> object:
        begun.wait(20)
        end.wait(20)
        return "done"

    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(ask("wait"))) for _ in range(8)]
    with ControlServer(MOUNTPOINT, {"wait": RequestHandler(wait)}):
        for thread in threads:
            thread.start()
        begun.wait(20)
        end.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["done"] * 8, "requests in progress are answered"
    assert not socket_path(MOUNTPOINT).exists()
    assert connect(MOUNTPOINT) is None


def hold(request: Request) -> object:
    """Answer when the client sends the line that it has announced."""
    return list(request.lines())


@contextmanager
def held_requests(name: str, count: int) -> Iterator[None]:
    """Keep requests in progress."""
    with ExitStack() as opened:
        for _ in range(count):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(socket_path(MOUNTPOINT)))
            client.sendall(b'{"request": "%s", "lines": 1}\n' % name.encode())
        yield


def when_answered(name: str) -> Any:
    """Return the answer as soon as the server is not busy: the request before may just be ending."""
    while True:
        try:
            return ask(name)
        except MountError as error:
            assert "busy" in str(error)


def test_a_full_server_says_that_it_is_busy(runtime: Path) -> None:
    started = threading.Semaphore(0)

    def held(request: Request) -> object:
        started.release()
        return hold(request)

    handlers = {"hold": RequestHandler(held, ("lines",)), "ping": RequestHandler(lambda request: "pong")}
    with ControlServer(MOUNTPOINT, handlers):
        with held_requests("hold", 32):
            for _ in range(32):
                assert started.acquire(timeout=20)
            for _ in range(100):
                with pytest.raises(MountError, match="the mount is busy with the requests of other programs"):
                    ask("ping")
        assert when_answered("ping") == "pong"


def test_requests_that_wait_leave_room_for_others(runtime: Path) -> None:
    started = threading.Semaphore(0)

    def held(request: Request) -> object:
        started.release()
        return hold(request)

    handlers = {
        "hold": RequestHandler(held, ("lines",), waits=True),
        "ping": RequestHandler(lambda request: "pong"),
    }
    with ControlServer(MOUNTPOINT, handlers):
        with ExitStack() as opened:
            for _ in range(8):
                opened.enter_context(held_requests("hold", 32))
                for _ in range(32):
                    assert started.acquire(timeout=20)
            assert ask("ping") == "pong"
            with pytest.raises(MountError, match="busy"):
                ask("hold", lines=[])
        assert when_answered("ping") == "pong"


def test_integers_of_more_than_64_bits_are_refused(server: ControlServer) -> None:
    for number in (2**63, -(2**63), 10**300):
        with pytest.raises(MountError, match=r"cannot use the parameter 'to': -?\d+ has more than 64 bits"):
            ask("count", to=number)


def test_socket_in_a_directory_that_others_can_write_to_is_not_trusted(server: ControlServer, runtime: Path) -> None:
    assert ask("has_lines") is False
    runtime.chmod(0o777)
    assert connect(MOUNTPOINT) is None
    runtime.chmod(0o700)
    assert ask("has_lines") is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_socket_in_a_directory_of_another_user_is_not_trusted(server: ControlServer, runtime: Path) -> None:
    os.chown(runtime, 65534, 65534)
    assert connect(MOUNTPOINT) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can listen as another user")
def test_socket_of_another_user_is_not_trusted(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path(MOUNTPOINT)))
        os.seteuid(65534)
        try:
            listening.listen()
        finally:
            os.seteuid(0)
        assert connect(MOUNTPOINT) is None


def test_socket_of_a_killed_mount_is_replaced(server: ControlServer) -> None:
    with ControlServer(MOUNTPOINT, {"new": RequestHandler(lambda request: "one")}):
        assert ask("new") == "one"
        server.__exit__(None, None, None)  # must not remove the socket of the new one
        assert ask("new") == "one"
