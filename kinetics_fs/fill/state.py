"""What it takes to go on with an archive after a kill: where to enter it again, and what was learnt of it so far."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.errors import ArchiveError
from kinetics_fs.fill.summary import Summary
from kinetics_fs.sources.archive.index import ArchiveIndex, read_indexes, write_index
from kinetics_fs.sources.archive.scan import Checkpoint
from kinetics_fs.util.files import atomic_write

_MAGIC = b"kinetics-fs fill 2\n"
_LENGTH = 4
_LONGEST_SUMMARY = 64 * 1024


class State(NamedTuple):
    """How far a pass over an archive has come."""

    checkpoint: Checkpoint
    learnt: ArchiveIndex
    """Of the clips so far; also says which archive it is, and which version of it."""
    summary: Summary
    """Of the clips so far."""


def write_state(path: Path, state: State) -> None:
    """Puts a state in place of the one before, at once.

    It is not forced to the disk: a state that a power cut has damaged is noticed, and the archive begun anew.
    """
    checkpoint = state.checkpoint.pack()
    with atomic_write(path, durable=False) as file:
        file.write(_MAGIC + len(checkpoint).to_bytes(_LENGTH, "little") + checkpoint)
        file.write(state.summary.pack().encode() + b"\n")
        write_index(state.learnt, file)


def read_state(path: Path) -> State | None:
    """The state that was written last; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(_LENGTH), "little")
            if length > os.fstat(file.fileno()).st_size:
                return None
            checkpoint = Checkpoint.unpack(file.read(length))
            summary = Summary.unpack(file.readline(_LONGEST_SUMMARY).decode())
            [learnt] = read_indexes(file)
    except (OSError, ValueError, ArchiveError):
        return None
    return State(checkpoint, learnt, summary)
