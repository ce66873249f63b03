"""Libraries and programs of the system that oracles use, and that no wheel need bring along."""

import shutil
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest


def hide_broken_soundfile() -> bool:
    """Let soundfile be absent where libsndfile is; returns whether it is hidden.

    transformers and lhotse import it wherever it is installed, and do without it where it is not.
    """
    if find_spec("soundfile") is None:
        return False
    try:
        import_module("soundfile")
    except OSError:
        sys.modules["soundfile"] = None  # type: ignore[assignment]
        return True
    return False


def skip_without(*programs_and_packages: str) -> None:
    """Skip the test unless each is a program on the path, or a package that can be found."""
    for name in programs_and_packages:
        if shutil.which(name) is None and find_spec(name) is None:
            pytest.skip(f"needs {name}, which is not installed here")
