"""All of the Kinetics video datasets as plain files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kinetics_fs._version import __version__

if TYPE_CHECKING:
    from kinetics_fs.api import Library

__all__ = ["Library", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Library":  # later, for it is much, and a worker process wants none of it
        from kinetics_fs.api import Library

        return Library
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
