"""Checks of what runs us, and of what we run."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections.abc import Iterator

from kinetics_fs._version import __version__
from kinetics_fs.doctor.findings import Finding, State
from kinetics_fs.errors import FetchError
from kinetics_fs.media.ffmpeg import find_ffmpeg, missing_encoders

_OLDEST_PYTHON = (3, 11)
_FEW_FILES = 4096


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()} ({sys.executable}), kinetics-fs {__version__}"
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding("python", State.PROBLEM, found, "Install Python 3.11 or newer.")
    else:
        yield Finding("python", State.OK, found)


def ffmpeg() -> Iterator[Finding]:
    """The program that cuts clips: which, and whether it can."""
    another = "Install the system's ffmpeg (Debian: apt-get install ffmpeg), with libx264."
    try:
        path = find_ffmpeg()
        said = subprocess.run(
            [path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15, check=True
        ).stdout
        missing = missing_encoders(path)
    except FetchError as error:
        yield Finding("ffmpeg", State.PROBLEM, str(error), another)
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("ffmpeg", State.PROBLEM, f"it does not run: {error}", another)
        return
    words = said.split()
    found = f"{words[2] if len(words) > 2 else 'of unknown version'} ({path})"
    if missing:
        yield Finding("ffmpeg", State.PROBLEM, f"{found} cannot encode with {' and '.join(missing)}", another)
    else:
        yield Finding("ffmpeg", State.OK, f"{found}, with libx264 and aac")


def open_files() -> Iterator[Finding]:
    """How many clips a mount can have open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        yield Finding("open files", State.OK, "a mount may have any number")
    elif most < _FEW_FILES:
        fix = "Raise the hard limit: LimitNOFILE= in a systemd unit, or nofile in /etc/security/limits.conf."
        yield Finding("open files", State.WARNING, f"a mount may have only {most:,}", fix)
    else:
        yield Finding("open files", State.OK, f"a mount may have {most:,}")
