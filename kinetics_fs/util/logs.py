"""Logging: text or JSON, to a terminal, a file or the journal.

A child process (a worker, a fill) inherits the format, and the path of a log file that may be rotated, in its
environment.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from kinetics_fs.errors import escaped, masked, printable

FORMATS = ("text", "json")

FACTS = ("clip", "fetch", "source", "kind", "reason", "next_retry")
"""Attributes that a record may have besides its message (`extra`). In JSON, each is a field."""

_FORMAT = "KINETICS_FS_LOG_FORMAT"
_DEBUG = "KINETICS_FS_LOG_DEBUG"
_FILE = "KINETICS_FS_LOG_REOPEN"
VARIABLES = (_FORMAT, _DEBUG, _FILE)
"""Environment variables by which a process tells its children how to log."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""The levels as the priorities of sd-daemon(3)."""


def set_up(level: int | None = None, style: str | None = None, *, debug: bool | None = None) -> None:
    """Log to standard error from now on; may be called again.

    Processes that this process starts inherit `style` and `debug` through the environment.

    Args:
        level: the lowest level to log; None leaves it unchanged.
        style: `text` or `json`; None takes the inherited one.
        debug: also log the debug messages of kinetics-fs, but not those of libraries; None takes the inherited value.
    """
    if style is not None:
        os.environ[_FORMAT] = style
    if debug is not None:
        os.environ[_DEBUG] = "1" if debug else ""
    logging.getLogger("kinetics_fs").setLevel(logging.DEBUG if os.environ.get(_DEBUG) else logging.NOTSET)
    handler = _StandardError(sys.stderr)
    handler.setFormatter(_Lines(as_json=os.environ.get(_FORMAT) == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if level is not None:
        root.setLevel(level)


@contextmanager
def log_step(logger: logging.Logger, step: str) -> Iterator[None]:
    """Log a step of some work at debug level, with its outcome and its duration; do nothing at other levels.

    Args:
        logger: the logger of the module that does the step.
        step: the step, beginning with what it is about.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        yield
        return
    begin = time.monotonic()
    outcome = "ok"
    try:
        yield
    except BaseException as error:
        outcome = f"{type(error).__name__} {error}".rstrip()
        raise
    finally:
        logger.debug("%s: %s, %.3f s", step, outcome, time.monotonic() - begin)


def marked_for_journal(line: str, level: int) -> str:
    """Return a line with its level as a prefix if standard error is the journal; otherwise unchanged."""
    return _marked(line, level) if _is_journal() else line


def reopen_on_hangup(path: Path) -> None:
    """Reopen the log file at each SIGHUP, so that it can be rotated.

    Call this while the process has only one thread: threads that exist already do not block the signal.

    Args:
        path: the file to which standard output and standard error are redirected.
    """
    os.environ[_FILE] = str(path)
    hold_hangups()
    threading.Thread(target=_reopen_at_each_hangup, name="hang-up", daemon=True).start()


def hold_hangups() -> None:
    """Block SIGHUP in this thread, and in threads and child processes that it starts. See `reopen_on_hangup`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def reopen_if_moved() -> bool:
    """Reopen the log file if it was moved away. For child processes, which do not get the signal.

    Returns:
        Whether it was.
    """
    path = os.environ.get(_FILE)
    if path is None:
        return False
    with suppress(OSError):
        current = os.fstat(2)
        try:
            moved = not os.path.samestat(current, Path(path).stat())
        except FileNotFoundError:
            moved = True
        if moved:
            _reopen(path)
            return True
    return False


def _reopen_at_each_hangup() -> None:
    while True:
        signal.sigwait({signal.SIGHUP})
        try:
            _reopen(os.environ[_FILE])
        except OSError as error:  # such as a removed folder: the old file stays in use
            logging.getLogger(__name__).error("cannot reopen the log file: %s", error)


def _reopen(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    finally:
        os.close(fd)


def _is_journal() -> bool:
    """Return whether standard error is still the stream that the service manager connected to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _marked(text: str, level: int) -> str:
    mark = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(mark + line for line in text.splitlines())


class _StandardError(logging.StreamHandler[TextIO]):
    """A handler that writes to the present value of `sys.stderr`.

    While rich shows progress bars, `sys.stderr` is an object of rich's that writes above them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """A formatter whose messages cannot break their line; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(masked(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(escaped(masked(line)) for line in super().formatException(ei).splitlines())


class _Lines(logging.Formatter):
    """A formatter that adds what the present standard error needs: a mount in the background redirects it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._dated = _OneLine("%(asctime)s %(levelname)s %(message)s")
        self._bare = _OneLine("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        in_journal = _is_journal()  # the journal records time and level itself
        lines = self._bare if in_journal else self._dated
        text = self._object(record) if self._as_json else lines.format(record)
        return _marked(text, record.levelno) if in_journal else text

    def _object(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII, which text from a remote page cannot break out of."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": masked(record.getMessage()),
        }
        line |= {name: value for name in FACTS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)
