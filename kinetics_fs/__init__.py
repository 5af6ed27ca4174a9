"""All of the Kinetics video datasets as plain files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kinetics_fs._version import __version__

if TYPE_CHECKING:
    from kinetics_fs.api import Library
    from kinetics_fs.catalog import Clip
    from kinetics_fs.errors import (
        ArchiveError,
        CatalogError,
        FailureKind,
        FetchError,
        KineticsError,
        MountError,
        SettingError,
        StoreError,
    )

__all__ = [
    "ArchiveError",
    "CatalogError",
    "Clip",
    "FailureKind",
    "FetchError",
    "KineticsError",
    "Library",
    "MountError",
    "SettingError",
    "StoreError",
    "__version__",
]

_MODULES = {"Library": "kinetics_fs.api", "Clip": "kinetics_fs.catalog"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: worker processes and `kinetics-fs --help` need none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "kinetics_fs.errors")), name)
