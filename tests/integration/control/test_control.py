"""The socket of a mount: what is asked, what is answered, and who may ask."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.control import ControlServer, Request, connect, socket_path
from kinetics_fs.control import paths as control_places
from kinetics_fs.errors import KineticsError, MountError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setattr(control_places, "_folder", lambda: folder)
    return folder


PLACE = Path("/mnt/kinetics's own")


@pytest.fixture
def server() -> Iterator[ControlServer]:
    def fail(request: Request) -> object:
        raise KineticsError("it cannot be done, for a reason")

    def crash(request: Request) -> object:
        raise ZeroDivisionError("by zero")

    def count(request: Request) -> object:
        for number in range(request.get("to", int, 3)):
            request.inform(number)
        return "done"

    handlers = {
        "echo": lambda request: {"text": request.get("text", str), "lines": list(request.lines())},
        "texts": lambda request: request.texts("words"),
        "fail": fail,
        "crash": crash,
        "count": count,
    }
    with ControlServer(PLACE, handlers) as server:
        yield server


def raw(*pieces: bytes) -> bytes:
    """What is answered to these bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path(PLACE)))
        with suppress(ConnectionError):  # it broke off in the middle of our nonsense
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()
        return b""


def ask(do: str, **words: Any) -> Any:
    connection = connect(PLACE)
    assert connection is not None
    with connection:
        return connection.ask(do, **words)


def test_request_and_lines(server: ControlServer) -> None:
    lines = ["one", "", "ümläut -- 'and' \"quotes\""]
    assert ask("echo", text="hello", lines=lines) == {"text": "hello", "lines": lines}
    connection = connect(PLACE)
    assert connection is not None and connection.pid == os.getpid()


def test_words_before_the_answer(server: ControlServer) -> None:
    seen: list[object] = []
    assert ask("count", to=5, informed=seen.append) == "done"
    assert seen == [0, 1, 2, 3, 4]


def test_refusals_are_sentences(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    for words, sentence in (
        ({"do": "fail"}, "it cannot be done, for a reason"),
        ({"do": "crash"}, "unexpected ZeroDivisionError"),
        ({"do": "nothing"}, "there are: echo, texts, fail"),
        ({"do": "echo", "text": 7}, "'text' must be of type str"),
        ({"do": "texts", "words": ["a", 1]}, "'words' must be a list of texts"),
    ):
        with pytest.raises(MountError, match=sentence):
            ask(**words)
    assert "ZeroDivisionError" in caplog.text, "a defect is in the log, too"
    assert ask("texts", words=["still", "there"]) == ["still", "there"]


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"7\n",
        b'{"do": ["echo"]}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        b"\xff\n",
    ],
)
def test_nonsense(server: ControlServer, piece: bytes) -> None:
    answer = raw(piece)
    if answer:
        assert "error" in json.loads(answer)
    assert ask("echo") == {"text": None, "lines": []}


@pytest.mark.parametrize("lines", ["3", "-1", "1000000000", "true", '"3"'])
def test_other_lines_than_announced(server: ControlServer, lines: str) -> None:
    request = '{"do": "echo", "lines": %s}\n' % lines  # noqa: UP031
    assert "lines" in json.loads(raw(request.encode(), b"one\n"))["error"]


def test_only_for_its_user(server: ControlServer, runtime: Path) -> None:
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_path(PLACE).stat().st_mode) == 0o600


def test_a_folder_that_is_not_ours(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    runtime.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MountError, match="belongs to another user"):
        ControlServer(PLACE, {})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_many_at_once_and_an_end_in_the_middle(runtime: Path) -> None:
    begun, end = threading.Barrier(9), threading.Event()

    def wait(request: Request) -> object:
        begun.wait(20)
        end.wait(20)
        return "done"

    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(ask("wait"))) for _ in range(8)]
    with ControlServer(PLACE, {"wait": wait}):
        for thread in threads:
            thread.start()
        begun.wait(20)
        end.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["done"] * 8, "what is being done is answered"
    assert not socket_path(PLACE).exists()
    assert connect(PLACE) is None


def test_a_mount_that_was_killed_leaves_no_socket_in_the_way(server: ControlServer) -> None:
    with ControlServer(PLACE, {"new": lambda request: "one"}):
        assert ask("new") == "one"
        server.__exit__(None, None, None)  # the end of the old one does not take the new one's socket
        assert ask("new") == "one"
