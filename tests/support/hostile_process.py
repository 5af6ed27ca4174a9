"""A confined process that does whatever a test tells it, as one does that a file from outside has taken over."""

from __future__ import annotations

import traceback
from typing import Any

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util.confined import Opened, Operation, serve

_kept: dict[str, Any] = {}
"""What one request leaves for the next."""


def _operations(opened: Opened) -> dict[str, Operation]:
    def run(*files: int, code: str) -> str:
        names = {"folder": opened.folder, "files": files, "kept": _kept, "call": opened.parent.call}
        try:
            exec(code, names)
        except FetchError:  # of a function of the parent
            raise
        except OSError as error:
            return f"OSError {error.errno}"
        return str(names.get("result", "done"))

    return {"run": run}


def _failure(_: str, error: Exception) -> FetchError:
    return FetchError(FailureKind.CORRUPT, "".join(traceback.format_exception(error)))


if __name__ == "__main__":
    serve(_operations, _failure, lambda _: [])
