"""Lazy exports: public names of a package are imported on first use, so that importing the package stays cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy_exports(
    package: str, names: dict[str, str], prepare: Callable[[str], None] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return what a package's `__init__` needs to export names lazily.

    A public name must differ from the names of the package's submodules: importing a submodule sets an attribute of
    that name on the package, which would hide the export.

    Args:
        package: `__name__` of the package.
        names: public name -> submodule that defines it, relative to the package.
        prepare: called with the public name before its submodule is imported.

    Returns:
        `__getattr__`, `__dir__` and `__all__` of the package.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if prepare is not None:
            prepare(name)
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return get, lambda: sorted(names), list(names)
