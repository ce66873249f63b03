"""The classes of `transformers` by their names, each family in a package that imports on use."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any


def lazy_names(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that imports names on first use (PEP 562)."""
    held = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name in names:
            # In order: modules that import torch come last, after names that do not need it.
            for module in map(importlib.import_module, modules):
                if hasattr(module, name):
                    held[name] = getattr(module, name)
                    return held[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*held, *names})
