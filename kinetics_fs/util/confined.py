"""Child processes that parse what comes from outside, and the conversation with them.

Both sides send lines of JSON over a socket. A descriptor travels beside the first byte of a line.

The parent begins with the configuration, and descriptors of the folders that the process may write to; the first one
becomes its working folder. The process confines itself (`kinetics_fs.util.sandbox`) before it reads anything else and
answers ``{"confinement": …}``. The parent gives the folders to the uid of the process, and both send ``{}``.

Then each request ``{"operation": NAME, "arguments": {…}}`` gets one answer:
``{"result": …}`` or ``{"error": …}``, the fields of a `FetchError`. Before it answers, the process may send
``{"call": NAME, "arguments": [...]}``, which the parent answers in the same way, and ``{"received": BYTES}``, the bytes
that have arrived from the network since the last such line.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util.processes import NO_MEMORY, end_with_parent, kill_session, limit_memory
from kinetics_fs.util.sandbox import Confinement, confine
from kinetics_fs.util.ticker import every

MAX_FILE_SIZE = 4 * 1024**3
"""Largest file in bytes that such a process may create. The longest video of Kinetics, 6.6 hours, stays well below this
at 360 lines."""

_CHUNK = 65536
_MAX_LINE = 1024**2
_REPORT_INTERVAL = 0.5
"""Seconds between two reports of the received bytes."""
_START_TIMEOUT = 60.0
"""Seconds that loading the modules may take."""

_ENVIRONMENT = re.compile(
    r"PATH|LANG|LANGUAGE|LC_.*|TZ|LD_LIBRARY_PATH|PYTHON.*|KINETICS_FS_LOG_.*|JOURNAL_STREAM"
    r"|(?:https?|all|no)_proxy|SSL_CERT_(?:FILE|DIR)|(?:REQUESTS|CURL)_CA_BUNDLE",
    re.IGNORECASE,
)
"""Environment variables that a process inherits. Others may hold secrets."""

Operation = Callable[..., Any]
Call = Callable[..., Any]
"""A function of the parent that a process may call. It receives the process, and values of JSON."""


class ProcessDied(FetchError):
    """The process has died, or has not enough memory left for the request (CORRUPT)."""

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(FailureKind.CORRUPT, reason, cause_errno=number)


class TooSlow(FetchError):
    """The request takes longer than the caller waits (CORRUPT)."""

    def __init__(self, seconds: float) -> None:
        super().__init__(FailureKind.CORRUPT, f"reading the file takes longer than {seconds:.0f} s")


class _Message(NamedTuple):
    fields: dict[str, Any]
    files: list[int]


class _Channel:
    """A socket on which lines of JSON travel, one at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()
        self._unread = b""

    def send(self, fields: Mapping[str, Any], files: Iterable[int] = ()) -> None:
        self.send_line(json.dumps(fields).encode(), files)

    def send_line(self, line: bytes, files: Iterable[int] = ()) -> None:
        message = line + b"\n"
        descriptors = list(files)
        with self._sending:
            if descriptors:
                message = message[socket.send_fds(self._socket, [message], descriptors) :]
            self._socket.sendall(message)

    def receive(self, deadline: float | None = None, *, max_files: int = 0) -> _Message:
        """Wait for a line.

        Args:
            deadline: time of the monotonic clock; None for none.
            max_files: number of descriptors that are accepted; others are closed by the kernel.

        Raises:
            TimeoutError: there is no line before the deadline.
            EOFError: the other side is gone, or the line is too long.
            ValueError: the line is not a JSON object.
        """
        files = list[int]()
        while b"\n" not in self._unread:
            self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            if max_files:
                chunk, received, _, _ = socket.recv_fds(self._socket, _CHUNK, max_files)
                files += received
            else:
                chunk = self._socket.recv(_CHUNK)
            self._unread += chunk
            if not chunk or len(self._unread) > _MAX_LINE:
                raise EOFError
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            fields = json.loads(line)
        except RecursionError as error:
            raise ValueError("far too deep") from error
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        return _Message(fields, files)

    def close(self) -> None:
        self._socket.close()


# The side of the parent


class ConfinedProcess:
    """A confined process that answers one request at a time.

    Attributes:
        confinement: which parts of the sandbox are in force.
        folder: the working folder of the process; None if it has none. Files there belong to the process.
        is_usable: the process is in order and can have another request.
        requests: number of its requests.

    Args:
        module: the module to run; it calls `serve`.
        configuration: values for that module.
        scratch: folder below which the working folder is created; None if the process writes nothing.
        writable: further folders that the process may write to.
        inherited: descriptors that stay open in the process.
        on_received: called with each number of bytes that the process has received from the network.

    Raises:
        FetchError: the process cannot be started (LOCAL).
    """

    def __init__(
        self,
        module: str,
        configuration: Mapping[str, Any],
        *,
        scratch: Path | None = None,
        writable: Sequence[Path] = (),
        inherited: Sequence[int] = (),
        on_received: Callable[[int], None] = lambda received: None,
    ) -> None:
        self._on_received = on_received
        self.is_usable = False
        self.requests = 0
        self.folder: Path | None = None
        ours, theirs = socket.socketpair()
        self._channel = _Channel(ours)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    # -P: the folder in which the process starts has no modules.
                    [sys.executable, "-P", "-m", module],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",  # it must not keep a mount busy
                    start_new_session=True,
                    pass_fds=inherited,
                    env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)},
                )
            if scratch is not None:
                scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.folder = Path(tempfile.mkdtemp(prefix="", dir=scratch))
        except OSError as error:
            self._channel.close()
            raise FetchError(
                FailureKind.LOCAL, f"cannot start a process that reads files: {error.strerror}", cause_errno=error.errno
            ) from error
        try:
            self.confinement = self._configure(configuration, writable)
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            raise FetchError(
                FailureKind.LOCAL, f"a process that reads files ended at its start ({self.end()})"
            ) from None

    def _configure(self, configuration: Mapping[str, Any], writable: Sequence[Path]) -> Confinement:
        folders = [*([self.folder] if self.folder else []), *writable]
        files = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in folders]
        try:
            self._channel.send({"configuration": dict(configuration), "folders": len(files)}, files)
            answer = self._channel.receive(time.monotonic() + _START_TIMEOUT).fields
            confinement = Confinement.from_json(answer["confinement"])
            for folder, file in zip(folders, files, strict=True):
                _hand_over(folder, file, confinement.uid)
            self._channel.send({})
            self._channel.receive(time.monotonic() + _START_TIMEOUT)
        finally:
            for file in files:
                os.close(file)
        return confinement

    def ask(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        files: Sequence[int] = (),
        *,
        timeout: float | None = None,
        calls: Mapping[str, Call] | None = None,
    ) -> Any:
        """Return the answer to a request.

        Args:
            operation: name of the operation.
            arguments: its arguments, as values for JSON.
            files: descriptors to send with it.
            timeout: seconds after which the process is ended; None to wait for any time.
            calls: the functions that the process may call meanwhile. A `FetchError` that one of them raises is raised
                in the process.

        Raises:
            ProcessDied: the process has died or has no memory left.
            TooSlow: it takes too long.
            FetchError: as the process raises it.
        """
        self.is_usable = False
        self.requests += 1
        deadline = None if timeout is None else time.monotonic() + timeout
        line = json.dumps({"operation": operation, "arguments": dict(arguments)}).encode()
        try:
            self._channel.send_line(line, files)
            answer = self._receive(deadline)
            while "call" in answer:
                call = (calls or {})[answer["call"]]
                try:
                    reply = {"result": call(self, *answer["arguments"])}
                except FetchError as error:
                    reply = {"error": error.as_json()}
                self._channel.send(reply)
                answer = self._receive(deadline)
            failure = None if answer.get("error") is None else FetchError.from_json(answer["error"])
            result = answer["result"] if failure is None else None
        except TimeoutError:
            assert timeout is not None
            raise TooSlow(timeout) from None
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            end = self.end()
            # The kernel kills a process if the machine has no memory left.
            number = errno.ENOMEM if end == signal.SIGKILL.name else None
            raise ProcessDied(f"the process that reads the file died ({end})", number) from None
        if failure is not None and failure.cause_errno == errno.ENOMEM and failure.reason == NO_MEMORY:
            raise ProcessDied(failure.reason, failure.cause_errno)
        self.is_usable = True
        if failure is not None:
            raise failure
        return result

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        """Return the next message, and pass on the reports of received bytes before it."""
        while "received" in (message := self._channel.receive(deadline).fields):
            received = message["received"]
            if type(received) is not int or received < 0:
                raise ValueError(f"not a number of bytes: {received!r}")
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            self._on_received(received)
        return message

    def empty_folder(self) -> None:
        """Remove what the last request has left in the working folder."""
        if self.folder is not None:
            try:
                _empty(self.folder)
            except OSError:  # the files that stay could fill the disk
                self.is_usable = False

    def end(self) -> str:
        """Kill the process with its ffmpeg, remove its working folder, and return how it ended."""
        self._channel.close()
        if self._process.poll() is None:
            kill_session(self._process.pid)
        status = self._process.wait()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return signal.Signals(-status).name if status < 0 else f"status {status}"


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _hand_over(path: Path, folder: int, uid: int | None) -> None:
    """Give a folder to the uid of a process. What another uid has left in it is removed.

    Its mode lets this process read and remove what is in it without CAP_DAC_OVERRIDE. Nobody else can reach it.
    """
    owner = os.geteuid() if uid is None else uid
    if os.fstat(folder).st_uid == owner:
        return
    _empty(path)
    os.fchmod(folder, 0o777 if uid is not None else 0o700)
    os.fchown(folder, owner, os.getegid() if uid is None else uid)


# The side of the process


class Parent:
    """The parent of a confined process, whose functions the process may call."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the parent with values of JSON.

        Raises:
            FetchError: as the function raises it.
        """
        self._channel.send({"call": name, "arguments": arguments})
        reply = self._channel.receive().fields
        if "error" in reply:
            raise FetchError.from_json(reply["error"])
        return reply["result"]


class Opened(NamedTuple):
    """The configuration and folders that a confined process has from its start.

    Attributes:
        configuration: the values that the parent sent.
        folder: the working folder, below which the process may create files.
        folders: paths of the further folders that the process may write to.
        parent: the functions of the parent.
    """

    configuration: dict[str, Any]
    folder: Path
    folders: list[Path]
    parent: Parent


def serve(
    make_operations: Callable[[Opened], Mapping[str, Operation]],
    translate: Callable[[str, Exception], FetchError],
    programs: Callable[[dict[str, Any]], Iterable[str]],
    received: Callable[[], int] = lambda: 0,
) -> None:
    """Confine this process, and answer requests until the parent ends.

    Args:
        make_operations: returns the operations by name. They receive the descriptors and the arguments of a request.
        translate: returns the failure for an exception of an operation, by the name of the operation.
        programs: returns the paths of the programs that the process runs, from its configuration.
        received: returns the bytes that have arrived from the network so far.
    """
    limit_memory()
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_SIZE, MAX_FILE_SIZE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with (
        socket.socket(fileno=os.dup(sys.stdin.fileno())) as connected,
        suppress(EOFError, ConnectionError),  # the parent has ended
    ):
        channel = _Channel(connected)
        opened = _start(channel, programs)
        operations = make_operations(opened)
        report = _Report(channel, received)
        while True:
            request, files = channel.receive(max_files=1)
            name = request["operation"]
            try:
                with every(_REPORT_INTERVAL, report.send):
                    answer = {"result": operations[name](*files, **request["arguments"])}
            except FetchError as error:
                answer = {"error": error.as_json()}
            except MemoryError:
                answer = {"error": FetchError(FailureKind.CORRUPT, NO_MEMORY, cause_errno=errno.ENOMEM).as_json()}
            except Exception as error:
                answer = {"error": translate(name, error).as_json()}
            report.send()
            channel.send(answer)
            for file in files:
                os.close(file)


class _Report:
    """Reports of the received bytes."""

    def __init__(self, channel: _Channel, received: Callable[[], int]) -> None:
        self._channel = channel
        self._received = received
        self._reported = 0

    def send(self) -> None:
        """Send how many bytes have arrived since the last report."""
        received = self._received()
        if received != self._reported:
            with suppress(OSError):  # the parent is dead, and this process will be soon
                self._channel.send({"received": received - self._reported})
            self._reported = received


def _start(channel: _Channel, programs: Callable[[dict[str, Any]], Iterable[str]]) -> Opened:
    message, files = channel.receive(max_files=8)
    configuration = message["configuration"]
    confinement = confine(files, programs(configuration))
    if confinement.uid is not None:
        os.umask(0)  # the parent reads and removes what this process creates
    end_with_parent(sys.stdin.fileno())
    channel.send({"confinement": confinement.as_json()})
    channel.receive()  # the parent has given the folders to the uid of this process
    channel.send({})
    others = [Path(f"/proc/self/fd/{file}") if sys.platform == "linux" else _path_of(file) for file in files[1:]]
    folder = Path("/nonexistent")
    if files:
        os.fchdir(files[0])
        # Folders above it belong to another user, so the process cannot go there by its path. ffmpeg inherits it.
        folder = Path("/proc/self/cwd") if sys.platform == "linux" else Path.cwd()
        tempfile.tempdir = str(folder)
        os.environ |= {"HOME": str(folder), "TMPDIR": str(folder)}
    return Opened(configuration, folder, others, Parent(channel))


def _path_of(folder: int) -> Path:
    os.fchdir(folder)
    return Path.cwd()
