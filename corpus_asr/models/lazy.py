"""Names of a package that are imported when they are first asked for (PEP 562).

In: a package and where each of its names lies. Out: its `__getattr__` and `__dir__`. Imports
nothing by itself, so that the half of a family that needs no torch stays without it.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: where each name lies, as `"module:Name"`.
    """
    held = vars(sys.modules[package])

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = home.partition(":")
        held[name] = getattr(importlib.import_module(module), attribute)
        return held[name]

    def names() -> list[str]:
        return sorted({*held, *homes})

    return find, names
