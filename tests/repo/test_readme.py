"""README and guides show what exists: commands, options, targets, files, links, Python."""

import ast
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(str(page.relative_to(REPOSITORY)) for page in PAGES))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, *languages: str) -> list[str]:
    text = (REPOSITORY / document).read_text()
    return [body for language, body in BLOCK.findall(text) if language in languages]


def commands(program: str) -> list[str]:
    """Return the console lines of the documents that call `program`, comments left out."""
    found = []
    for document in DOCUMENTS:
        for body in blocks(document, "console"):
            lines = body.replace("\\\n", " ").splitlines()
            shown = (line.removeprefix("$ ") for line in lines)
            bare = (re.sub(r"\s+#.*", "", line) for line in shown)
            found += [line for line in bare if re.match(rf"(\w+=\S+ )*{program} ", line)]
    return found


@cache
def help_of(*arguments: str) -> str:
    plain = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, [*arguments, "--help"], env=plain)
    assert done.exit_code == 0, done.output
    return done.stdout


# Shown with its answer, which names the option of here.
REFUSED = "corpus-asr transcribe talk.mp3 --num_beams 5"


@pytest.mark.parametrize("command", sorted({*commands("corpus-asr")} - {REFUSED}))
def test_every_command_and_option_shown_exists(command):
    words = command.split()[command.split().index("corpus-asr") + 1 :]
    while words and words[0].startswith("-"):  # of all commands
        assert words[0] in help_of()
        words = words[2:]
    text = help_of(words[0]) if words else ""
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in text


def test_every_subcommand_is_shown_in_a_guide():
    names = re.findall(r"^[│ ]*([a-z]+) {2,}\S", help_of(), re.MULTILINE)
    guides = "\n".join((REPOSITORY / document).read_text() for document in DOCUMENTS)
    assert names
    assert [name for name in names if f"corpus-asr {name}" not in guides] == []


@pytest.mark.parametrize("command", commands("make"))
def test_every_make_target_shown_exists(command):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in command.split()[1:] if "=" not in word} <= targets


def test_configs_and_clips_named_in_commands_exist():
    named = {word for command in commands("corpus-asr") for word in command.split() if "/" in word}
    local = {word for word in named if word.startswith(("configs/", "tests/"))}
    assert local
    assert [word for word in local if not (REPOSITORY / word).exists()] == []


@pytest.mark.parametrize("source", blocks("README.md", "python"))
def test_python_shown_parses_and_imports_what_exists(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("corpus_asr"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


GUIDES = [*PAGES, REPOSITORY / "notebooks" / "README.md"]


def links(page: Path) -> list[Path]:
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [page.parent / link for link in found if "://" not in link]


def test_links_to_files_lead_somewhere():
    for page in (*GUIDES, *(REPOSITORY / name for name in DOCUMENTS)):
        assert [link for link in links(page) if not link.exists()] == [], page


def test_the_index_has_every_guide():
    index = REPOSITORY / "docs" / "README.md"
    listed = {link.resolve() for link in links(index)}
    assert [page for page in GUIDES if page != index and page.resolve() not in listed] == []


def test_concepts_are_at_most_fifty_five_and_name_the_files_where_they_live():
    page = (REPOSITORY / "docs/background/concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| .+ \| `(.+?)` \|$", page, re.MULTILINE)
    concepts = [concept for concept, _ in rows]
    assert len(concepts) == len(set(concepts)) == page.count("\n| ") - page.count("| Concept |")
    assert len(concepts) <= 55
    assert [name for _, name in rows if not (REPOSITORY / "corpus_asr" / name).is_file()] == []


def tree() -> list[tuple[int, str]]:
    """Return (depth, name) of each entry in the annotated tree of the repository."""
    (body,) = (
        body
        for body in blocks("docs/background/architecture.md", "text")
        if body.startswith("corpus_asr/")
    )
    return [
        ((len(line) - len(line.lstrip())) // 2, name)
        for line in body.splitlines()
        for name in line.split("  ")[(len(line) - len(line.lstrip())) // 2].split()
    ]


def test_every_entry_of_the_tree_exists():
    missing, parents = [], ["."]
    for depth, name in tree():
        parents[depth + 1 :] = [name]
        path = REPOSITORY.joinpath(*parents[: depth + 2])
        if not path.exists() or name.endswith("/") != path.is_dir():
            missing.append(str(path.relative_to(REPOSITORY)))
    assert missing == []


def test_the_tree_shows_every_folder_of_the_package_and_of_the_repository():
    shown = [(depth, name.rstrip("/")) for depth, name in tree()]
    top = {name for depth, name in shown if depth == 0}
    below = {name for depth, name in shown if depth == 1}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    folders = {name.split("/")[0] for name in tracked if "/" in name and name[0] != "."}
    packages = {name.split("/")[1] for name in tracked if name.startswith("corpus_asr/")}
    assert folders <= top
    assert {name for name in packages if "." not in name} <= below


def test_every_test_of_an_entry_point_exists():
    lines = (REPOSITORY / "docs" / "_site" / "entry_points.tsv").read_text().splitlines()[1:]
    tests = [line.split("\t")[2] for line in lines]
    assert len(list(filter(None, tests))) > 50
    for test in filter(None, tests):
        path, _, name = test.partition("::")
        assert f"\ndef {name}" in (REPOSITORY / path).read_text(), test


@pytest.mark.long
def test_each_claim_about_security_names_tests_that_exist() -> None:
    section = (
        (REPOSITORY / "SECURITY.md").read_text().partition("## Tested")[2].partition("\n## ")[0]
    )
    claims = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert claims
    for claim in claims:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", claim)
        assert len(tests) == claim.count("`, `") + 1, claim
        for file, name in tests:
            tree = ast.parse((REPOSITORY / "tests" / file).read_text())
            assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
