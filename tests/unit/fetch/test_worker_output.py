"""The lines that a worker process writes."""

from __future__ import annotations

import os
from io import FileIO

from kinetics_fs.fetch.worker import _Output


def test_a_worker_whose_parent_was_killed_writes_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with FileIO(writer, "w") as stream:
        output = _Output(stream)
        output.begin()
        output.end({})
