"""How lines are logged: as text or as JSON, for a terminal, a file or the journal.

A process that others start (a worker, a fill) finds the format, and the file that may be rotated, in its environment.
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
from typing import TextIO

FORMATS = ("text", "json")

FACTS = ("clip", "source", "kind", "reason", "next_try")
"""What a line may carry besides its message, by `extra`; in JSON each is a field of its own."""

_FORMAT = "KINETICS_FS_LOG_FORMAT"
_DEBUG = "KINETICS_FS_LOG_DEBUG"
_FILE = "KINETICS_FS_LOG_REOPEN"

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""What sd-daemon(3) calls the levels."""


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
    """Log a step of some work at debug level, with its outcome and its duration.

    Args:
        logger: the logger of the module that does the step.
        step: the step, beginning with what it is about.
    """
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
    """The line with its level in front, if standard error is the journal's; else as it is."""
    return _marked(line, level) if _is_journal() else line


def reopen_on_hangup(path: Path) -> None:
    """From now on SIGHUP lets go of a log file that was moved away, and begins it anew.

    To be called while there are no other threads: they all leave the signal to one that waits for it.

    Args:
        path: the file that standard output and error go to.
    """
    os.environ[_FILE] = str(path)
    hold_hangups()
    threading.Thread(target=_reopen_again_and_again, name="hang-up", daemon=True).start()


def hold_hangups() -> None:
    """Makes this process, and what it starts, deaf to SIGHUP; as said of `reopen_on_hangup`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def reopen_if_moved() -> None:
    """Goes on in the file that the log is now, if that was moved away; for processes that are not told by a signal."""
    path = os.environ.get(_FILE)
    if path is None:
        return
    with suppress(OSError):
        here = os.fstat(2)
        try:
            moved = not os.path.samestat(here, Path(path).stat())
        except FileNotFoundError:
            moved = True
        if moved:
            _reopen(path)


def _reopen_again_and_again() -> None:
    while True:
        signal.sigwait({signal.SIGHUP})
        try:
            _reopen(os.environ[_FILE])
        except OSError as error:  # a folder that is gone: better in the old file than nowhere
            logging.getLogger(__name__).error("the log cannot be opened anew: %s", error)


def _reopen(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    finally:
        os.close(fd)


def _is_journal() -> bool:
    """Whether standard error is what the service manager connected to the journal, and not something else by now."""
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
    """Handler that writes to what `sys.stderr` is at the moment.

    While rich shows progress bars, `sys.stderr` is an object of rich's that writes above them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Lines(logging.Formatter):
    """Lines for whatever standard error is at the moment: a mount in the background takes it elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._dated = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        self._bare = logging.Formatter("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        in_journal = _is_journal()  # which has times and levels of its own
        lines = self._bare if in_journal else self._dated
        text = self._object(record) if self._as_json else lines.format(record)
        return _marked(text, record.levelno) if in_journal else text

    def _object(self, record: logging.LogRecord) -> str:
        """One object on one line, in ASCII: what a remote page said cannot break out of it."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: value for name in FACTS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
