"""Checks of the Python interpreter, the ffmpeg program and the limits of the process."""

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
from kinetics_fs.util.confined import ConfinedProcess

_OLDEST_PYTHON = (3, 11)
_FEW_FILES = 4096


def python() -> Iterator[Finding]:
    """Check the version of the Python interpreter."""
    found = f"{platform.python_version()} ({sys.executable}), kinetics-fs {__version__}"
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding("python", State.PROBLEM, found, "Install Python 3.11 or newer.")
    else:
        yield Finding("python", State.OK, found)


def ffmpeg() -> Iterator[Finding]:
    """Check that ffmpeg, which cuts clips, runs and has the encoders that it needs."""
    install = "Install an ffmpeg with libx264 (Debian: apt-get install ffmpeg)."
    try:
        path = find_ffmpeg()
        output = subprocess.run(
            [path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15, check=True
        ).stdout
        missing = missing_encoders(path)
    except FetchError as error:
        yield Finding("ffmpeg", State.PROBLEM, str(error), install)
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("ffmpeg", State.PROBLEM, f"ffmpeg does not run: {error}", install)
        return
    words = output.split()
    found = f"{words[2] if len(words) > 2 else 'unknown version'} ({path})"
    if missing:
        yield Finding("ffmpeg", State.PROBLEM, f"{found} cannot encode with {' and '.join(missing)}", install)
    else:
        yield Finding("ffmpeg", State.OK, f"{found}, with libx264 and aac")


def sandbox() -> Iterator[Finding]:
    """Check how far the processes are confined that parse what comes from outside."""
    process = ConfinedProcess("kinetics_fs.media.checker_process", {})
    process.end()
    confinement = process.confinement
    if confinement.missing:
        fix = "Fetching works without; see docs/security.md."
        yield Finding("sandbox", State.WARNING, str(confinement), fix)
    else:
        yield Finding("sandbox", State.OK, str(confinement))


def open_files() -> Iterator[Finding]:
    """Check how many clips a mount can have open, which the hard limit of open files bounds."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        yield Finding("open files", State.OK, "no limit")
    elif limit < _FEW_FILES:
        fix = "Raise the hard limit: LimitNOFILE= in a systemd unit, or nofile in /etc/security/limits.conf."
        yield Finding("open files", State.WARNING, f"a mount can open only {limit:,} files", fix)
    else:
        yield Finding("open files", State.OK, f"a mount can open {limit:,} files")
