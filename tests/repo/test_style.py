"""The house rules that a machine can check; CONTRIBUTING.md gives the reasons."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.sources import REPOSITORY, parsed, python_files, relative

BINARIES = Path(sys.executable).parent
CODE_FOLDERS = ("corpus_asr", "pipelines", "tests")
TEXT_FOLDERS = (*CODE_FOLDERS, "configs", "notebooks", ".ci")
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".ipynb", ".json"}

MAX_LINES = 700

# Places that exist on somebody's machine only, written so that this file passes too. Tests may
# name a temporary file that need not exist.
MACHINE_PATHS = re.compile(r"/wor[k]/|/hom[e]/|\.\./share[d]")
TEMPORARY_PATHS = re.compile("/tm[p]/[a-z]")


def text_files() -> Iterator[Path]:
    for folder in TEXT_FOLDERS:
        yield from (REPOSITORY / folder).rglob("*")
    yield from REPOSITORY.iterdir()


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param(["mypy"], marks=pytest.mark.long),
        ["codespell"],
    ],
    ids=" ".join,
)
def test_the_linters_find_nothing(command):
    program, *arguments = command
    done = subprocess.run(
        [BINARIES / program, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long_to_know():
    for path in python_files(*CODE_FOLDERS):
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_no_exception_is_swallowed():
    silent = [
        f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        for path in python_files("corpus_asr", "pipelines")
        for node in ast.walk(parsed(path))
        if swallows(node)
    ]
    assert silent == []


def swallows(node: ast.AST) -> bool:
    """Tell whether `node` catches everything and neither raises nor looks at what it caught."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        return any(ast.unparse(argument) in BROAD for argument in node.args)
    if not isinstance(node, ast.ExceptHandler):
        return False
    if node.type is not None and ast.unparse(node.type) not in BROAD:
        return False
    inside = [inner for statement in node.body for inner in ast.walk(statement)]
    raises = any(isinstance(inner, ast.Raise) for inner in inside)
    looks = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
    return not (raises or looks)


BROAD = {"Exception", "BaseException"}


def test_columns_made_of_lists_have_a_type():
    # Without rows, or with nulls alone, Arrow's guess is the type null, which fits nothing.
    guessed = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files("corpus_asr")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "pa.array"
        and len(node.args) + len(node.keywords) == 1
        and re.match(r"\[|(list|range|sorted)\(", ast.unparse(node.args[0]))
    ]
    assert guessed == []


def test_no_file_mentions_a_path_of_one_machine():
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in text_files()
        if path.is_file()
        and path.name != ".git"
        and path.suffix in TEXT_SUFFIXES
        and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
        or (TEMPORARY_PATHS.search(line) and not relative(path).startswith("tests/"))
    ]
    assert found == []
