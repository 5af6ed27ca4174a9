"""All of the Kinetics video datasets as plain files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinetics_fs._version import __version__
from kinetics_fs.util.lazy import import_on_use

if TYPE_CHECKING:
    from kinetics_fs.api import Library
    from kinetics_fs.catalog.clip import Clip
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

__getattr__ = import_on_use(
    __name__,
    {
        "api": "Library",
        "catalog.clip": "Clip",
        "errors": "ArchiveError CatalogError FailureKind FetchError KineticsError MountError SettingError StoreError",
    },
)
