"""README and guides name what exists: settings, commands, targets, files, Python, tests."""

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from corpus_asr.cli.main import app
from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.config.settings import keys_of
from tests.repo.sources import REPOSITORY, relative

PAGES = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *(REPOSITORY / name / "README.md" for name in ("benchmarks", "notebooks")),
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
NAMED_KEY = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9*]+)+)")
# Endings of file names, which a section's name may come before: report.html.
SUFFIXES = {"html", "json", "csv", "log", "md", "parquet", "py", "safetensors", "yaml"}
# Weights and attributes of a network.
OF_NETWORKS = {
    "model.encoder.*", "model.dtype", "model.generate",
    "model.model.encoder.embed_positions.requires_grad_",
}  # fmt: skip
MEASURED = re.compile(r"<!-- measured: .*?<!-- end -->", re.DOTALL)
# Shown with its answer, which names the option of here.
REFUSED = "$ corpus-asr transcribe talk.mp3 --num_beams 5"
JOBS = (PseudoLabelConfig, FinetuneConfig)
SETTINGS = {key: field for job in JOBS for key, field in keys_of(job)}
SECTIONS = {key[0] for key in SETTINGS if len(key) > 1}
# Their keys are of other libraries, or the user's.
FREE = {
    ("lora",), ("training",), ("model", "by_language"),
    *(key for key in SETTINGS if key[-1] == "storage_options"),
}  # fmt: skip


def exists(key: tuple[str, ...]) -> bool:
    """Tell whether a job's file may have this key."""
    return key in SETTINGS or any(key[: len(free)] == free for free in FREE)


def keys_in(block: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of a block of YAML."""
    if isinstance(block, Mapping):
        for name, value in block.items():
            yield (*above, str(name))
            yield from keys_in(value, (*above, str(name)))


def keys_named(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the settings that a page names, in blocks of YAML, in commands and in backticks."""
    for language, body in FENCED.findall(text):
        for block in yaml.safe_load_all(body) if language == "yaml" else ():
            if isinstance(block, Mapping) and SECTIONS.intersection(block):
                yield from keys_in(block)
    fenced = [body for language, body in FENCED.findall(text) if language != "python"]
    spans = [*SPAN.findall(FENCED.sub("", text)), *fenced]
    for name in (name for span in spans for name in NAMED_KEY.findall(span)):
        section, *names = name.split(".")
        if section in SECTIONS and names[-1] not in SUFFIXES and name not in OF_NETWORKS:
            yield (section, *names)


def wrong_keys(text: str) -> set[str]:
    return {".".join(key) for key in keys_named(text) if not exists(key)}


def test_every_setting_named_exists() -> None:
    assert {relative(page): wrong_keys(page.read_text()) for page in PAGES} == {
        relative(page): set() for page in PAGES
    }


@cache
def commands() -> Mapping[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def calls_named(text: str) -> Iterator[str]:
    """Yield the calls of commands that a page shows, in consoles and in backticks."""
    text = MEASURED.sub("", text)
    for language, body in FENCED.findall(text):
        if language in ("console", "text"):
            lines = body.replace("\\\n", " ").splitlines()
            yield from (line for line in lines if re.search(r"(^|[ /])corpus-asr ", line))
    for span in SPAN.findall(FENCED.sub("", text)):
        words = " ".join(span.split())
        if re.match(r"(\w+=\S+ )*corpus-asr ", words) or words.split()[0] in commands():
            yield words


def problems_of(call: str) -> Iterator[str]:
    """Yield what the program would refuse in a call before it looks at any value."""
    words = re.sub(r"(\$ |.*[ /](?=corpus-asr )|\s+#.*| [|>].*)", "", call).split()
    words = words[words[0] == "corpus-asr" :]
    while words and words[0].startswith("-"):  # options of all commands
        words = words[2:]
    if not words or words[0].isupper():
        return
    command = commands().get(words[0])
    if command is None:
        yield f"{call}: no such command"
        return
    options = [item for item in command.params if item.param_type_name == "option"]
    known = {name for item in options for name in (*item.opts, *item.secondary_opts)}
    if words[0] == "transcribe":  # takes the spelling of whisper
        known |= {name.replace("-", "_").replace("__", "--") for name in known}
    used = {re.split(r"[=,;:]", word)[0] for word in words[1:] if word.startswith("--")}
    yield from (f"{call}: {name}" for name in sorted(used - known - {"--help"}))
    # A call without what it is about is a mention.
    if len(words) > 1 and not words[1].startswith("-"):
        for item in options:
            if item.required and not used.intersection(item.opts):
                yield f"{call}: lacks {item.opts[0]}"


def test_every_command_and_option_named_exists() -> None:
    calls = {page: {*calls_named(page.read_text())} - {REFUSED} for page in PAGES}
    assert sum(map(len, calls.values())) > 50
    for page, of_page in calls.items():
        assert [text for call in of_page for text in problems_of(call)] == [], relative(page)


def blocks(document: str, *languages: str) -> list[str]:
    text = (REPOSITORY / document).read_text()
    return [body for language, body in FENCED.findall(text) if language in languages]


def test_every_subcommand_is_shown_in_a_guide():
    guides = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in commands() if f"corpus-asr {name}" not in guides] == []


def test_targets_and_files_of_commands_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {*re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)}
    for page in PAGES:
        shown = "\n".join(blocks(relative(page), "console"))
        assert {*re.findall(r"^(?:\$ )?make ([a-z-]+)", shown, re.MULTILINE)} <= targets, page
        files = re.findall(r"(?<= )(?:configs|tests)/[\w./-]+", shown)
        assert [file for file in files if not (REPOSITORY / file).exists()] == [], page


@pytest.mark.parametrize("source", blocks("README.md", "python"))
def test_python_shown_parses_and_imports_what_exists(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("corpus_asr"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


DOCS = REPOSITORY / "docs"
GUIDES = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "notebooks" / "README.md"]


def links(page: Path) -> list[Path]:
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [page.parent / link for link in found if "://" not in link]


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
