"""Files that commands write for people."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kinetics_fs.errors import KineticsError


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[BinaryIO]:
    """Writes a file: it is there when it is complete, in place of the one before. `-` is standard output.

    Raises:
        KineticsError: it cannot be written.
    """
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    place = file.resolve()
    try:
        if place.exists() and not place.is_file():  # a pipe or a device: to be written, and never to be replaced
            with place.open("wb") as stream:
                yield stream
            return
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise KineticsError(f"cannot write {file}: {error.strerror}") from error
