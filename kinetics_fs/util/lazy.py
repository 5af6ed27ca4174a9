"""Packages that import their public names when these are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_on_use(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the function `__getattr__` of a package.

    A process that needs one small module of the package does not load the others.

    Args:
        package: name of the package.
        names: public names, separated by spaces, by the module of the package that defines them.
    """
    modules = {name: module for module, defined in names.items() for name in defined.split()}

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
