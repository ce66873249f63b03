"""The classes of `transformers` for these families; their names are imported on first use."""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


def lazy_names(
    package: str,
    modules: Mapping[str, tuple[str, ...]],
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package, which import on first use (PEP 562).

    `modules` lists the names that each module defines, `aliases` further names for some of them.
    """
    held = vars(sys.modules[package])
    home = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        defined = aliases.get(name, name)
        if defined not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        held[name] = getattr(importlib.import_module(home[defined]), defined)
        return held[name]

    def names() -> list[str]:
        return sorted({*held, *home, *aliases})

    return find, names
