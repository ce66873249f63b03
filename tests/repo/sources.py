"""The sources of the repository as trees, each parsed once in a process."""

import ast
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "corpus_asr"


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below these folders of the repository."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file; the whole package takes most of a second, and many checks need it."""
    return ast.parse(path.read_text())


def relative(path: Path) -> str:
    """Return how the repository names a file."""
    return path.relative_to(REPOSITORY).as_posix()


def module_name(path: Path) -> str:
    """Return how Python names a file."""
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
