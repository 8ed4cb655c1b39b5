"""Names of a package that are imported at first use, so that a command starts fast."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def import_lazily(
    package: str, members: Mapping[str, str], modules: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Args:
        package: Name of the package.
        members: Module of each member.
        modules: Names of modules in the package that are members, too.
    """

    def get(name: str) -> Any:
        if name in members:
            return getattr(importlib.import_module(members[name]), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    def list_names() -> list[str]:
        return sorted(importlib.import_module(package).__all__)

    return get, list_names
